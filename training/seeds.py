"""All randomness of training is a function of where it happens: (seed, what for, step, micro-batch, rank).

Nothing keeps a generator's state, so a resumed run draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib

import torch


def derive(*parts: int | str) -> int:
    """A 40-bit seed for a place named by numbers and words."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=5).digest(), "little")


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded for that place."""
    return torch.Generator().manual_seed(derive(*parts))
