"""One file a benchmark; `registry` finds every module here and takes the instances in its `BENCHMARKS`."""
