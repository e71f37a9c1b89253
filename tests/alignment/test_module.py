"""The alignment module compared with an independent implementation of the paper's formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from aligngpt.alignment.module import AlignmentModule, mean_text_embedding, resample_map, similarity_map

LEVELS, HIDDEN, GRID = 5, 16, 3


@pytest.fixture
def module() -> Any:
    return AlignmentModule(LEVELS, HIDDEN, gate_grid=GRID, gate_hidden_size=12)


@pytest.fixture
def image_tokens() -> Tensor:
    return torch.randn(4, GRID * GRID, HIDDEN)


@pytest.fixture
def text() -> Tensor:
    return torch.randn(4, HIDDEN)


def weights_by_hand(module: Any, image: Tensor, text: Tensor) -> Tensor:
    """softmax(W₂ gelu(W₁ s + b₁) + b₂) with s_j = <H_v[j], t>, for one sample."""
    s = torch.stack([(token * text).sum() for token in image])
    inner = module.gate[0].weight @ s + module.gate[0].bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    logits = module.gate[2].weight @ inner + module.gate[2].bias
    return logits.exp() / logits.exp().sum()


def test_sizes_are_the_ones_asked_for(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    out = module(image_tokens, text)
    assert module.levels.shape == (LEVELS, HIDDEN)
    assert out.embedding.shape == (4, HIDDEN)
    assert out.weights.shape == (4, LEVELS - 1)


def test_default_sizes_are_the_published_ones() -> None:
    module = AlignmentModule(8, 64)
    assert module.gate[0].weight.shape == (256, 576)
    assert module.gate[2].weight.shape == (7, 256)


def test_gate_weights_are_a_distribution(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    weights = module(image_tokens, 10 * text).weights
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4))


def test_adaptive_is_the_best_level_and_a_mix_of_the_others(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    out = module(image_tokens, text, mode="adaptive")
    for row in range(4):
        weights = weights_by_hand(module, image_tokens[row], text[row])
        expected = module.levels[LEVELS - 1] + sum(weights[i] * module.levels[i] for i in range(LEVELS - 1))
        torch.testing.assert_close(out.weights[row], weights)
        torch.testing.assert_close(out.embedding[row], expected)


def test_local_is_the_mix_alone(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    out = module(image_tokens, text, mode="local")
    for row in range(4):
        weights = weights_by_hand(module, image_tokens[row], text[row])
        expected = sum(weights[i] * module.levels[i] for i in range(LEVELS - 1))
        torch.testing.assert_close(out.embedding[row], expected)


def test_global_is_the_best_level(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    out = module(image_tokens, text, mode="global")
    assert out.weights is None
    assert all(torch.equal(row, module.levels[LEVELS - 1]) for row in out.embedding)
    assert out.embedding.shape == (4, HIDDEN)


def test_mean_is_the_mean_of_the_table(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    out = module(image_tokens, text, mode="mean")
    expected = torch.stack([module.levels[i] for i in range(LEVELS)]).sum(dim=0) / LEVELS
    assert out.weights is None
    torch.testing.assert_close(out.embedding, expected.expand(4, HIDDEN))


def test_average_is_the_best_level_and_an_equal_mix_of_the_others(
    module: Any, image_tokens: Tensor, text: Tensor
) -> None:
    out = module(image_tokens, text, mode="average")
    equal = torch.full((4, LEVELS - 1), 1 / (LEVELS - 1))
    assert out.weights is None
    torch.testing.assert_close(out.embedding, module(image_tokens, text, mode="adaptive", weights=equal).embedding)


@pytest.mark.parametrize("mode", ["adaptive", "global", "local", "average", "mean"])
def test_a_given_level_is_taken_in_every_mode(module: Any, image_tokens: Tensor, text: Tensor, mode: str) -> None:
    out = module(image_tokens, text, mode=mode, level=torch.tensor([1, 5, 3, 1]))
    assert torch.equal(out.embedding, module.levels[[0, 4, 2, 0]])
    assert out.weights is None


@pytest.mark.parametrize("level", [3, torch.tensor(3), torch.tensor([3])])
def test_one_level_is_that_of_all_samples(module: Any, image_tokens: Tensor, text: Tensor, level: Any) -> None:
    assert torch.equal(module(image_tokens, text, level=level).embedding, module.levels[[2, 2, 2, 2]])


@pytest.mark.parametrize(
    ("given", "why"),
    [({"mode": "global"}, "mode global"), ({"mode": "mean"}, "mode mean"), ({"level": torch.tensor([1])}, "a level")],
)
def test_weights_without_effect_are_an_error(
    module: Any, image_tokens: Tensor, text: Tensor, given: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=f"would have no effect, because .*{why}"):
        module(image_tokens, text, weights=torch.zeros(4, LEVELS - 1), **given)


@pytest.mark.parametrize("level", [0, -1, LEVELS + 1])
def test_a_level_outside_the_table_is_an_error(module: Any, level: int) -> None:
    with pytest.raises(IndexError):
        module.level_embedding(torch.tensor([level]))


@pytest.mark.parametrize("mode", ["adaptive", "local"])
def test_given_weights_replace_the_gate(module: Any, image_tokens: Tensor, text: Tensor, mode: str) -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0], [0.0] * 4])
    out = module(image_tokens, text, mode=mode, weights=weights)
    a = module.levels
    local = torch.stack([a[1], (a[0] + a[3]) / 2, 2 * a[0], torch.zeros(HIDDEN)])
    torch.testing.assert_close(out.embedding, local + a[4] if mode == "adaptive" else local)
    assert torch.equal(out.weights, weights)


@pytest.mark.parametrize("mode", ["none", "Adaptive", ""])
def test_an_unknown_mode_is_an_error(module: Any, image_tokens: Tensor, text: Tensor, mode: str) -> None:
    with pytest.raises(ValueError, match="adaptive, global, local, average or mean"):
        module(image_tokens, text, mode=mode)


@pytest.mark.parametrize("levels", [1, 0, -3])
def test_fewer_than_two_levels_are_an_error(levels: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 alignment levels are needed, got {levels}"):
        AlignmentModule(levels, HIDDEN)


def test_two_levels_have_one_weight_which_is_one(image_tokens: Tensor, text: Tensor) -> None:
    module = AlignmentModule(2, HIDDEN, gate_grid=GRID)
    out = module(image_tokens, text)
    assert torch.equal(out.weights, torch.ones(4, 1))
    torch.testing.assert_close(out.embedding, (module.levels[0] + module.levels[1]).expand(4, HIDDEN))


def test_the_table_starts_xavier_uniform() -> None:
    module = AlignmentModule(50, 250)
    bound = math.sqrt(6 / (50 + 250))
    assert module.levels.abs().max() <= bound
    assert module.levels.abs().max() > 0.99 * bound
    assert abs(module.levels.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    before = module.levels.clone()
    module.reset_level_table()
    assert not torch.equal(module.levels, before)


def test_a_map_of_the_gates_own_size_is_used_as_it_is() -> None:
    similarity = torch.randn(2, 576)
    assert resample_map(similarity, 24) is similarity


@pytest.mark.parametrize(("tokens", "grid"), [(16, 3), (4, 3), (729, 24), (7, 3), (12, 3), (1, 3)])
def test_maps_of_any_number_of_tokens_fit_the_gate(tokens: int, grid: int) -> None:
    constant = torch.full((2, tokens), 0.7)
    resampled = resample_map(constant, grid)
    assert resampled.shape == (2, grid * grid)
    torch.testing.assert_close(resampled, torch.full((2, grid * grid), 0.7))


def test_a_square_map_shrinks_as_a_picture() -> None:
    picture = torch.arange(16.0).reshape(4, 4)
    # Triangle filter of radius 2 input pixels, around the centres at 0.5 and 2.5: weights 3, 3, 1 and 1, 3, 3 of 7.
    rows = torch.tensor([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]]) / 7
    torch.testing.assert_close(resample_map(picture.reshape(1, 16), 2), (rows @ picture @ rows.T).reshape(1, 4))


def test_a_square_map_grows_as_a_picture() -> None:
    picture = torch.tensor([[0.0, 4.0], [8.0, 12.0]])
    rows = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    expected = (rows @ picture @ rows.T).reshape(1, 16)
    torch.testing.assert_close(resample_map(picture.reshape(1, 4), 4), expected)


def test_a_map_that_is_no_square_is_resampled_as_a_line() -> None:
    line = torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(resample_map(line, 2), torch.tensor([[0.0, 0.5, 1.5, 2.0]]))


def test_a_tower_of_another_grid_is_read_through_resampling(module: Any, text: Tensor) -> None:
    image_tokens = torch.randn(4, 25, HIDDEN)
    similarity = torch.einsum("npd,nd->np", image_tokens, text)
    expected = module.gate_weights(resample_map(similarity, GRID))
    assert torch.equal(module(image_tokens, text).weights, expected)


def test_similarity_is_the_inner_product_of_each_image_token_and_the_text() -> None:
    image_tokens, text = torch.randn(2, 5, HIDDEN), torch.randn(2, HIDDEN)
    by_hand = [[sum(image_tokens[n, p] * text[n]) for p in range(5)] for n in range(2)]
    torch.testing.assert_close(similarity_map(image_tokens, text), torch.tensor(by_hand))


def test_several_images_of_a_sample_average_their_maps(module: Any, text: Tensor) -> None:
    image_tokens = torch.randn(4, GRID * GRID, HIDDEN)
    samples = torch.tensor([0, 0, 0, 2])
    found = module.sample_similarity(image_tokens, text, samples)
    first = sum(image_tokens[i] @ text[0] for i in range(3)) / 3
    torch.testing.assert_close(found[0], first)
    torch.testing.assert_close(found[2], image_tokens[3] @ text[2])
    assert torch.equal(found[[1, 3]], torch.zeros(2, GRID * GRID))


def test_one_image_each_needs_no_assignment(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    implicit = module(image_tokens, text)
    explicit = module(image_tokens, text, torch.arange(4))
    assert torch.equal(implicit.weights, explicit.weights)
    assert torch.equal(implicit.embedding, explicit.embedding)


def test_adaptive_gradients_reach_table_gate_image_and_text(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    image_tokens.requires_grad_()
    text.requires_grad_()
    module(image_tokens, text).embedding.square().sum().backward()
    everything = [*module.parameters(), image_tokens, text]
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in everything)
    assert (module.levels.grad.abs().sum(dim=1) > 0).all()


def test_a_given_level_trains_its_own_row_only(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    module(image_tokens, text, level=torch.tensor([2, 2, 4, 2])).embedding.sum().backward()
    assert torch.equal(module.levels.grad.sum(dim=1), torch.tensor([0.0, 3, 0, 1, 0]) * HIDDEN)
    assert all(parameter.grad is None for parameter in module.gate.parameters())


def test_global_trains_the_best_level_only(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    module(image_tokens, text, mode="global").embedding.sum().backward()
    assert torch.equal(module.levels.grad.sum(dim=1), torch.tensor([0.0, 0, 0, 0, 4]) * HIDDEN)
    assert all(parameter.grad is None for parameter in module.gate.parameters())


def test_a_frozen_table_lets_gradients_through_to_the_gate(module: Any, image_tokens: Tensor, text: Tensor) -> None:
    module.levels.requires_grad_(False)
    module(image_tokens, text).embedding.square().sum().backward()
    assert module.levels.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.gate.parameters())


def test_text_mean_is_over_the_chosen_tokens() -> None:
    embeds = torch.randn(3, 4, HIDDEN)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]])
    expected = torch.stack([embeds[0, :2].mean(0), embeds[1, 1:].mean(0), embeds[2, 3]])
    torch.testing.assert_close(mean_text_embedding(embeds, mask), expected)
    assert torch.equal(mean_text_embedding(embeds, mask.bool()), mean_text_embedding(embeds, mask))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_text_mean_ignores_what_the_mask_leaves_out(junk: float) -> None:
    embeds = torch.randn(2, 4, HIDDEN)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]])
    expected = mean_text_embedding(embeds, mask)
    spoiled = torch.where(mask.bool().unsqueeze(-1), embeds, torch.tensor(junk)).requires_grad_()
    found = mean_text_embedding(spoiled, mask)
    assert torch.equal(found, expected)
    gradient = torch.autograd.grad(found.sum(), spoiled)[0]
    assert torch.equal(gradient[mask == 0], torch.zeros(3, HIDDEN))


def test_text_mean_of_no_tokens_is_zero() -> None:
    assert torch.equal(mean_text_embedding(torch.randn(1, 3, HIDDEN), torch.zeros(1, 3)), torch.zeros(1, HIDDEN))


def test_text_mean_of_a_long_text_is_exact_in_half_precision() -> None:
    embeds = torch.randn(1, 1001, HIDDEN).bfloat16()
    mask = torch.ones(1, 1001)
    expected = embeds.double().mean(dim=1)
    found = mean_text_embedding(embeds, mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


def test_half_precision_gives_half_precision_embeddings_and_single_precision_weights(
    module: Any, image_tokens: Tensor, text: Tensor
) -> None:
    module.bfloat16()
    out = module(image_tokens.bfloat16(), text.bfloat16())
    assert out.embedding.dtype == torch.bfloat16
    assert out.weights.dtype == torch.float32
