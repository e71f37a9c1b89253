"""Scenes as training data: pictures of 84 px composed of emoji, with exact and bad captions, and questions.

Pictures, questions and captions depend on the seed and the material only; the share of bad captions only decides which
of them are used.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aligngpt.progress import Meter, say
from aligngpt.quickstart.prepared_folder import Facts, Plain, prepare_folder
from aligngpt.quickstart.scenes.about import about_text
from aligngpt.quickstart.scenes.captions import choose_style, write_caption
from aligngpt.quickstart.scenes.files import (
    ScenesError,
    ScenesFiles,
    as_json,
    caption_record,
    check_share,
    write_noise,
)
from aligngpt.quickstart.scenes.iconify import npm_material
from aligngpt.quickstart.scenes.material import Hand, Material
from aligngpt.quickstart.scenes.noise import make_noise, noisy_places
from aligngpt.quickstart.scenes.openmoji import pypi_material
from aligngpt.quickstart.scenes.painting import paint
from aligngpt.quickstart.scenes.questions import Question, QuestionWriter, priors
from aligngpt.quickstart.scenes.scene import Pair, Scene, SceneRules, held_out_pairs

SEED = 2405
"""The published seed: scenes of different people with this seed and the same packages are the same."""

FORMAT = 2
"""Increment when the output below changes, so that folders made by an older version are rebuilt."""

KILOBYTES_PER_PICTURE = 6

Source = Literal["npm", "pypi"]
MATERIALS: dict[Source, Callable[[], Material]] = {"npm": npm_material, "pypi": pypi_material}


@dataclass(frozen=True)
class Sizes:
    """Number of pictures of each split.

    Attributes:
        captions: pictures with captions to score and to pre-train on.
        encoder: pictures with captions to train the dual encoder on.
        train: pictures with questions to train on.
        validation: pictures with questions to monitor training.
        test: pictures of the test split.
        shift: pictures of each of the shifted test splits.
    """

    captions: int = 20_000
    encoder: int = 10_000
    train: int = 4_000
    validation: int = 300
    test: int = 2_000
    shift: int = 1_000


def prepare_scenes(
    folder: Path,
    *,
    seed: int = SEED,
    noise: float = 0.3,
    encoder_noise: float = 0.3,
    sizes: Sizes | None = None,
    questions_per_picture: int = 2,
    source: Source = "npm",
    material: Material | None = None,
) -> ScenesFiles:
    """Draw scenes and write captions and questions about them, or reuse those of an earlier call.

    Args:
        folder: output folder; an earlier result there is replaced if the arguments differ, except for `noise`, of which
            several may be in one folder.
        seed: random seed; the same seed gives the same pictures and texts.
        noise: share of bad captions in `captions`, 0 to 1.
        encoder_noise: share of bad captions among those for the dual encoder, 0 to 1. It is independent of `noise`, so
            that runs at different shares of noise are scored by the same encoder.
        sizes: number of pictures of each split; None for the published ones.
        questions_per_picture: 1 or 2, of different kinds.
        source: where the emoji sets come from: "npm" (three hands, so with the split `test_hand`) or "pypi" (one hand).
        material: other emoji sets; then `source` is not used.

    Raises:
        ScenesError: an argument is invalid, or the folder cannot be written.
        NoiseError: a share is invalid.
        MaterialError: the material is missing or cannot be fetched.
        PreparedFolderError: `folder` contains something else.
    """
    sizes = sizes or Sizes()
    _check(sizes, questions_per_picture, source)
    check_share("noise", noise)
    check_share("encoder_noise", encoder_noise)
    material = material or MATERIALS[source]()
    made_from: dict[str, Plain] = {
        "packages": dict(material.packages),
        "hands": ", ".join(hand.name for hand in _hands(material)),
        "things": ", ".join(thing.name for thing in material.things),
        "seed": seed,
        "encoder_noise": encoder_noise,
        "pictures": dict(vars(sizes)),
        "questions_per_picture": questions_per_picture,
        "format": FORMAT,
    }
    build = _Build(material, seed, sizes, encoder_noise, questions_per_picture)
    try:
        prepare_folder(folder, made_from, build.write)
    except OSError as error:
        needed = (build.pictures * KILOBYTES_PER_PICTURE + 20_000) // 1000
        raise ScenesError(
            f"the scenes cannot be written into {folder} ({error.strerror or error}); they need about {needed} MB: "
            "make room or give another folder"
        ) from error
    return write_noise(folder, noise)


def _check(sizes: Sizes, questions_per_picture: int, source: str) -> None:
    for name, count in vars(sizes).items():
        if not isinstance(count, int) or count < 1:
            raise ScenesError(f"sizes.{name} is {count!r}, expected a number of pictures, at least 1")
    if questions_per_picture not in (1, 2):
        raise ScenesError(f"questions_per_picture is {questions_per_picture!r}, expected 1 or 2")
    if source not in MATERIALS:
        raise ScenesError(f"source is {source!r}, expected one of {', '.join(MATERIALS)}")


def _hands(material: Material) -> tuple[Hand, ...]:
    return (*material.hands, *([material.unseen_hand] if material.unseen_hand else []))


class _Build:
    """Writes all files of one folder."""

    def __init__(
        self, material: Material, seed: int, sizes: Sizes, encoder_noise: float, questions_per_picture: int
    ) -> None:
        self._material, self._seed = material, seed
        self._encoder_noise, self._questions_per_picture = encoder_noise, questions_per_picture
        subgroups = [thing.subgroup for thing in material.seen]
        if len(set(subgroups)) < 3 or not material.unseen:
            raise ScenesError(
                f"the material has things of {len(set(subgroups))} subgroups for training and {len(material.unseen)} "
                "things of those kept for test_subgroup; scenes need at least 3 and 1"
            )
        self._held_out = held_out_pairs(subgroups, seed)
        self._captions = {"captions": sizes.captions, "encoder": sizes.encoder}
        self._questions = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
        if material.unseen_hand is not None:
            self._questions["test_hand"] = sizes.shift
        self._questions |= {"test_combination": sizes.shift, "test_subgroup": sizes.shift}

    @property
    def pictures(self) -> int:
        """Number of pictures in all splits."""
        return sum(self._captions.values()) + sum(self._questions.values())

    def write(self, folder: Path) -> Facts:
        """Write everything but the captions file of a share of noise into an empty folder."""
        files = ScenesFiles(folder, 0.0)
        asked: dict[str, list[Question]] = {}
        with Meter("Drawing scenes", self.pictures, unit="pictures") as meter:
            scenes = {split: self._draw(folder, split, count, meter) for split, count in self._captions.items()}
            self._write_both_captions(files.both_captions, "captions", scenes["captions"])
            self._write_encoder_captions(files.encoder_captions, scenes["encoder"])
            for split, count in self._questions.items():
                drawn = self._draw(folder, split, count, meter)
                asked[split] = self._write_questions(files.questions(split), split, drawn)
                if split == "test":
                    self._write_exact_captions(files.test_captions, split, drawn)
                    self._write_both_captions(files.both_test_captions, split, drawn)
        tables = {split: priors(questions) for split, questions in asked.items()}
        (folder / "ABOUT.md").write_text(about_text(self._material, self._seed, self._held_out, tables), "utf-8")
        facts: dict[str, Plain] = {
            f"questions_{split}": dict(Counter(question.kind for question in questions))
            for split, questions in asked.items()
        }
        # The folder is synced when this returns, which takes as long again on many disks.
        say(f"writing {self.pictures} pictures to disk")
        return facts | {"pairs_of_subgroups_kept_for_test_combination": "; ".join(_listed(self._held_out))}

    def _rules(self, split: str) -> SceneRules:
        material = self._material
        hands = material.hands
        if split == "test_hand":
            assert material.unseen_hand is not None
            hands = (material.unseen_hand,)
        names = tuple(hand.name for hand in hands)
        if split == "test_subgroup":
            return SceneRules(material.unseen, names, frozenset())
        return SceneRules(material.seen, names, self._held_out, only_held_out=split == "test_combination")

    def _draw(self, folder: Path, split: str, count: int, meter: Meter) -> list[Scene]:
        """Draw and save the pictures of a split."""
        (folder / "images" / split).mkdir(parents=True)
        hands = {hand.name: hand for hand in _hands(self._material)}
        rules = self._rules(split)
        scenes = []
        for number in range(count):
            rng = random.Random(f"{self._seed}/{split}/{number}")
            scene = rules.draw(rng)
            paint(scene, hands[scene.hand], rng).save(folder / _image(split, number))
            scenes.append(scene)
            meter.advance()
        return scenes

    def _describe(self, split: str, scenes: Sequence[Scene]) -> tuple[list[str], list[tuple[str, str]], list[int]]:
        """Of each scene: exact caption, kind and text of a bad caption, and place in the order of becoming bad."""
        seed = f"{self._seed}/{split}"
        styles = [choose_style(scene, random.Random(f"{seed}/style/{n}")) for n, scene in enumerate(scenes)]
        captions = [write_caption(scene, style) for scene, style in zip(scenes, styles, strict=True)]
        noises = make_noise(scenes, captions, styles, self._material.seen, seed)
        return captions, [(kind, text) for kind, text in noises], noisy_places(len(scenes), seed)

    def _write_both_captions(self, path: Path, split: str, scenes: Sequence[Scene]) -> None:
        captions, noises, places = self._describe(split, scenes)
        with path.open("w", encoding="utf-8") as file:
            for number, (scene, caption, (kind, text), place) in enumerate(
                zip(scenes, captions, noises, places, strict=True)
            ):
                row = {
                    "id": f"{split}-{number}",
                    "image": _image(split, number),
                    "caption_clean": caption,
                    "caption_noisy": text,
                    "noise": kind,
                    "place": place,
                    "hand": scene.hand,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _write_encoder_captions(self, path: Path, scenes: Sequence[Scene]) -> None:
        captions, noises, places = self._describe("encoder", scenes)
        count = round(self._encoder_noise * len(scenes))
        records = []
        for number, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
            kind, text = noises[number] if places[number] < count else ("clean", caption)
            image = _image("encoder", number)
            records.append(caption_record(f"encoder-{number}", image, text, kind, caption, scene.hand))
        path.write_text(as_json(records), encoding="utf-8")

    def _write_exact_captions(self, path: Path, split: str, scenes: Sequence[Scene]) -> None:
        captions, _, _ = self._describe(split, scenes)
        path.write_text(
            as_json(
                caption_record(f"{split}-{number}", _image(split, number), caption, "clean", caption, scene.hand)
                for number, (scene, caption) in enumerate(zip(scenes, captions, strict=True))
            ),
            encoding="utf-8",
        )

    def _write_questions(self, path: Path, split: str, scenes: Sequence[Scene]) -> list[Question]:
        writer = QuestionWriter(self._material.unseen if split == "test_subgroup" else self._material.seen)
        records, asked = [], []
        for number, scene in enumerate(scenes):
            rng = random.Random(f"{self._seed}/{split}/questions/{number}")
            for question in writer.write(scene, self._questions_per_picture, rng):
                records.append(
                    {
                        "id": f"{split}-{number}-{question.kind}",
                        "image": _image(split, number),
                        "conversations": [
                            {"from": "human", "value": f"<image>\n{question.text}"},
                            {"from": "gpt", "value": question.answer},
                        ],
                        "question_type": question.kind,
                        "scope": question.scope,
                        "hand": scene.hand,
                    }
                )
                asked.append(question)
        path.write_text(as_json(records), encoding="utf-8")
        return asked


def _image(split: str, number: int) -> str:
    return f"images/{split}/{number}.png"


def _listed(pairs: frozenset[Pair]) -> list[str]:
    return [" + ".join(pair) for pair in sorted(sorted(pair) for pair in pairs)]
