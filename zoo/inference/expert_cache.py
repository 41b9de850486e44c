"""Which experts a small memory would hold: evictions that know what comes (Belady), recency and chance, counted on a
trace of uses (Read-ME, arXiv 2410.19123)."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from typing import Literal

Policy = Literal["belady", "lru", "random"]


def hits(trace: Sequence[Hashable], capacity: int, policy: Policy, seed: int = 0) -> int:
    """How many uses of the trace find what they need among `capacity` held experts. What is used is always fetched.

    belady evicts what is used again last (it must know the trace, as a pre-gate does for all queued work), lru what was
    used longest ago, random any, drawn from the seed. Raises ValueError where capacity is below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity: got {capacity}, expected 1 or more experts")
    uses: dict[Hashable, deque[int]] = defaultdict(deque)
    for place, key in enumerate(trace):
        uses[key].append(place)
    held: dict[Hashable, int] = {}  # key -> its last use
    draw, found = random.Random(seed), 0
    for place, key in enumerate(trace):
        uses[key].popleft()
        if key in held:
            found += 1
        elif len(held) >= capacity:
            if policy == "belady":
                out = max(held, key=lambda k: uses[k][0] if uses[k] else len(trace))
            elif policy == "lru":
                out = min(held, key=lambda k: held[k])
            else:
                out = draw.choice(list(held))
            del held[out]
        held[key] = place
    return found
