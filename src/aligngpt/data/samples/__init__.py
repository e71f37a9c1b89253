"""Samples: conversations about images, read, cached on disk and mixed."""

from aligngpt.data.records.sample import Sample, parse_record

__all__ = ["Sample", "parse_record"]
