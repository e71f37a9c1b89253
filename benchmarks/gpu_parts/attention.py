"""Each way of attention over packed rows against the same under a mask in float32: output, gradients, and times.

Errors are taken piece by piece and the largest counts: in a row of 16,384 tokens a branch that is all wrong would
hardly change the norm of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aligngpt.model.packing.attention import packed_attention
from aligngpt.model.packing.pieces import Piece, Pieces, Way
from aligngpt.model.packing.self_check import TOLERANCE, TRIED
from aligngpt.model.packing.ways import WIDEST_HEAD
from gpu_parts.run import KERNELS, Run, free, seconds_of

BRANCHES = (37, 180, 64, 301, 129, 16, 250, 90, 1, 77)
"""Tokens of ten questions with their answers, in no order and with no common factor."""


@dataclass(frozen=True)
class Case:
    """A row and a layer.

    Attributes:
        pieces: of the row.
        heads, shared, width: heads of queries, of keys, and their width.
        window, softcap: of the layer; None without.
    """

    pieces: tuple[Piece, ...]
    heads: int
    shared: int
    width: int
    window: int | None = None
    softcap: float | None = None

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.pieces[-1].stop

    def inputs(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Random query, key, value, and the gradient of the output, in what `dtype` can hold."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, number, self.length, self.width) for number in (self.heads, self.shared, self.shared)]
        shapes.append((1, self.length, self.heads, self.width))
        return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def row(prefix: int, branches: Sequence[int], alone: Sequence[int], at_least: int) -> tuple[Piece, ...]:
    """A prefix with branches and samples of their own, again and again until the row has `at_least` tokens."""
    pieces: list[Piece] = []
    place = 0
    while place < at_least:
        start, stop = place, place + prefix
        pieces.append(Piece(start, stop, start, start))
        for length in branches:
            pieces.append(Piece(stop, stop + length, start, start + prefix))
            stop += length
        for length in alone:
            pieces.append(Piece(stop, stop + length, stop, stop))
            stop += length
        place = stop
    return tuple(pieces)


def cases(rehearse: bool) -> list[Case]:
    """Plain layers, windows, soft caps; heads shared or not; narrow and wide; 453 to more than 16,384 tokens."""
    few = [Case(TRIED, 4, 2, 16), Case(TRIED, 4, 4, 16, window=64), Case(TRIED, 4, 1, 16, window=64, softcap=2.0)]
    if rehearse:
        return few
    middle, long = (row(576, BRANCHES, (700, 33), at_least) for at_least in (2048, 16_384))
    return [
        Case(TRIED, 8, 2, 64),
        Case(TRIED, 8, 2, 64, window=64),
        Case(TRIED, 8, 8, 128, softcap=20.0),
        Case(TRIED, 8, 2, 128, window=64, softcap=20.0),
        Case(middle, 8, 8, 64),
        Case(middle, 9, 3, 64),
        Case(middle, 8, 2, 128, window=256),
        Case(middle, 4, 1, 256),
        Case(long, 8, 2, 64),
        Case(long, 8, 2, 128, window=1024),
    ]


def can_run(way: Way, device: torch.device) -> bool:
    """Whether a device has a way, backward pass included: `varlen` and `flex` are kernels for CUDA."""
    return device.type == "cuda" or way in ("loop", "mask")


def ways_on(run: Run) -> list[Way]:
    """The ways to measure on the run's device; for the others, the run says that they are not available."""
    if missing := [way for way in KERNELS if not can_run(way, run.device)]:
        run.remark(f"not available on a CPU: {', '.join(missing)}")
    return [way for way in KERNELS if way not in missing]


def fits(way: Way, case: Case, dtype: torch.dtype) -> bool:
    """Whether a way is made for such a layer."""
    half = dtype in (torch.float16, torch.bfloat16)
    return way != "varlen" or (half and case.softcap is None and case.width <= WIDEST_HEAD and not case.width % 8)


