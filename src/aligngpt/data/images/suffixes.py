"""How the names of image files end."""

IMAGE_SUFFIXES = frozenset({"avif", "bmp", "gif", "jfif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"})
"""Those of the formats that are read, in lower case and without the dot."""
