"""The benchmarks by name: every module of `suite/` lists its own in `BENCHMARKS`."""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks import suite
from aligngpt.evaluation.benchmarks.frame import Benchmark


class UnknownBenchmark(AlignGPTError):
    """There is no benchmark of this name."""


@cache
def all_benchmarks() -> dict[str, Benchmark]:
    """The benchmarks of `suite/` by name, sorted.

    Raises:
        RuntimeError: two have the same name.
    """
    found: dict[str, Benchmark] = {}
    for module in sorted(one.name for one in pkgutil.iter_modules(suite.__path__)):
        for benchmark in importlib.import_module(f"{suite.__name__}.{module}").BENCHMARKS:
            if benchmark.name in found:
                raise RuntimeError(f"two benchmarks of {suite.__name__} have the name {benchmark.name!r}")
            found[benchmark.name] = benchmark
    return dict(sorted(found.items()))


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names, in their order, without repetitions.

    Raises:
        UnknownBenchmark: there is no such benchmark, or no name is given.
    """
    known = all_benchmarks()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"there is no benchmark {unknown[0]!r}" if unknown else "no benchmark is named"
        raise UnknownBenchmark(f"{what}; choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]
