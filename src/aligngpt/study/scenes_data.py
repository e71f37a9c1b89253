"""A study on generated scenes: pictures and captions whose truth is known, and backbones that have seen neither."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.alignment.levels import roc_auc
from aligngpt.files import atomic_write
from aligngpt.quickstart.backbones import prepare_text_tower, prepare_vision_tower
from aligngpt.quickstart.scenes.files import ScenesFiles
from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.noise import ORACLE_QUALITY
from aligngpt.quickstart.scenes.preparing import MATERIALS, Sizes, prepare_scenes
from aligngpt.scoring.dual_encoder.fit import train_dual_encoder
from aligngpt.study.caption_scores import score_captions
from aligngpt.study.data import Probe, StudyData
from aligngpt.study.language_model import prepare_scene_language_model
from aligngpt.study.pairs import ScoredPair
from aligngpt.study.plan import ScenesPlan

CLEAN = "clean"
VISION_LAYERS = 8
"""Layers, of 12, of the vision tower that the dual encoder keeps; the last ones were tuned for saliency."""

IMAGE_SIDE = 84
"""Side of a scene in pixels: 6 × 6 patches."""


def prepare_scenes_data(
    plan: ScenesPlan, model: dict[str, Any], folder: Path, *, material: Material | None = None
) -> StudyData:
    """Draw the scenes, train the dual encoder and the language model, and score all captions; each step once.

    Args:
        plan: numbers of pictures and the seed.
        model: settings of the model; backbones that it names are used as they are.
        folder: for everything that is made.
        material: other drawings than those that the plan's source gives.

    Raises:
        AlignGPTError: the material is missing, or a step cannot be done.
    """
    material = material or MATERIALS[plan.source]()
    sizes = Sizes(
        captions=plan.captions,
        encoder=plan.encoder,
        train=plan.train,
        validation=1,
        test=plan.test,
        shift=plan.shift,
    )
    files = prepare_scenes(
        folder / "scenes",
        seed=plan.seed,
        noise=0.0,
        encoder_noise=plan.encoder_noise,
        sizes=sizes,
        material=material,
    )
    backbones = folder / "backbones"
    tower = prepare_vision_tower(backbones, image_size=IMAGE_SIDE)
    encoder = folder / "dual-encoder"
    if not encoder.is_dir():
        train_dual_encoder(
            files.encoder_captions,
            tower,
            prepare_text_tower(backbones),
            encoder,
            vision_layers=VISION_LAYERS,
            image_pooling="mean",
            seed=plan.seed,
        )
    rows = _rows(files.both_captions)
    scores = _score_both(rows, encoder, folder / "scored", files.folder)
    probe = _probe(files, plan.probe, encoder, folder / "probe")
    named = {"vision_tower": str(tower)} | model
    if "language_model" not in named:
        made = prepare_scene_language_model(folder / "language-model", material, plan.language_model, seed=plan.seed)
        named["language_model"] = str(made)
    facts = {
        "things": len(material.things),
        "hands": [hand.name for hand in material.hands],
        "unseen_hand": material.unseen_hand.name if material.unseen_hand is not None else "",
        "packages": dict(material.packages),
        "auc": _auc_by_kind(rows, scores),
    }
    return StudyData(
        model=named,
        image_root=files.folder,
        pairs=ScenePairs(rows, scores),
        questions=files.train_questions,
        tests={split: files.questions(split) for split in files.test_splits},
        probe=probe,
        facts=facts,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _score_both(
    rows: Sequence[dict[str, Any]], encoder: Path, folder: Path, image_root: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the exact and of the bad caption of each picture, `(pictures,)` each.

    All are scored once; a share of bad captions then only chooses among them.
    """
    records = [
        {
            "id": f"{row['id']}-{which}",
            "image": row["image"],
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": row[f"caption_{which}"]}],
        }
        for row in rows
        for which in ("clean", "noisy")
    ]
    scores = score_captions(records, encoder, folder, image_root)
    return scores[::2], scores[1::2]


@dataclass(frozen=True)
class ScenePairs:
    """The pairs at any share of bad captions; those that are bad at a smaller share are bad at a larger one.

    Attributes:
        rows: the exact and the bad caption of each picture.
        scores: of the exact and of the bad captions, `(pictures,)` each.
    """

    rows: Sequence[dict[str, Any]]
    scores: tuple[np.ndarray, np.ndarray]

    def __call__(self, noise: float) -> list[ScoredPair]:
        pairs = []
        for row, clean, noisy in zip(self.rows, *self.scores, strict=True):
            bad = row["place"] < round(noise * len(self.rows))
            kind = row["noise"] if bad else CLEAN
            caption = row["caption_noisy"] if bad else row["caption_clean"]
            score = float(noisy if bad else clean)
            pairs.append(ScoredPair(row["id"], row["image"], caption, score, ORACLE_QUALITY[kind], kind))
        return pairs


def _auc_by_kind(rows: Sequence[dict[str, Any]], scores: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Area under the ROC curve of exact captions against the bad ones of each kind."""
    clean, noisy = scores
    kinds = np.array([row["noise"] for row in rows])
    found = {}
    for kind in sorted(set(kinds)):
        bad = noisy[kinds == kind]
        found[str(kind)] = roc_auc(np.concatenate([clean, bad]), np.arange(len(clean) + len(bad)) < len(clean))
    return found


def _probe(files: ScenesFiles, pictures: int, encoder: Path, folder: Path) -> Probe:
    """Exact and bad captions of test pictures, with the dual encoder's scores."""
    rows = _rows(files.both_test_captions)[:pictures]
    right, wrong = _score_both(rows, encoder, folder, files.folder)
    for which in ("clean", "noisy"):
        records = [
            {
                "id": row["id"],
                "image": row["image"],
                "conversations": [
                    {"from": "human", "value": "<image>"},
                    {"from": "gpt", "value": row[f"caption_{which}"]},
                ],
            }
            for row in rows
        ]
        with atomic_write(folder / f"{which}.json") as file:
            json.dump(records, file, ensure_ascii=False)
    kinds = tuple(row["noise"] for row in rows)
    return Probe(folder / "clean.json", folder / "noisy.json", kinds, tuple(right.tolist()), tuple(wrong.tolist()))
