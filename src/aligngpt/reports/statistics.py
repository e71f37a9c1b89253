"""Confidence intervals of measured shares."""

import math


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute the confidence interval of a share from a number of trials.

    Wilson's score interval (E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927). Unlike the normal approximation, it stays inside 0…1 and is usable for few trials.

    Args:
        correct: number of successes, 0…`total`.
        total: number of trials; for 0 the interval is (0, 1), since nothing is known.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper end, both in 0…1, with `correct / total` between them.

    Raises:
        ValueError: `correct` is not in 0…`total`.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"expected 0 ≤ correct ≤ total, found correct={correct}, total={total}")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    spread = z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # Rounding must not push the measured share out of its interval.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
