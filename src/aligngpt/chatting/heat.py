"""Draws a similarity map with block characters."""

import numpy as np

SHADES = " ░▒▓█"
MOST_ROWS = 24


def drawn(cosines: np.ndarray) -> str:
    """A map `(grid, grid)` as lines, darkest where image and text match best; a cell is two characters wide.

    Maps of more than 24 rows are averaged over blocks of neighbouring parts. Shades span the smallest to the largest
    value shown, which the last line names.
    """
    step = -(-len(cosines) // MOST_ROWS)
    starts = np.arange(0, len(cosines), step)
    sums = np.add.reduceat(np.add.reduceat(cosines, starts, axis=0), starts, axis=1)
    sizes = np.diff([*starts, len(cosines)])
    shown = sums / np.outer(sizes, sizes)
    least, most = float(shown.min()), float(shown.max())
    share = (shown - least) / (most - least) if most > least else np.zeros_like(shown)
    cells = np.minimum((share * len(SHADES)).astype(int), len(SHADES) - 1)
    edge = "─" * (2 * len(starts))
    rows = ["│" + "".join(SHADES[cell] * 2 for cell in row) + "│" for row in cells]
    legend = f"cosine from {least:+.3f} (blank) to {most:+.3f} (█)"
    return "\n".join([f"┌{edge}┐", *rows, f"└{edge}┘", legend])
