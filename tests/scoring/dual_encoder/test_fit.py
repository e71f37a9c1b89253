"""Training the two maps: the loss against a manual computation, a problem with a known answer, and imperfect files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.alignment.levels import roc_auc
from aligngpt.data.images.opening import open_image
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.sources.base import SourceError
from aligngpt.scoring.dual_encoder import fit
from aligngpt.scoring.dual_encoder.fit import (
    EncodedPairs,
    contrastive_loss,
    encode_pairs,
    fit_projections,
    same_pairs,
    train_dual_encoder,
)
from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderError, assemble_dual_encoder
from aligngpt.scoring.encoders import PairScorer, ScorerError, load_image_processor, load_tokenizer

Pairs = Callable[..., Path]
VISION_HIDDEN, TEXT_HIDDEN = 24, 16


@pytest.fixture
def towers(tower_folder: Callable[[str], Path], text_tower: Path) -> tuple[Path, Path]:
    return tower_folder("dinov2"), text_tower


@pytest.fixture
def model(towers: tuple[Path, Path]) -> DualEncoder:
    return assemble_dual_encoder(*towers, projection_dim=12)


@pytest.fixture
def scorer(model: DualEncoder, towers: tuple[Path, Path]) -> PairScorer:
    image, text = towers
    return PairScorer(model, load_image_processor(image), load_tokenizer(text), device="cpu", dtype="float32")


def loss_by_hand(images: Tensor, texts: Tensor, log_scale: float, same: Tensor) -> float:
    """-1/2n Σ_i log p(text i | image i) + log p(image i | text i), over texts or images that are not `same` pairs."""
    n = len(images)
    cosine = [[float(F.cosine_similarity(a, b, dim=0)) for b in texts] for a in images]
    scaled = [[math.exp(math.exp(log_scale) * value) for value in row] for row in cosine]
    total = 0.0
    for i in range(n):
        others = [j for j in range(n) if j == i or not same[i, j]]
        total -= math.log(scaled[i][i] / sum(scaled[i][j] for j in others))
        others = [j for j in range(n) if j == i or not same[j, i]]
        total -= math.log(scaled[i][i] / sum(scaled[j][i] for j in others))
    return total / (2 * n)


@pytest.mark.parametrize("log_scale", [0.0, 1.3])
def test_the_loss_is_clips(log_scale: float) -> None:
    images, texts = torch.randn(6, 5), 3 * torch.randn(6, 5)
    nobody = torch.zeros(6, 6, dtype=torch.bool)
    for same in (nobody, torch.eye(6, dtype=torch.bool), torch.rand(6, 6) < 0.4):
        found = contrastive_loss(images, texts, torch.tensor(log_scale), same=same)
        assert found.item() == pytest.approx(loss_by_hand(images, texts, log_scale, same), rel=1e-5)


def test_pairs_that_are_the_same_are_not_told_apart() -> None:
    images, texts = torch.randn(4, 5), torch.randn(4, 5)
    everyone = torch.ones(4, 4, dtype=torch.bool)
    images.requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(2.0), same=everyone)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(images.grad, torch.zeros(4, 5))


def test_a_pair_is_the_same_as_one_with_its_image_or_its_caption() -> None:
    found = same_pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 6, 7]))
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert found.int().tolist() == expected


def toy(count: int = 600, wrong: float = 0.2) -> tuple[EncodedPairs, Tensor]:
    """Features of images and captions of eight subjects, from random maps with noise; and a mask of correct pairs."""
    generator = torch.Generator().manual_seed(7)
    subject = torch.randint(8, (count,), generator=generator)
    is_wrong = torch.rand(count, generator=generator) < wrong
    said = torch.where(is_wrong, (subject + torch.randint(1, 8, (count,), generator=generator)) % 8, subject)

    def seen(subjects: Tensor, width: int) -> Tensor:
        vectors = torch.randn(8, width, generator=generator)
        return vectors[subjects] + 0.3 * torch.randn(count, width, generator=generator)

    pairs = torch.arange(count)[:, None].expand(count, 2)
    return EncodedPairs(seen(subject, VISION_HIDDEN), seen(said, TEXT_HIDDEN), pairs), ~is_wrong


def cosines(model: DualEncoder, encoded: EncodedPairs) -> Tensor:
    with torch.no_grad():
        image, text = model.visual_projection(encoded.images), model.text_projection(encoded.captions)
    return F.cosine_similarity(image[encoded.pairs[:, 0]], text[encoded.pairs[:, 1]])


def test_wrong_captions_score_lower_although_some_were_learned_from(model: DualEncoder) -> None:
    encoded, is_right = toy()
    loss = fit_projections(model, *encoded, batch_size=64, learning_rate=1e-2)
    assert roc_auc(cosines(model, encoded), is_right) > 0.99
    everyone_alike = math.log(64)
    assert 0 < loss < 0.8 * everyone_alike


def test_maps_that_were_not_fitted_cannot_tell(model: DualEncoder) -> None:
    encoded, is_right = toy()
    assert abs(roc_auc(cosines(model, encoded), is_right) - 0.5) < 0.2


def test_the_same_seed_gives_the_same_maps_and_another_one_others(model: DualEncoder) -> None:
    encoded, _ = toy(100)

    def maps(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.rand(seed + 3)  # earlier draws must not matter
        fit_projections(model, *encoded, epochs=2, batch_size=16, seed=seed)
        parts = model.visual_projection.weight, model.text_projection.weight, model.logit_scale
        return tuple(part.detach().clone() for part in parts)  # type: ignore[return-value]

    first, other, again = maps(0), maps(1), maps(0)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_the_towers_stay_as_they_are(model: DualEncoder) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_projections(model, *toy(50)[0], epochs=1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"visual_projection.weight", "text_projection.weight", "logit_scale"}


@pytest.mark.parametrize(("count", "batch_size"), [(2, 256), (5, 2), (3, 1)])
def test_few_pairs_and_odd_batches_can_be_fitted(model: DualEncoder, count: int, batch_size: int) -> None:
    assert math.isfinite(fit_projections(model, *toy(count)[0], epochs=1, batch_size=batch_size))
    assert model.visual_projection.weight.isfinite().all()


def test_the_temperature_has_a_limit(towers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a circle, a lower temperature always separates the twelve pairs better, so only the limit stops it."""
    assert fit.HIGHEST_SCALE == 100
    monkeypatch.setattr(fit, "HIGHEST_SCALE", 20.0)
    model = assemble_dual_encoder(*towers, projection_dim=2)
    pairs = torch.arange(12)[:, None].expand(12, 2)
    fit_projections(
        model, torch.eye(12, VISION_HIDDEN), torch.eye(12, TEXT_HIDDEN), pairs, epochs=400, learning_rate=0.1
    )
    assert model.logit_scale.exp().item() == pytest.approx(20)


