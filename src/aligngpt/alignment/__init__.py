"""The core of AlignGPT: scores become levels, levels become embeddings."""
