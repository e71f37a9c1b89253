"""`aligngpt export`: model folders that other programs read, with the alignment embedding fixed."""
