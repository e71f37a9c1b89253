"""negCLIPLoss, specificity and near-duplicates against direct computations on small arrays."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from aligngpt.scoring.derived import measures, near_duplicates
from aligngpt.scoring.derived.measures import Batch, batch_numbers, negcliploss, specificity

PAIRS, DIM, TAU = 30, 8, 0.05


def features(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1)


IMAGES, CAPTIONS = features(1), features(2)


def batches_of(numbers: list[NDArray[np.int64]]) -> list[Batch]:
    return [Batch(one, IMAGES[one], CAPTIONS[one]) for one in numbers]


def test_in_one_batch_of_all_pairs_it_is_minus_tau_times_the_clip_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "ROWS_AT_ONCE", 7)
    found = negcliploss(IMAGES, CAPTIONS, np.arange(PAIRS), batches_of([np.arange(PAIRS)]), TAU)
    logits = IMAGES @ CAPTIONS.T / TAU
    target = torch.arange(PAIRS)
    losses = [F.cross_entropy(one, target, reduction="none") for one in (logits, logits.T)]
    np.testing.assert_allclose(found, -TAU * (losses[0] + losses[1]) / 2, atol=1e-6)


def test_random_batches_are_averaged_and_each_contains_the_pair() -> None:
    numbers = batch_numbers(PAIRS, 6, 4, seed=3)
    found = negcliploss(IMAGES, CAPTIONS, np.arange(PAIRS), batches_of(numbers), TAU)
    v, t = IMAGES.double().numpy(), CAPTIONS.double().numpy()
    for pair in range(PAIRS):
        losses = []
        for batch in numbers:
            members = set(batch.tolist())
            if pair not in members:
                members = members - {int(batch[pair % 6])} | {pair}
            others = sorted(members)
            assert len(others) == 6
            losses += [
                np.log(np.exp(v[pair] @ t[others].T / TAU).sum()),
                np.log(np.exp(v[others] @ t[pair] / TAU).sum()),
            ]
        expected = v[pair] @ t[pair] - TAU * np.mean(losses)
        assert found[pair] == pytest.approx(expected, abs=1e-6)


def test_batches_depend_on_the_seed_only_and_are_one_if_all_pairs_fit() -> None:
    first, again, other = (batch_numbers(1000, 20, 3, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], first[1])
    assert all(len(set(one.tolist())) == 20 and list(one) == sorted(one) for one in first)
    (whole,) = batch_numbers(20, 20, 3, 5)
    assert whole.tolist() == list(range(20))


def test_specificity_is_the_distance_to_the_mean_of_all_other_images() -> None:
    v, t = IMAGES.numpy(), CAPTIONS.numpy()
    found = specificity(v, t, v.sum(0, dtype=np.float64), PAIRS)
    similarities = t @ v.T
    for pair in range(PAIRS):
        others = np.delete(similarities[pair], pair)
        assert found[pair] == pytest.approx(similarities[pair, pair] - others.mean(), abs=1e-6)


@pytest.mark.parametrize("block", [3, 100])
def test_groups_are_the_connected_components(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    cosine = 0.6
    near = (cosine <= IMAGES @ IMAGES.T).numpy()
    expected = np.full(PAIRS, -1)
    for first in range(PAIRS):
        reached, new = {first}, [first]
        while new:
            new = [int(one) for at in new for one in np.flatnonzero(near[at]) if one not in reached]
            reached |= set(new)
        expected[sorted(reached)] = min(reached)
    advanced: list[int] = []
    found = near_duplicates.near_duplicates(IMAGES, cosine, advanced.append)
    assert found.tolist() == expected.tolist()
    assert 3 < len(set(expected.tolist())) < PAIRS - 3
    assert sum(advanced) == PAIRS


def test_a_long_chain_of_near_duplicates_is_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", 8)
    angles = torch.arange(50).double() * 0.1
    # In a mixed order, so that the earlier image of a group is often met late.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    chain = torch.stack([angles.cos(), angles.sin()], dim=1)[order]
    assert set(near_duplicates.near_duplicates(chain, 0.994).tolist()) == {0}
    assert near_duplicates.near_duplicates(chain, 0.996).tolist() == list(range(50))


def test_a_cosine_of_one_joins_equal_images_only() -> None:
    different = F.normalize(torch.randn(200, 768, generator=torch.Generator().manual_seed(4)), dim=1).half()
    numbers = np.arange(200).repeat(2)
    found = near_duplicates.near_duplicates(different[torch.from_numpy(numbers)], 1)
    assert found.tolist() == (2 * numbers).tolist()
