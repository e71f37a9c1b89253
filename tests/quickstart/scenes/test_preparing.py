import errno
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.data.records.pairs import Pair, open_pairs
from aligngpt.errors import AlignGPTError
from aligngpt.quickstart.scenes import preparing
from aligngpt.quickstart.scenes.files import ScenesError, ScenesFiles, write_noise
from aligngpt.quickstart.scenes.material import UNSEEN_SUBGROUPS, Material
from aligngpt.quickstart.scenes.noise import ORACLE_QUALITY
from aligngpt.quickstart.scenes.preparing import Sizes, prepare_scenes


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_split_has_its_own_pictures(scenes: ScenesFiles, sizes: Sizes) -> None:
    assert scenes.test_splits == ("test", "test_hand", "test_combination", "test_subgroup")
    expected = dict.fromkeys(("test_hand", "test_combination", "test_subgroup"), sizes.shift)
    expected |= {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
    for split, count in expected.items():
        records = read(scenes.questions(split))
        assert {record["image"] for record in records} == {f"images/{split}/{n}.png" for n in range(count)}
        assert len(records) == 2 * count
    for path, split, count in (
        (scenes.captions, "captions", sizes.captions),
        (scenes.encoder_captions, "encoder", sizes.encoder),
    ):
        assert [record["image"] for record in read(path)] == [f"images/{split}/{n}.png" for n in range(count)]
    with Image.open(scenes.folder / "images" / "test" / "0.png") as picture:
        assert (picture.size, picture.mode) == ((84, 84), "RGB")


def test_records_carry_what_the_study_needs(scenes: ScenesFiles) -> None:
    for record in read(scenes.test_questions):
        assert record["scope"] in ("whole", "part")
        assert record["question_type"]
        assert record["conversations"][0]["value"].startswith("<image>\n")
    for record in read(scenes.captions):
        exact = record["conversations"][1]["value"] == record["caption_clean"]
        assert exact == (record["noise"] == "clean")
        assert record["oracle_quality"] == ORACLE_QUALITY[record["noise"]]
    assert {record["hand"] for record in read(scenes.questions("test_hand"))} == {"unseen"}
    assert {record["hand"] for record in read(scenes.test_questions)} == {"seen"}


def test_names_of_unseen_subgroups_are_in_no_training_file(scenes: ScenesFiles, material: Material) -> None:
    unseen = {thing.name for thing in material.things if thing.subgroup in UNSEEN_SUBGROUPS}
    for path in (scenes.both_captions, scenes.encoder_captions, scenes.train_questions, scenes.test_questions):
        text = path.read_text(encoding="utf-8")
        assert not any(name in text for name in unseen), path
    assert any(name in scenes.questions("test_subgroup").read_text(encoding="utf-8") for name in unseen)


def test_scoring_reads_the_captions(scenes: ScenesFiles) -> None:
    pairs = open_pairs(scenes.captions, image_root=scenes.folder)
    read_pairs = [pair for shard in pairs.shards() for pair in pairs.read(shard)]
    assert [pair.caption for pair in read_pairs if isinstance(pair, Pair)] == [
        record["conversations"][1]["value"] for record in read(scenes.captions)
    ]


def test_the_share_of_noise_is_exact_and_nested_and_leaves_the_pictures_alone(
    material: Material, sizes: Sizes, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    files = prepare_scenes(folder, material=material, sizes=sizes, noise=0.3)
    before = contents(folder)
    noisy: list[dict[str, str]] = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        records = read(write_noise(folder, share).captions)
        bad = {record["id"]: record["conversations"][1]["value"] for record in records if record["noise"] != "clean"}
        assert len(bad) == round(share * len(records))
        assert not noisy or noisy[-1].items() <= bad.items()
        noisy.append(bad)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert files.captions.name == "captions_noise-30.json"


def test_a_seed_gives_the_same_bytes_and_another_seed_others(
    scenes: ScenesFiles, material: Material, sizes: Sizes, tmp_path: Path
) -> None:
    again = prepare_scenes(tmp_path / "again", material=material, sizes=sizes, noise=0.6)
    assert contents(again.folder) == contents(scenes.folder)
    other = prepare_scenes(tmp_path / "other", material=material, sizes=Sizes(*[3] * 6), seed=1)
    assert read(other.test_captions) != read(scenes.test_captions)[:3]


def test_a_prepared_folder_is_used_again_also_for_another_noise(
    material: Material, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_scenes(tmp_path / "data", material=material, sizes=sizes, noise=0.3)
    monkeypatch.setattr(preparing, "paint", lambda *_: pytest.fail("drawn again"))
    files = prepare_scenes(tmp_path / "data", material=material, sizes=sizes, noise=0.5)
    counts = Counter(record["noise"] == "clean" for record in read(files.captions))
    assert counts == {True: 20, False: 20}


def test_without_an_unseen_hand_the_split_is_absent_and_the_folder_says_so(
    make_material: Callable[[bool], Material], sizes: Sizes, tmp_path: Path
) -> None:
    files = prepare_scenes(tmp_path / "data", material=make_material(False), sizes=sizes)
    assert "test_hand" not in files.test_splits
    assert "There is **no split `test_hand`**" in (files.folder / "ABOUT.md").read_text(encoding="utf-8")


def test_a_full_disk_leaves_nothing_behind(
    material: Material, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(ScenesError, match=r"No space left on device\); they need about \d+ MB"):
        prepare_scenes(tmp_path / "data", material=material, sizes=sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"noise": 30}, "noise is 30, expected a share from 0 to 1"),
        ({"encoder_noise": float("nan")}, "encoder_noise is nan"),
        ({"questions_per_picture": 3}, "questions_per_picture is 3, expected 1 or 2"),
        ({"sizes": Sizes(shift=0)}, "sizes.shift is 0"),
        ({"source": "apt"}, "source is 'apt', expected one of npm, pypi"),
    ],
)
def test_invalid_arguments_are_named(arguments: dict[str, Any], told: str, material: Material, tmp_path: Path) -> None:
    with pytest.raises(AlignGPTError, match=told.replace(".", r"\.")):
        prepare_scenes(tmp_path / "data", material=material, **arguments)
    assert not (tmp_path / "data").exists()


def test_material_without_unseen_subgroups_is_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(ScenesError, match="0 things of those kept for test_subgroup"):
        prepare_scenes(tmp_path / "data", material=replace(material, things=material.seen))


def test_noise_for_a_folder_without_scenes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScenesError, match=r"captions_both\.jsonl cannot be read .*; prepare the scenes in .* first"):
        write_noise(tmp_path, 0.3)
