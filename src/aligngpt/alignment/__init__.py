"""The idea of AlignGPT: scores become levels, levels become embeddings."""
