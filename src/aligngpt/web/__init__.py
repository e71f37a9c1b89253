"""`aligngpt web`: a page in the browser on which a model answers questions about pictures."""
