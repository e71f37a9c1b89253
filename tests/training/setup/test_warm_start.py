"""The projector's warm start: the targets of the image tokens, and that it changes nothing else."""

from collections.abc import Callable
from functools import partial
from math import log, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import mse_loss

from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.errors import AlignGPTError
from aligngpt.training.feed.feature_cache import features_kept_for
from aligngpt.training.recipe import WarmStartRecipe
from aligngpt.training.setup.warm_start import caption_targets, warm_start

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SETTINGS = WarmStartRecipe(steps=150, batch_size=16)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Sample]:
    """Forty single-colour images with captions that name the colour, alternating levels 1 and 2; one is missing."""
    made = []
    for place in range(40):
        name = list(COLOURS)[place % 4]
        Image.new("RGB", (32, 32), COLOURS[name]).save(tmp_path / f"{place}.png")
        turns = (Turn("user", ""), Turn("assistant", f"a picture of {name}"))
        made.append(Sample(str(place), turns, (f"{place}.png",), level=1 + place // 4 % 2, record=place))
    (tmp_path / "39.png").unlink()
    return made


@pytest.fixture
def dataset_of(tmp_path: Path, pairs: list[Sample]) -> Callable[..., ConversationDataset]:
    return lambda processor, samples=pairs: ConversationDataset(samples, processor, tmp_path)


def pixels_of(processor: Any, name: str) -> torch.Tensor:
    picture = Image.new("RGB", (32, 32), COLOURS[name])
    return processor.image_processor([picture], return_tensors="pt")["pixel_values"]


def test_targets_are_the_rare_words_of_a_caption() -> None:
    table = torch.randn(6, 5)
    captions = [[0, 1, 2], [0, 3], [0, 1, 1], [0, 4]]
    found = caption_targets(captions, table.__getitem__)
    one, two = log(4 / 2), log(4 / 1)
    expected = (one * table[1] + two * table[2]) / sqrt(one**2 + two**2)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[2], 2 * one * table[1] / sqrt(2 * one**2))
    assert torch.equal(caption_targets([[0], [0, 1]], table.__getitem__)[0], torch.zeros(5))


@pytest.mark.parametrize("language", ["llama", "gemma"])
def test_image_tokens_move_to_their_captions_words(assembled: Callable, dataset_of: Callable, language: str) -> None:
    """Gemma multiplies the rows of its table by √d: its words are where the table's rows are not."""
    model, processor = assembled(language)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = warm_start(model, dataset_of(processor), SETTINGS, seed=0)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("model.multi_modal_projector.")}
    assert result.after < 0.5 * result.before
    ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(COLOURS)))
    words = dict(zip(COLOURS, model.get_input_embeddings()(ids), strict=True))
    for name in COLOURS:
        tokens = model.model.get_image_features(pixels_of(processor, name)).pooler_output[0]
        apart = {word: mse_loss(tokens, embedding.expand_as(tokens)) for word, embedding in words.items()}
        assert min(apart, key=apart.__getitem__) == name
        # The final projector gives the reported loss, so folding in the standardisation loses nothing.
        assert apart[name] < 10 * result.after + 1e-3


def test_the_same_seed_gives_the_same_start(assembled: Callable, dataset_of: Callable) -> None:
    weights = []
    for seed in (0, 0, 1):
        model, processor = assembled("llama")
        torch.rand(seed + 1)  # earlier random draws have no influence
        warm_start(model, dataset_of(processor), SETTINGS.model_copy(update={"steps": 5}), seed=seed)
        weights.append(model.model.multi_modal_projector.linear_2.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_the_upper_levels_are_looked_at(
    assembled: Callable, dataset_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aligngpt.training.setup.warm_start as module

    model, processor = assembled("llama")
    seen: list[int] = []
    monkeypatch.setattr(
        module,
        "caption_targets",
        lambda captions, embed: seen.append(len(captions)) or embed(torch.arange(len(captions))),
    )
    dataset = dataset_of(processor)
    for from_level, expected in ((1, 39), (2, 19)):
        settings = SETTINGS.model_copy(update={"steps": 1, "from_level": from_level})
        warm_start(model, dataset, settings, seed=0)
        assert seen.pop() == expected
    warm_start(model, dataset, SETTINGS.model_copy(update={"steps": 1, "max_pairs": 7}), seed=0)
    assert seen.pop() in (6, 7)


def test_too_few_pairs_are_an_error(assembled: Callable, dataset_of: Callable) -> None:
    model, processor = assembled("llama")
    with pytest.raises(AlignGPTError, match=r"found 0 pairs of level 5 or above .* lower warm_start\.from_level"):
        warm_start(model, dataset_of(processor), SETTINGS.model_copy(update={"from_level": 5}), seed=0)


def test_cached_features_give_the_same_start_without_the_tower(
    assembled: Callable, dataset_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligngpt.training.setup.warm_start.IMAGES_AT_ONCE", 1)
    results, weights = [], []
    for cached in ("", "filling", "filled"):
        model, processor = assembled("llama")
        dataset, features = dataset_of(processor), None
        if cached:
            cache = features_kept_for(dataset, model, model.device, in_bfloat16=False)
            dataset.known_features = cache
            features = partial(cache.features_of, model, in_bfloat16=False)
        if cached == "filled":
            monkeypatch.setattr(model.model, "tower_features", None)
        settings = SETTINGS.model_copy(update={"steps": 5})
        results.append(warm_start(model, dataset, settings, seed=0, cached=features)[:2])
        weights.append(model.model.multi_modal_projector.linear_2.weight.detach())
    assert results[0] == results[1] == results[2]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
