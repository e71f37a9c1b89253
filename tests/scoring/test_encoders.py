"""Scores against transformers' own models, and the models a scorer refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BertJapaneseTokenizer, CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from aligngpt.device import DeviceError
from aligngpt.scoring.encoders import PairScorer, ScorerError

TOLERANCE = 1e-5


@pytest.fixture(params=["clip", "siglip"])
def scorer(request: pytest.FixtureRequest, scorer_folder: Callable[[str], Path]) -> PairScorer:
    return PairScorer.load(scorer_folder(request.param), device="cpu", dtype="float32")


@pytest.fixture
def copied(scorer_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the CLIP folder that a test may change."""
    return Path(shutil.copytree(scorer_folder("clip"), tmp_path / "copy"))


def load(source: Path, dtype: str = "float32") -> PairScorer:
    return PairScorer.load(source, device="cpu", dtype=dtype)


def test_clip_scores_are_those_of_transformers(
    scorer_folder: Callable[[str], Path], clip_scorer: PairScorer, pictures: list[Image.Image], captions: list[str]
) -> None:
    processor = CLIPProcessor(clip_scorer.image_processor, clip_scorer.tokenizer)
    inputs = processor(images=pictures, text=captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(scorer_folder("clip"))(**inputs)
    expected = (out.image_embeds * out.text_embeds).sum(dim=-1).numpy()
    assert np.ptp(expected) > 0.1, "the pairs must differ, or the test says nothing"
    np.testing.assert_allclose(clip_scorer.score(pictures, captions), expected, atol=TOLERANCE)


def test_siglip_scores_are_those_of_transformers(
    scorer_folder: Callable[[str], Path], pictures: list[Image.Image], captions: list[str]
) -> None:
    scorer = load(scorer_folder("siglip"))
    processor = SiglipProcessor(scorer.image_processor, scorer.tokenizer)
    inputs = processor(images=pictures, text=captions, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        model = SiglipModel.from_pretrained(scorer_folder("siglip"))
        out = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    expected = (out.image_embeds * out.text_embeds).sum(dim=-1).numpy()
    assert np.ptp(expected) > 0.1, "the pairs must differ, or the test says nothing"
    np.testing.assert_allclose(scorer.score(pictures, captions), expected, atol=TOLERANCE)


def test_siglip_texts_are_padded_to_the_full_length_without_a_mask(scorer_folder: Callable[[str], Path]) -> None:
    tokens = load(scorer_folder("siglip")).tokens(["a", "a red circle"])
    assert list(tokens) == ["input_ids"]
    assert tokens["input_ids"].shape == (2, 12)


def test_clip_texts_are_padded_to_the_longest_of_them(clip_scorer: PairScorer) -> None:
    tokens = clip_scorer.tokens(["a", "a red circle"])
    assert tokens["input_ids"].shape == (2, 5)
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_a_long_caption_is_cut_at_the_models_maximum(scorer: PairScorer) -> None:
    words = ("red green blue yellow " * 10).split()
    ids = scorer.tokens([" ".join(words)])["input_ids"]
    assert ids.shape == (1, 12)
    assert ids[0, -1] == scorer.tokenizer.eos_token_id
    cut, whole = scorer.text_features([" ".join(words[:10])]), scorer.text_features([" ".join(words)])
    np.testing.assert_array_equal(cut, whole)


def test_a_tokenizers_lower_maximum_holds(clip_scorer: PairScorer) -> None:
    clip_scorer.tokenizer.model_max_length = 7
    scorer = PairScorer(
        clip_scorer.model, clip_scorer.image_processor, clip_scorer.tokenizer, device="cpu", dtype="float32"
    )
    assert scorer.tokens(["red " * 30])["input_ids"].shape == (1, 7)


def test_features_have_length_one(scorer: PairScorer, pictures: list[Image.Image], captions: list[str]) -> None:
    for features in (scorer.image_features(pictures), scorer.text_features(captions)):
        assert features.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.ones(6), atol=TOLERANCE)


def test_a_score_does_not_depend_on_the_batch(
    scorer: PairScorer, pictures: list[Image.Image], captions: list[str]
) -> None:
    together = scorer.score(pictures, captions)
    alone = np.concatenate([scorer.score([p], [c]) for p, c in zip(pictures, captions, strict=True)])
    backwards = scorer.score(pictures[::-1], captions[::-1])[::-1]
    np.testing.assert_allclose(alone, together, atol=TOLERANCE)
    np.testing.assert_allclose(backwards, together, atol=TOLERANCE)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 40), (40, 3)])
def test_very_small_pictures_have_a_score(scorer: PairScorer, size: tuple[int, int]) -> None:
    assert np.isfinite(scorer.score([Image.new("RGB", size, "red")], ["a red square"])).all()


def test_as_many_texts_as_images_are_needed(clip_scorer: PairScorer, pictures: list[Image.Image]) -> None:
    with pytest.raises(ScorerError, match="6 images and 1 texts"):
        clip_scorer.score(pictures, ["a"])


