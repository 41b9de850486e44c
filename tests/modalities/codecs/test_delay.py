"""The delay pattern: the hand case of the sheet, the round trip, and rows of unequal length."""

from __future__ import annotations

import pytest
import torch

from modalities.codecs.delay import apply_delay, revert_delay

B, E, P = 1026, 1024, 1025


def test_hand_case() -> None:
    codes = torch.tensor([[1, 11, 21], [2, 12, 22]])
    out = apply_delay(codes, [0, 2, 3], B, E, P)
    assert out.T.tolist() == [[B, 1, 2, E, P, P], [B, B, B, 11, 12, E], [B, B, B, B, 21, 22]]


@pytest.mark.parametrize("delays", [[0, 1, 2, 3], [0, 0], [0, 8, 9, 10], [0]])
@pytest.mark.parametrize("frames", [0, 1, 2, 17])
def test_round_trip(delays: list[int], frames: int) -> None:
    codes = torch.randint(0, 64, (3, frames, len(delays)), generator=torch.Generator().manual_seed(0))
    rows = apply_delay(codes, delays, B, E, P)
    assert rows.shape == (3, frames + max(delays) + 1, len(delays))
    assert torch.equal(revert_delay(rows[:, 1:], delays), codes)
    assert torch.equal(revert_delay(rows[0, 1:], delays), codes[0])


def test_lengths_equal_single_rows() -> None:
    codes = torch.randint(0, 64, (3, 6, 3), generator=torch.Generator().manual_seed(1))
    lengths = [6, 1, 4]
    rows = apply_delay(codes, [0, 2, 3], B, E, P, torch.tensor(lengths))
    for row, code, length in zip(rows, codes, lengths, strict=True):
        own = apply_delay(code[:length], [0, 2, 3], B, E, P)
        assert torch.equal(row[: len(own)], own)
        assert bool((row[len(own) :] == P).all())


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected .* 2 delays"):
        apply_delay(torch.zeros(4, 3, dtype=torch.int64), [0, 1], B, E, P)
    with pytest.raises(ValueError, match="delays"):
        revert_delay(torch.zeros(4, 2, dtype=torch.int64), [0, -1])
