"""How many there are in each layer, by rule (MoLA, arXiv 2402.08562) or by list."""

from __future__ import annotations

from typing import Literal

Rule = Literal["inverted_triangle", "triangle", "hourglass", "rectangle"]
BANDS: dict[str, tuple[int, int, int, int]] = {
    "inverted_triangle": (2, 4, 6, 8),
    "triangle": (8, 6, 4, 2),
    "hourglass": (8, 2, 2, 8),
    "rectangle": (5, 5, 5, 5),
}
"""Numbers in four equal bands of the depth, the lowest first; each rule's mean is 5."""


def spread(counts: str | int | tuple[int, ...], depth: int) -> list[int]:
    """One number for each of `depth` layers: of a rule, of one number for all, or of a list of equal bands.

    Raises ValueError where a list does not divide the depth or holds a negative number.
    """
    if isinstance(counts, int):
        counts = (counts,)
    if isinstance(counts, str):  # layer l lies in the band its middle lies in
        return [BANDS[counts][(4 * (2 * layer + 1)) // (2 * depth)] for layer in range(depth)]
    if not counts or depth % len(counts):
        raise ValueError(f"got {len(counts)} numbers, expected one for each of the {depth} layers or of bands of them")
    if min(counts) < 0:
        raise ValueError(f"got {min(counts)}, expected 0 or more")
    return [counts[layer * len(counts) // depth] for layer in range(depth)]
