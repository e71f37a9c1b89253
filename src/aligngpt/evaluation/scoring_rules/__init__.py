"""The scoring rules of published benchmarks: pure functions of texts and labels, standard library only.

Where the authors' program and a common harness (lmms-eval) disagree, both rules are here under their own names.
"""
