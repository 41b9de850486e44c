"""A stand-in for the trunk: one causal recurrent layer that keeps its state between calls and skips masked tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from modalities.base import Step, Tokens
from modalities.music.modality import Music

DIM = 16


class TinyTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(DIM + 2, DIM)

    def new_step(self) -> Step:
        """A fresh step with a state of its own; `step.calls` lists the lengths it was given."""
        state: list[Tensor] = []

        def step(tokens: Tokens) -> Tokens:
            rows, length = tokens.shape
            assert tokens.position is None or tokens.position.shape == (rows, length, 1)
            place = torch.arange(length).expand(rows, -1) if tokens.position is None else tokens.position[..., 0]
            angle = place.float() / 10
            inputs = torch.cat([tokens.embedding, torch.stack([angle.sin(), angle.cos()], dim=-1)], dim=-1)
            now = state[0] if state else inputs.new_zeros(rows, DIM)
            out = []
            for i in range(length):
                after = self.cell(inputs[:, i], now)
                now = after if tokens.mask is None else torch.where(tokens.mask[:, i : i + 1], after, now)
                out.append(now)
            state[:] = [now]
            return tokens.replace(embedding=torch.stack(out, dim=1))

        return step


@pytest.fixture
def trunk() -> TinyTrunk:
    torch.manual_seed(0)
    return TinyTrunk()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def train() -> Callable[..., list[float]]:
    """Trains a modality with its trunk on examples; returns the mean loss of each step."""

    def run(modality: Music, trunk: TinyTrunk, examples: list[dict[str, Tensor]], steps: int) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        weights = [p for p in [*modality.parameters(), *trunk.parameters()] if p.requires_grad]
        optimiser, losses = torch.optim.Adam(weights, lr=1e-2), []
        for _ in range(steps):
            batch = modality.prepare(modality.collate(examples, generator), generator)
            loss = modality.loss(trunk.new_step()(modality.encode(batch)), batch)
            mean = loss.total / loss.count
            optimiser.zero_grad()
            mean.backward()
            optimiser.step()
            losses.append(float(mean.detach()))
        return losses

    return run
