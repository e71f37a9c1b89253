"""Tests of samples of several files as one sequence, and of holding out a share of them."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.data.samples.index import PreparedSamples
from aligngpt.data.samples.mixtures import Chosen, Mixture, held_out
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import write_records
from aligngpt.data.samples.sequence import picture_of


def prepared(path: Path, records: list[dict[str, Any]]) -> PreparedSamples:
    write_records(path, records)
    return prepare_samples(path, rejects=Rejects(None), check_images=False)


def captions(names: list[Any]) -> list[dict[str, Any]]:
    return [{"id": str(n), "image": name, "caption": f"caption {n}"} for n, name in enumerate(names)]


def test_a_mixture_is_its_sources_one_after_the_other(tmp_path: Path) -> None:
    first, second = (prepared(tmp_path / name, captions([name] * size)) for name, size in (("a", 3), ("b", 2)))
    mixture = Mixture([first, second])
    expected = [*first, *second]
    assert list(mixture) == expected and mixture[-1] == second[1] and mixture[2:4] == expected[2:4]
    assert mixture.columns.sources.tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(IndexError):
        mixture[5]
    chosen = Chosen(mixture, np.array([4, 0]))
    assert list(pickle.loads(pickle.dumps(chosen))) == [expected[4], expected[0]]
    assert chosen.columns.sources.tolist() == [1, 0]
    assert list(chosen.others()) == expected[1:4]


def test_what_is_held_out_does_not_hang_on_the_order(tmp_path: Path) -> None:
    records = captions([f"{n // 3}.png" for n in range(3000)])
    records += [{"id": f"text {n}", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(1000)]
    samples = prepared(tmp_path / "data.jsonl", records)
    chosen = held_out(samples, 0.1)
    assert 0.07 < chosen[:3000].mean() < 0.13 and 0.07 < chosen[3000:].mean() < 0.13
    # All samples of an image are on the same side of the split.
    assert set(chosen[:3000].reshape(-1, 3).sum(axis=1).tolist()) == {0, 3}
    mixed = random.Random(0).sample(records, len(records))
    again = prepared(tmp_path / "mixed.jsonl", mixed)
    ids = [{sample.id for sample in Chosen(one, np.flatnonzero(held_out(one, 0.1)))} for one in (samples, again)]
    assert ids[0] == ids[1]
    # A larger share holds out a superset.
    assert not (chosen & ~held_out(samples, 0.2)).any()


def test_no_image_is_on_both_sides_where_samples_have_several(tmp_path: Path) -> None:
    draw = random.Random(0)
    several = [[f"{n}.png", f"{n + draw.randrange(1, 3)}.png"] for n in range(0, 600, 4)]
    samples = prepared(tmp_path / "data.jsonl", captions([f"{n}.png" for n in range(604)] + several))
    chosen = held_out(samples, 0.3)
    sides = [
        {name for sample in Chosen(samples, np.flatnonzero(side)) for name in sample.images}
        for side in (chosen, ~chosen)
    ]
    assert not sides[0] & sides[1]
    assert 0.2 < chosen.mean() < 0.4


@pytest.mark.parametrize("ways", [("im", "im/train"), (".", "im"), ("im/../im", "im/train")])
def test_no_file_is_on_both_sides_of_sources_with_different_roots(ways: tuple[str, str], tmp_path: Path) -> None:
    files = [tmp_path / "im" / "train" / f"{n}.png" for n in range(200)]
    roots = [tmp_path / way for way in ways]
    (tmp_path / "im" / "train").mkdir(parents=True)
    parts = []
    for number, root in enumerate(roots):
        names: list[Any] = [file.relative_to(root.resolve()).as_posix() for file in files]
        # A sample with two images keeps both on one side, whichever source it is of.
        names = [*names, *([names[n], names[n + 1]] for n in range(0, 40, 4) if number)]
        write_records(tmp_path / f"{number}.json", captions(names))
        parts.append(
            prepare_samples(tmp_path / f"{number}.json", image_root=root, rejects=Rejects(None), check_images=False)
        )
    mixture = Mixture(parts, roots)
    chosen = held_out(mixture, 0.3)
    assert 0.15 < chosen.mean() < 0.45
    sides: list[set[Path | None]] = [set(), set()]
    for place, sample in enumerate(mixture):
        root = roots[mixture.columns.sources[place]]
        shown = [picture_of(mixture, place, number, root).path for number in range(len(sample.images))]
        sides[int(chosen[place])].update(None if path is None else path.resolve() for path in shown)
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_what_is_held_out_moves_with_the_data(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there/it/is"):
        folder = tmp_path / place
        roots = [folder / "a", folder / "b"]
        for root in roots:
            root.mkdir(parents=True)
            write_records(root / "data.json", captions([f"{n}.png" for n in range(100)]))
        parts = [prepare_samples(root / "data.json", rejects=Rejects(None), check_images=False) for root in roots]
        found.append(held_out(Mixture(parts, roots), 0.3))
    assert found[0].any() and (found[0] == found[1]).all()
    # The same names in two folders are two images.
    assert (found[0][:100] != found[0][100:]).any()


def test_two_ways_to_write_a_name_are_one_image(tmp_path: Path) -> None:
    names = ["0.png", "./0.png", ".//0.png", "a/0.png", "a//./0.png", "a/../0.png"]
    for samples in (
        prepared(tmp_path / "data.jsonl", captions(names)),
        list(prepared(tmp_path / "b.jsonl", captions(names))),
    ):
        keys = columns_of(samples).keys.tolist()
        assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]
        # A folder may be a link, so `..` is followed by nobody here.
        assert keys[5] not in keys[:5]
