"""Further scores of a finished folder, computed from the embeddings that were kept while it was scored."""
