"""The names of the ways to form an alignment embedding, importable without torch."""

from typing import Literal

AlignmentMode = Literal["adaptive", "global", "local", "average", "mean", "none"]
"""See `aligngpt.alignment.module.AlignmentModule`."""