def computed(case: Case, way: Way, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of query, key and value, each `(length, heads, width)`."""
    pieces = Pieces(case.pieces).to(inputs[0].device)
    pieces.way = way
    held = [tensor.to(dtype).requires_grad_() for tensor in inputs[:3]]
    seen = attend(case, pieces, held)
    grads = torch.autograd.grad(seen, held, inputs[3].to(dtype))
    return [seen.detach()[0], *(grad[0].transpose(0, 1) for grad in grads)]


def attend(case: Case, pieces: Pieces, held: Sequence[Tensor]) -> Tensor:
    """The layer's attention, as a language model calls it."""
    query, key, value = held
    more = {"sliding_window": case.window, "softcap": case.softcap}
    return packed_attention(nn.Identity(), query, key, value, None, pieces=pieces, **more)[0]  # type: ignore[arg-type]


def exact(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `computed` must give: under a mask in float32, a head at a time, whose scores alone take 1 GB at 16k."""
    one = Case(case.pieces, 1, 1, case.width, case.window, case.softcap)
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        for head in range(case.heads):
            key = head * case.shared // case.heads
            query, keys = slice(head, head + 1), slice(key, key + 1)
            part = [inputs[0][:, query], inputs[1][:, keys], inputs[2][:, keys], inputs[3][:, :, query]]
            found.append(computed(one, "mask", part, torch.float32))
    output, of_query, of_key, of_value = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    # The gradient of a shared head is the sum of those of its heads.
    shared = (case.length, case.shared, -1, case.width)
    return [output, of_query, of_key.reshape(shared).sum(dim=2), of_value.reshape(shared).sum(dim=2)]


def largest_error(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference in a piece, relative to its norm or to that of as many tokens of the row, if larger."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        a_token = other.norm() / case.length**0.5
        for piece in case.pieces:
            own = slice(piece.start, piece.stop)
            size = torch.maximum(other[own].norm(), a_token * (piece.stop - piece.start) ** 0.5)
            errors.append((one[own].float() - other[own]).norm() / size)
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())


def attention(run: Run) -> None:
    """Compare and time the ways; one that is wrong, or never runs, is refused."""
    for way in ways_on(run):
        _compare(run, way)
        free(run)
        if way not in run.refused:
            run.attempt(f"timing {way}", partial(_time, run, way))
        free(run)


def _compare(run: Run, way: Way) -> None:
    attempts: list[bool] = []
    for case, dtype in _cases_of(way, run):
        if not run.left(20 if way == "flex" else 5):
            run.remark(f"{way}: the time was over before all cases were tried")
            break
        attempts.append(run.attempt(f"{way}, {_told(case)}, {dtype}", _comparison(run, way, case, dtype)))
    if attempts and not any(attempts):
        run.refuse(way, "it ran in no case")


def _comparison(run: Run, way: Way, case: Case, dtype: torch.dtype) -> Callable[[], None]:
    def compare() -> None:
        inputs = case.inputs(run.device, dtype)
        error = largest_error(case, computed(case, way, inputs, dtype), exact(case, inputs))
        right = error <= TOLERANCE[dtype]
        run.add(way=way, **_of(case), dtype=str(dtype)[6:], error=error, tolerance=TOLERANCE[dtype], right=right)
        if not right:
            run.refuse(way, f"an error of {error:.2g} in {dtype}, {_told(case)}")
        elif dtype == torch.bfloat16 and case.softcap is None:
            run.tried.add(way)

    return compare


def _cases_of(way: Way, run: Run) -> Iterator[tuple[Case, torch.dtype]]:
    for dtype in (torch.bfloat16, torch.float32):
        for case in cases(run.rehearse):
            if fits(way, case, dtype):
                yield case, dtype


def _time(run: Run, way: Way) -> None:
    """Milliseconds of a layer of 1.2B (32 heads, 8 shared, 64 wide), branches and separate samples, bfloat16."""
    sizes = (512,) if run.rehearse else (4096, 16_384)
    for size in sizes:
        if not run.left(5):
            run.remark(f"{way}: no time to measure {size} tokens")
            return
        case = Case(row(576, BRANCHES, (700, 33), size), *((4, 2, 16) if run.rehearse else (32, 8, 64)))
        *held, direction = case.inputs(run.device, torch.bfloat16)
        held = [tensor.requires_grad_() for tensor in held]
        pieces = Pieces(case.pieces).to(run.device)
        pieces.way = way

        def both(
            case: Case = case, pieces: Pieces = pieces, held: list[Tensor] = held, direction: Tensor = direction
        ) -> None:
            torch.autograd.grad(attend(case, pieces, held), held, direction)

        forward = seconds_of(run, partial(_forward, case, pieces, held))
        whole = seconds_of(run, both)
        run.add(way=way, tokens=case.length, forward_ms=1e3 * forward, with_backward_ms=1e3 * whole)


@torch.no_grad()
def _forward(case: Case, pieces: Pieces, held: Sequence[Tensor]) -> None:
    attend(case, pieces, held)


def _of(case: Case) -> dict[str, object]:
    heads = f"{case.heads}/{case.shared}x{case.width}"
    return {"tokens": case.length, "heads": heads, "window": case.window, "softcap": case.softcap}


def _told(case: Case) -> str:
    return " ".join(f"{name} {value}" for name, value in _of(case).items() if value is not None)
