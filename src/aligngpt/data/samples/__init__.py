"""Samples: conversations about images, read, cached on disk and mixed."""
