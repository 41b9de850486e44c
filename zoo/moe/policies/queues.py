"""Queues of slots: who is served first where an expert (or a device of experts) serves only so many."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.moe.pool import Pool


def order(*keys: Tensor) -> Tensor:
    """[N] the slots from first to last by keys [N], the least important first; ties keep the order of the slots."""
    found = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        found = found[key[found].argsort(stable=True)]
    return found


def places(queue: Tensor, served: Tensor, queues: int) -> Tensor:
    """[N] each slot's place in its own queue, from 0: queue [N] ids below `queues`, served [N] all slots in order."""
    served = served[queue[served].argsort(stable=True)]
    sizes = torch.zeros(queues, dtype=torch.int64, device=queue.device).scatter_add(0, queue, torch.ones_like(queue))
    start = sizes.cumsum(0) - sizes
    place = torch.arange(len(queue), device=queue.device) - start[queue[served]]
    return torch.empty_like(place).scatter(0, served, place)


def devices_of(pool: Pool, devices: int) -> list[int]:
    """The queue of every expert where the routed ones of a device share one: equal blocks in the order of their ids;
    null experts, which stand on every device, have one each."""
    block = pool.routed // devices
    return [i // block for i in range(pool.routed)] + [devices + i for i in range(pool.null.count)]


def draws(shape: torch.Size, mask: Tensor, generator: torch.Generator) -> Tensor:
    """[T, K] numbers from U(0, 1); the n-th real token gets the same whatever padding stands between the tokens."""
    numbers = torch.rand(shape, generator=generator, device=generator.device).to(mask.device)
    return numbers[(mask.cumsum(0) - 1).clamp(min=0)]
