"""Measure everything on one GPU in a few minutes: `python benchmarks/gpu.py [--seconds 480] [--out runs/gpu.json]`.

Parts run in this order, what decides most first:

- *machine*: card, driver, versions, date.
- *ceilings*: a large matrix product in bfloat16 and a copy, which no other figure can beat.
- *attention*: each way to compute attention over packed rows against a mask in float32, output and gradients; times.
- *equality*: tiny models of several families trained on packed rows, in each way, and on padded ones.
- *training*: steps of a model of 1.2B, padded and packed: tokens, samples, MFU, memory, losses.
- *scoring*: pairs a second with a CLIP of ViT-L/14-336's shape.
- *decoding*: answers by the engine and by `generate`, beside the time of reading the weights.
- *tests*: `pytest -m gpu`.

A part is skipped, and this is said, when its time is not left; what fails is recorded, and the next part runs. A way of
attention that was wrong is not trained with. Results are in one JSON file, replaced atomically after each figure, so
that a run that is killed keeps what it has. `--rehearse` runs every part on the CPU at tiny sizes: its figures mean
nothing. The exit code is 1 if anything failed.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_parts.run import Run

# Nothing heavy is imported at the top: the processes that open pictures import this module again.
SECONDS = 480.0
PARTS = {
    "machine": ("machine", "facts", 0.0, 1.0),
    "ceilings": ("machine", "ceilings", 5.0, 1.0),
    "attention": ("attention", "attention", 20.0, 0.25),
    "equality": ("equality", "equality", 15.0, 0.15),
    "training": ("training_speed", "training_speed", 40.0, 0.4),
    "scoring": ("scoring_speed", "scoring_speed", 30.0, 0.2),
    "decoding": ("decoding", "decoding", 30.0, 0.2),
    "tests": ("gpu_tests", "gpu_tests", 30.0, 1.0),
}
"""Module and function, the seconds that a part needs to begin, and its share of all seconds."""


def main() -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="the results (default: %(default)s)")
    parser.add_argument("--parts", help="comma-separated names (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, to try this program")
    options = parser.parse_args()
    names = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    import transformers
    from gpu_parts.run import Part, Run

    if not options.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; --rehearse runs all parts on the CPU at tiny sizes")
    transformers.logging.set_verbosity_error()
    run = Run(torch.device("cpu" if options.rehearse else "cuda"), options.rehearse, options.seconds, options.out)
    run.results |= {"rehearsal": options.rehearse, "seconds_allowed": options.seconds}
    # The parts need more kernels than a training run does; beyond its limit torch would compile no further ones.
    torch._dynamo.config.recompile_limit = 64
    chosen = []
    for name, (module, function, needs, share) in PARTS.items():
        if name in names:
            work = getattr(import_module(f"gpu_parts.{module}"), function)
            chosen.append(Part(name, work, needs, share))
    fine = run.perform(chosen)
    print_table(run)
    return 0 if fine else 1


def print_table(run: "Run") -> None:
    """Print one line for each part, and where the figures are."""
    print(f"\n{'part':<10} {'outcome':<8} {'seconds':>7}  figures  remarks")
    for name, part in run.results["parts"].items():
        seconds = part.get("seconds", 0.0)
        print(f"{name:<10} {part['status']:<8} {seconds:>7.1f}  {len(part['rows']):>7}  {len(part['remarks']):>7}")
        for remark in part["remarks"]:
            print(f"{'':<10}   {remark}")
    print(f"All figures: {run.out}" + ("; a rehearsal, they mean nothing" if run.rehearse else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
