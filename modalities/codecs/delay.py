"""The delay pattern: codebook c runs d_c frames behind, so that all codebooks of a row are predicted at once.

Source: UniMoE-Audio (arXiv 2510.13344), section on tokens, and its released code; the pattern itself is MusicGen's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def apply_delay(
    codes: Tensor, delays: Sequence[int], bos: int, eos: int, pad: int, lengths: Tensor | None = None
) -> Tensor:
    """Codes [T, C] or [B, T, C] to delayed rows [T + max(d) + 1, C] or [B, T + max(d) + 1, C].

    Channel c is `bos` for rows 0 .. d_c, then its T codes, then one `eos` where it still fits, then `pad`. With
    `lengths` [B], row b holds lengths[b] real frames; what follows its own T_b + max(d) + 1 rows is `pad`.

        d = [0, 2, 3], T = 2:  channel 0 [B a1 a2 E P P]   1 [B B B b1 b2 E]   2 [B B B B c1 c2]
    """
    _check(codes, delays)
    batched = codes if codes.ndim == 3 else codes[None]
    rows, frames, _ = batched.shape
    device = codes.device
    delay = torch.tensor(list(delays), device=device)
    length = torch.full((rows,), frames, device=device) if lengths is None else lengths.to(device)
    row = torch.arange(frames + max(delays) + 1, device=device)
    source = (row[:, None] - 1 - delay).expand(rows, -1, -1)  # frame shown by row r of channel c
    length_B11 = length[:, None, None]
    taken = batched.gather(1, source.clamp(0, max(frames - 1, 0))) if frames else torch.zeros_like(source)
    out = torch.where(source < length_B11, taken, torch.where(source == length_B11, eos, pad))
    out = torch.where(source < 0, bos, out)
    # Beyond a row's own end there is only padding; for equal lengths nothing lies there.
    out = torch.where(row[None, :, None] > length_B11 + max(delays), pad, out)
    return out if codes.ndim == 3 else out[0]


def revert_delay(rows: Tensor, delays: Sequence[int]) -> Tensor:
    """Delayed rows without the all-BOS first one, [T + max(d), C] or [B, T + max(d), C], back to [.., T, C].

    out[t, c] = rows[min(t + d_c, last), c]; so `revert_delay(apply_delay(x, ...)[1:], d) == x`.
    """
    _check(rows, delays)
    batched = rows if rows.ndim == 3 else rows[None]
    frames = max(batched.shape[1] - max(delays), 0)
    delay = torch.tensor(list(delays), device=rows.device)
    source = torch.arange(frames, device=rows.device)[:, None] + delay
    source = source.clamp(max=batched.shape[1] - 1).expand(batched.shape[0], -1, -1)
    out = batched.gather(1, source)
    return out if rows.ndim == 3 else out[0]


def _check(codes: Tensor, delays: Sequence[int]) -> None:
    if codes.ndim not in (2, 3) or codes.shape[-1] != len(delays):
        raise ValueError(
            f"codes: got shape {list(codes.shape)}, expected [.., frames, {len(delays)}] for {len(delays)} delays"
        )
    if not delays or min(delays) < 0:
        raise ValueError(f"delays: got {list(delays)}, expected one number of frames >= 0 per codebook")