def test_images_of_one_caption_are_not_told_apart(model: DualEncoder) -> None:
    encoded, _ = toy(6)
    pairs = torch.tensor([[index, 0] for index in range(6)])
    assert fit_projections(model, encoded.images, encoded.captions[:1], pairs, epochs=1) == 0


def test_each_image_and_each_caption_is_encoded_once(write_pairs: Pairs, scorer: PairScorer, tmp_path: Path) -> None:
    same = {"image": "0.png", "caption": "a red circle"}
    source = write_pairs(5, at_0=same, at_1={"image": "0.png"}, at_2={"caption": "a red circle"}, at_4=same)
    found = encode_pairs(source, scorer, rejects=Rejects(None), batch_size=2)
    assert sorted(found.pairs.tolist()) == [[0, 0], [0, 0], [0, 1], [1, 0], [2, 2]]
    assert found.images.shape == (3, VISION_HIDDEN)
    assert found.captions.shape == (3, TEXT_HIDDEN)
    pixels = scorer.pixel_values([open_image(tmp_path / f"{index}.png") for index in (0, 2, 3)])
    with torch.no_grad():
        torch.testing.assert_close(found.images, scorer.model.pooled_image(pixels))
        torch.testing.assert_close(found.captions[:1], scorer.model.pooled_text(**scorer.tokens(["a red circle"])))