def test_bfloat16_scores_are_near(scorer_folder: Callable[[str], Path], pictures: list, captions: list[str]) -> None:
    exact, rough = (load(scorer_folder("clip"), name) for name in ("float32", "bfloat16"))
    assert next(rough.model.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(rough.score(pictures, captions), exact.score(pictures, captions), atol=0.1)


def test_a_model_of_images_alone_is_refused(tower_folder: Callable[[str], Path], clip_scorer: PairScorer) -> None:
    for kind in ("dinov2", "clip"):
        with pytest.raises(ScorerError, match="does not give image and text features in a shared space"):
            load(tower_folder(kind))
    model: Any = transformers.AutoModel.from_pretrained(tower_folder("dinov2"))
    with pytest.raises(ScorerError, match="Dinov2Model does not give image and text features"):
        PairScorer(model, clip_scorer.image_processor, clip_scorer.tokenizer)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"the model .*nowhere cannot be loaded"):
        load(tmp_path / "nowhere")


def test_an_empty_or_damaged_folder_is_named(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScorerError, match=r"the model .*empty cannot be loaded"):
        load(tmp_path / "empty")
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ScorerError, match=r"the model .*copy cannot be loaded"):
        load(copied)


@pytest.mark.parametrize("kind", ["clip_full", "siglip_full"])
def test_a_folder_without_a_tokenizer_is_named(tower_folder: Callable[[str], Path], kind: str) -> None:
    """CLIP's tokenizer class would load with an empty vocabulary and give every caption the same score."""
    with pytest.raises(ScorerError, match=rf"{kind}.* (has no tokenizer|cannot be loaded)") as caught:
        load(tower_folder(kind))
    assert "tokenizer" in str(caught.value)


def test_a_folder_without_an_image_processor_is_named(copied: Path) -> None:
    for path in copied.glob("*processor*"):
        path.unlink()
    with pytest.raises(ScorerError, match=r"the image processor of .*copy cannot be loaded"):
        load(copied)


def test_an_unknown_device_or_precision_is_an_error(scorer_folder: Callable[[str], Path]) -> None:
    with pytest.raises(DeviceError):
        PairScorer.load(scorer_folder("clip"), device="abacus")
    with pytest.raises(DeviceError, match="float8"):
        load(scorer_folder("clip"), "float8")


def test_the_fingerprint_is_the_same_after_a_reload_and_after_use(
    scorer_folder: Callable[[str], Path], copied: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    used = load(scorer_folder("clip"))
    used.score(pictures, captions)
    assert used.fingerprint == load(scorer_folder("clip")).fingerprint == load(copied).fingerprint


def change_weights(folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-3
    model.save_pretrained(folder)


def change_json(name: str, *keys: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        assert inner[keys[-1]] != value
        inner[keys[-1]] = value
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"red"', '"x"').replace('"green"', '"red"').replace('"x"', '"green"'), "utf-8")


def change_tokenizer(part: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert content[part] != value
        (folder / "tokenizer.json").write_text(json.dumps(content | {part: value}), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_json("preprocessor_config.json", "image_mean", value=[0.5, 0.5, 0.5]),
        change_json("config.json", "text_config", "hidden_act", value="relu"),
        change_json("config.json", "vision_config", "num_attention_heads", value=4),
        swap_words,
        change_tokenizer("normalizer", {"type": "Lowercase"}),
        change_tokenizer("pre_tokenizer", {"type": "WhitespaceSplit"}),
        change_tokenizer("post_processor", None),
        change_json("tokenizer_config.json", "pad_token", value="<unk>"),
    ],
    ids=[
        *("weights", "image_processor", "activation", "heads", "vocabulary", "normalizer", "pre_tokenizer"),
        *("post_processor", "padding"),
    ],
)
def test_the_fingerprint_changes_with_what_decides_a_score(copied: Path, change: Callable[[Path], None]) -> None:
    before = load(copied).fingerprint
    change(copied)
    assert load(copied).fingerprint != before


def test_the_fingerprint_covers_a_tokenizer_in_python(
    clip_scorer: PairScorer, tmp_path: Path, captions: list[str], pictures: list[Image.Image]
) -> None:
    """A BERT tokenizer without a Rust backend: its files are compared, wherever they were loaded from."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))

    def fingerprint(**settings: Any) -> str:
        tokenizer = BertJapaneseTokenizer(
            str(tmp_path / "vocab.txt"),
            word_tokenizer_type="basic",
            subword_tokenizer_type="wordpiece",
            model_max_length=12,
            **settings,
        )
        scorer = PairScorer(clip_scorer.model, clip_scorer.image_processor, tokenizer, device="cpu", dtype="float32")
        before = scorer.fingerprint
        scorer.tokens(["a red circle"])
        del scorer.fingerprint
        assert scorer.fingerprint == before
        return before

    assert fingerprint(do_lower_case=True) == fingerprint(do_lower_case=True) != fingerprint(do_lower_case=False)


def test_the_fingerprint_changes_with_the_precision(scorer_folder: Callable[[str], Path]) -> None:
    assert load(scorer_folder("clip"), "bfloat16").fingerprint != load(scorer_folder("clip")).fingerprint
