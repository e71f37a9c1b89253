"""`aligngpt export --gguf`: a model as the two files that llama.cpp reads."""
