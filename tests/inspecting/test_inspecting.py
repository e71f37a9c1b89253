"""An inspection's numbers are those of the engine, and nothing is left out silently."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aligngpt.data.images.opening import open_image
from aligngpt.errors import AlignGPTError
from aligngpt.inference.engine import Engine, Request
from aligngpt.inference.similarity_map import similarity_map
from aligngpt.inspecting import inspecting
from aligngpt.inspecting.records import InspectError


def kind_of(index: int) -> str:
    return "colour" if index % 3 else "count"


def test_every_record_has_the_weights_and_likelihoods_of_the_engine(
    inspect: Callable, write_records: Callable, model_folder: Path, tmp_path: Path
) -> None:
    numbers, _, _ = inspect(write_records(3))
    with Engine.load(model_folder, device="cpu", dtype="float32") as engine:
        for index, row in enumerate(numbers["records"]):
            request = Request.ask("how many ?", open_image(tmp_path / f"{index}.png"))
            assert row["weights"] == pytest.approx(engine.alignment_weights([request])[0], abs=1e-5)
            rated = engine.likelihood(request, ["two red"], levels=[None, *range(1, 9)])
            expected = [one[0].log_probability for one in rated]
            assert [row["own"], *row["forced"]] == pytest.approx(expected, abs=1e-3)
            assert row["tokens"] == len(rated[0][0].token_log_probabilities)
            shown = next(one for one in numbers["maps"] if one["record"] == index)
            np.testing.assert_allclose(shown["cosines"], similarity_map(engine, request), atol=1e-5)
        alignment = engine.model.model.alignment
        assert alignment is not None
        table = alignment.levels.detach()
        assert numbers["table"]["norms"] == pytest.approx(table.norm(dim=1).tolist(), rel=1e-5)
        cosines = torch.nn.functional.cosine_similarity(table[0], table, dim=-1)
        assert numbers["table"]["cosines"][0] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert len({row["forced"][0] for row in numbers["records"]}) == 3
    assert len(set(numbers["records"][0]["forced"])) == 8


@pytest.mark.parametrize(
    ("fields", "field", "kinds"),
    [
        ({"question_type": kind_of, "category": "x"}, "question_type", {"colour": 4, "count": 2}),
        ({"category": kind_of, "source": "x"}, "category", {"colour": 4, "count": 2}),
        ({"source": lambda index: None if index else "web"}, "source", {"(without one)": 5, "web": 1}),
        # A list of labels is not the name of one kind.
        ({"category": ["a", "b"]}, None, {"all": 6}),
        ({}, None, {"all": 6}),
    ],
)
def test_kinds_are_from_the_first_field_that_names_them(
    inspect: Callable, write_records: Callable, fields: dict, field: str | None, kinds: dict[str, int]
) -> None:
    numbers, page, _ = inspect(write_records(**fields))
    assert numbers["kind_field"] == field
    assert {row["kind"]: row["records"] for row in numbers["gate"]} == kinds
    assert (f"field <code>{field}</code>" if field else "all are one group") in page


def test_the_field_of_the_kinds_can_be_named(inspect: Callable, write_records: Callable) -> None:
    data = write_records(question_type="x", task=kind_of, labels=[1])
    numbers, _, _ = inspect(data, kind_field="task")
    assert {row["kind"]: row["records"] for row in numbers["gate"]} == {"colour": 4, "count": 2}
    for name in ("labels", "tsak"):
        with pytest.raises(InspectError, match=f"the field {name} does not name a kind"):
            inspect(data, kind_field=name, force=True)


def test_kinds_of_parquet_files_are_their_question_types(
    inspect: Callable, write_records: Callable, tmp_path: Path
) -> None:
    write_records(4)
    rows = [
        {"image": {"bytes": (tmp_path / f"{index}.png").read_bytes(), "path": None}, "question": "how many ?"}
        | {"answer": "two", "question_type": kind_of(index), "category": "x"}
        for index in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    numbers, page, _ = inspect(tmp_path / "data.parquet")
    assert {row["kind"]: row["records"] for row in numbers["gate"]} == {"colour": 2, "count": 2}
    assert numbers["dose"]["pictures"] == 4 and page.count("<img ") == 8
    with pytest.raises(InspectError, match="kinds are read from the field question_type only"):
        inspect(tmp_path / "data.parquet", kind_field="category", force=True)


def test_rare_kinds_share_a_row_if_there_are_too_many(inspect: Callable, write_records: Callable) -> None:
    numbers, _, _ = inspect(write_records(27, question_type=lambda index: f"k{max(index, 1)}"), examples=0)
    assert len(numbers["gate"]) == 24
    assert numbers["gate"][0]["records"] == 3 and numbers["gate"][0]["kind"] == "(other kinds)"


def test_what_is_left_out_is_counted_by_reason(inspect: Callable, write_records: Callable, tmp_path: Path) -> None:
    changes = {0: "gone.png", 1: None, 2: "cut.png"}
    data = write_records(image=lambda index: changes.get(index, f"{index}.png"))
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    # The header is whole, so that only decoding finds out.
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    with data.open("a", encoding="utf-8") as file:
        long = {"id": "long", "image": "5.png", "question": "how many ? " * 300, "answer": "two"}
        file.write(json.dumps(long) + "\n")
    numbers, page, written = inspect(data)
    assert [numbers[what] for what in ("total", "usable", "drawn", "used")] == [7, 5, 5, 3]
    assert "3 records of the 5 usable ones with an image were measured." in page and "at random" not in page
    assert numbers["left_out"] == {"missing": 1, "no_image": 1, "truncated": 1, "cannot_be_asked": 1}
    for reason in ("1 missing image", "1 without an image", "1 truncated image", "1 cannot be asked"):
        assert reason in page and reason in written.notes[0]


def test_nothing_usable_is_an_error_that_says_why(inspect: Callable, write_records: Callable) -> None:
    with pytest.raises(InspectError, match=r"no record of .* 6 missing image.*--image-root"):
        inspect(write_records(image="gone.png"))
    with pytest.raises(InspectError, match=r"no record of .* 6 without an image"):
        inspect(write_records(image=None))


def test_the_draw_depends_on_the_seed_only(inspect: Callable, write_records: Callable) -> None:
    data = write_records(20)
    (first, page, _), (second, *_), (other, *_) = (inspect(data, limit=4, seed=seed, force=True) for seed in (1, 1, 2))
    assert "4 records of the 20 usable ones with an image were measured, from a draw at random" in page
    assert first == second
    drawn = [[row["record"] for row in numbers["records"]] for numbers in (first, other)]
    assert drawn[0] != drawn[1] and all(len(one) == 4 and one == sorted(one) for one in drawn)
    assert [first[what] for what in ("total", "usable", "drawn", "used")] == [20, 20, 4, 4]


def test_maps_are_of_different_kinds(inspect: Callable, write_records: Callable) -> None:
    numbers, page, _ = inspect(write_records(question_type=lambda index: "rare" if index == 5 else "usual"), examples=2)
    assert [one["record"] for one in numbers["maps"]] == [0, 5]
    assert page.count("<img ") == 4


def test_a_model_without_an_alignment_module_is_refused(
    inspect: Callable, write_records: Callable, save_model: Callable, tmp_path: Path
) -> None:
    with pytest.raises(InspectError, match=r"no alignment module \(alignment: none\)"):
        inspect(write_records(), save_model(alignment="none"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["global", "average", "mean"])
def test_a_model_without_a_gate_has_the_other_parts(
    inspect: Callable, write_records: Callable, save_model: Callable, mode: str
) -> None:
    numbers, page, written = inspect(write_records(2), save_model(alignment=mode))
    assert numbers["gate"] == [] and numbers["absent"] == written.notes
    assert f"without a gate (alignment: {mode})" in page and "What the gate chooses" not in page
    assert len(numbers["dose"]["levels"]) == 8
    if mode == "global":
        # Its own embedding is that of level N.
        assert numbers["dose"]["levels"][-1]["minus_own"][0] == pytest.approx(0, abs=1e-5)


def test_a_page_is_replaced_only_if_that_is_said(
    inspect: Callable, write_records: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_records(2)
    inspect(data)
    (tmp_path / "out" / "page.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        with pytest.raises(InspectError, match=r"page.json exists already; .* --force"):
            inspect(data)
    assert inspect(data, force=True)[0]["used"] == 2


def test_the_data_is_never_overwritten(write_records: Callable, model_folder: Path, tmp_path: Path) -> None:
    data = write_records(2, name="page.json")
    before = data.read_bytes()
    for name, said in (("page.html", "is the data"), ("page.txt", "must end in .html")):
        with pytest.raises(AlignGPTError, match=said):
            inspecting.inspect_model(model_folder, data, tmp_path / name, force=True, device="cpu")
    assert data.read_bytes() == before


def test_an_interruption_leaves_no_file(
    inspect: Callable, write_records: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def interrupted(*_: object, **__: object) -> None:
        seen.append(1)
        raise KeyboardInterrupt

    for place in ("aligngpt.inspecting.measuring.Engine.likelihood", "aligngpt.files.os.replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, interrupted)
            inspect(write_records(2))
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert len(seen) == 2
