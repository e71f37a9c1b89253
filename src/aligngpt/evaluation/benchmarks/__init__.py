"""The benchmarks that LLaVA-1.5 and AlignGPT published figures for, read from local folders and scored by named rules.

A benchmark is one file in `suite/`; `run_benchmarks` in `runner` asks a model or takes its answers from a file.
"""