def test_pairs_that_cannot_be_used_are_rejected(write_pairs: Pairs, scorer: PairScorer, tmp_path: Path) -> None:
    source = write_pairs(8, at_1={"image": "gone.png"}, at_2={"image": ["0.png", "3.png"]}, at_6={"image": "5.png"})
    (tmp_path / "5.png").write_bytes(b"no picture")
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.5)
    found = encode_pairs(source, scorer, rejects=rejects)
    assert rejects.by_reason == {"missing": 1, "image_count": 1, "not_an_image": 2}
    assert len(found.pairs) == len(found.images) == 4
    with pytest.raises(TooManyRejects, match="4 of 8"):
        encode_pairs(source, scorer, rejects=Rejects(None, max_share=0.4))


def test_a_picture_the_tower_cannot_take_is_rejected(
    write_pairs: Pairs, scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = scorer.pixel_values

    def refuse(images: list) -> Tensor:
        if images[0].size == (7, 7):
            raise ValueError("no such shape")
        return prepare(images)

    source = write_pairs(4)
    open_image(tmp_path / "1.png").resize((7, 7)).save(tmp_path / "1.png")
    monkeypatch.setattr(scorer, "pixel_values", refuse)
    rejects = Rejects(None, max_share=0.5)
    assert len(encode_pairs(source, scorer, rejects=rejects).pairs) == 3
    assert rejects.by_reason == {"unreadable": 1}


@pytest.mark.parametrize("usable", [0, 1])
def test_fewer_than_two_pairs_are_an_error(write_pairs: Pairs, scorer: PairScorer, usable: int) -> None:
    source = write_pairs(3, **{f"at_{index}": {"image": "gone.png"} for index in range(usable, 3)})
    with pytest.raises(DualEncoderError, match=f"{usable} usable pairs, at least 2"):
        encode_pairs(source, scorer, rejects=Rejects(None, max_share=1))


@pytest.fixture
def train(towers: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    def call(source: Path, out: str = "dual", **options: Any) -> Path:
        settings = {"epochs": 3, "batch_size": 8, "projection_dim": 8, "vision_layers": 2, "device": "cpu"} | options
        return train_dual_encoder(source, *towers, tmp_path / out, **settings)

    return call


def test_the_trained_folder_scores_pairs(
    write_pairs: Pairs, train: Callable[..., Path], captions: list[str], pictures: list
) -> None:
    folder = train(write_pairs(20))
    scorer = PairScorer.load(folder, device="cpu", dtype="float32")
    assert isinstance(scorer.model, DualEncoder)
    assert scorer.model.config.vision_config.num_hidden_layers == 2
    assert np.ptp(scorer.score(pictures, captions)) > 0.01


def test_training_anew_gives_the_same_folder(write_pairs: Pairs, train: Callable[..., Path]) -> None:
    source = write_pairs(20)
    first, again, other = train(source, "first"), train(source, "again"), train(source, "other", seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_failed_training_leaves_an_older_folder_as_it_was(
    write_pairs: Pairs, train: Callable[..., Path], towers: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "dual").mkdir()
    (tmp_path / "dual" / "older").touch()
    source = write_pairs(8, at_1={"image": "gone.png"})
    with pytest.raises(TooManyRejects):
        train(source)
    with pytest.raises(SourceError, match="cannot be read"):
        train(tmp_path / "none.jsonl")
    with pytest.raises(ScorerError, match="tokenizer"):
        train_dual_encoder(source, towers[0], towers[0], tmp_path / "dual")
    assert [path.name for path in (tmp_path / "dual").iterdir()] == ["older"]
