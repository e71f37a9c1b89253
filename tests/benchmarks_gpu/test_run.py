"""The program that measures a GPU: its time, its file, what it does with failures, and its counts."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aligngpt.model.packing import attention as packed
from aligngpt.model.packing.pieces import Pieces

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the benchmarks' modules importable; they are forgotten afterwards, as their names are common ones."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def make_run(folder: Path, seconds: float = 100.0) -> Any:
    from gpu_parts.run import Run

    return Run(torch.device("cpu"), True, seconds, folder / "gpu.json")


def part(name: str, work: Any, needs: float = 0.0, share: float = 1.0) -> Any:
    from gpu_parts.run import Part

    return Part(name, work, needs, share)


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def breaks(run: Any) -> None:
        run.add(figure=1.0)
        raise RuntimeError("out of memory")

    assert not run.perform([part("first", breaks), part("second", lambda run: run.add(figure=2.0))])
    saved = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert saved["first"]["status"] == "failed" and saved["first"]["rows"] == [{"figure": 1.0}]
    assert saved["first"]["remarks"] == ["failed: RuntimeError: out of memory"]
    assert saved["second"]["status"] == "done" and saved["second"]["rows"] == [{"figure": 2.0}]


def test_a_run_that_is_killed_keeps_every_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def killed(run: Any) -> None:
        run.add(figure=1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.perform([part("first", lambda run: run.add(figure=0.0)), part("second", killed)])
    saved = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert saved["first"]["status"] == "done"
    assert saved["second"] == {"status": "unfinished", "rows": [{"figure": 1.0}], "remarks": []}


def test_a_part_without_time_is_skipped_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, seconds=20)
    assert run.perform([part("long", lambda run: run.add(figure=1), needs=30), part("short", lambda run: None)])
    saved = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert saved["long"]["status"] == "skipped" and "30 s" in saved["long"]["remarks"][0]
    assert saved["short"]["status"] == "done"


def test_a_part_keeps_to_its_share_of_the_time(tmp_path: Path) -> None:
    run = make_run(tmp_path, seconds=100)
    run.rehearse = False
    found = []
    run.perform([part("one", lambda run: found.append((run.left(5), run.left(15))), share=0.1)])
    assert found == [(True, False)]


def test_a_figure_that_is_no_number_is_kept_as_text(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.perform([part("one", lambda run: run.add(loss=float("nan"), losses=[1.0, float("inf")]))])
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["one"]["rows"] == [
        {"loss": "nan", "losses": [1.0, "inf"]}
    ]


def wrong(*args: Any, pieces: Pieces, **kwargs: Any) -> torch.Tensor:
    """Attention piece by piece in which no branch sees its prefix."""
    from aligngpt.model.packing.pieces import Piece
    from aligngpt.model.packing.ways import loop

    alone = Pieces([Piece(piece.start, piece.stop, piece.start, piece.start) for piece in pieces.pieces])
    return loop(*args, alone, **kwargs)


@pytest.mark.medium
def test_a_wrong_way_is_found_and_not_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts.attention import attention
    from gpu_parts.training_speed import training_speed

    def loop(query: Any, key: Any, value: Any, pieces: Pieces, **kwargs: Any) -> torch.Tensor:
        return wrong(query, key, value, pieces=pieces, **kwargs)

    monkeypatch.setattr(packed, "loop", loop)
    run = make_run(tmp_path)
    assert not run.perform([part("attention", attention), part("training", training_speed)])
    parts = run.results["parts"]
    assert parts["attention"]["status"] == "failed" and not run.tried
    assert all(row["error"] > 0.1 for row in parts["attention"]["rows"] if row.get("right") is False)
    assert [row["layout"] for row in parts["training"]["rows"]] == ["padded"]
    assert sum("left out" in remark for remark in parts["training"]["remarks"]) == 2


def test_an_error_in_one_small_piece_of_a_long_row_is_seen() -> None:
    from gpu_parts.attention import Case, computed, largest_error, row

    case = Case(row(64, (7, 5), (300, 400), 2000), 2, 1, 8)
    inputs = case.inputs(torch.device("cpu"), torch.float32)
    expected = computed(case, "mask", inputs, torch.float32)
    found = [tensor.clone() for tensor in expected]
    small = case.pieces[2]
    found[0][small.start : small.stop] = 0
    assert (found[0] - expected[0]).norm() / expected[0].norm() < 0.1
    assert largest_error(case, found, expected) > 0.5
    assert largest_error(case, expected, expected) == 0


@pytest.mark.medium
def test_a_loss_that_is_no_number_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts import training_speed

    def loop(query: Any, key: Any, value: Any, pieces: Pieces, **kwargs: Any) -> torch.Tensor:
        return query * torch.nan

    monkeypatch.setattr(packed, "loop", loop)
    run = make_run(tmp_path)
    assert not run.perform([part("training", training_speed.training_speed)])
    assert any("losses differ" in remark for remark in run.results["parts"]["training"]["remarks"])


def of_product(total: Any, left: Any, right: Any, **kwargs: Any) -> int:
    """Operations of a product that is added in place, from shapes."""
    return 2 * left[0] * left[1] * right[1]


def test_operations_are_those_that_torch_counts() -> None:
    import training
    from gpu_parts import flops

    size = training.SIZES["tiny"]
    work = training.draw_work(size, 2, 8, 1)
    side = training.build_sides(work, torch.device("cpu"), torch.float32, ("ours",))["ours"]
    model: Any = side.model
    model.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    # A row at a time, so that none is padded.
    batches = [
        batch
        for example, sample in zip(work.examples, work.samples, strict=True)
        for batch in training.padded_batches(training.Work(size, 2, [sample], [example], 1), 0)
    ]
    counted = expected = 0.0
    for batch in batches:
        # In place, as the loss sums the gradient of the output layer, torch does not count it by itself.
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: of_product}) as counter:
            model(**batch, use_cache=False).loss.backward()
        counted += counter.get_total_flops()
        expected += flops.of_batch(size, batch)[0]
        # Eager attention computes all products of queries and keys, of which a causal mask leaves half.
        length = batch["input_ids"].shape[1]
        unseen = length * length - length * (length + 1) / 2
        expected += 3 * size.text["num_hidden_layers"] * 4 * size.text["hidden_size"] * unseen
    assert expected == pytest.approx(counted, rel=0.03)
