"""The head that writes one step: four voices in order, each knowing the voices above it in the same step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalities.music.score import PITCHES, REST, START, VOICES
from modalities.text.sampling import Sampling, draw

REACH = 25  # intervals beyond two octaves share one entry


class NoteHead(nn.Module):
    """An exact likelihood of a step, p(s) p(a | s) p(t | s, a) p(b | s, a, t), given the trunk's state.

    The logit of a pitch is the sum of three: of the pitch itself, of the interval from the same voice's last pitch
    (holding a note is interval 0, whatever the key), and of the interval to the voice above. All start at zero, so an
    untrained head is uniform over 128 pitches.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.context = nn.Linear(dim, dim)
        self.voice = nn.Parameter(torch.randn(VOICES, dim) * 0.02)
        self.chosen = nn.Parameter(torch.randn(VOICES - 1, PITCHES, dim) * 0.02)
        self.hidden = nn.Linear(dim, 2 * dim)
        self.pitch = nn.Parameter(torch.zeros(VOICES, 2 * dim, PITCHES))
        self.move = nn.Parameter(torch.zeros(VOICES, 2 * dim, 2 * REACH + 1))
        self.chord = nn.Parameter(torch.zeros(VOICES, 2 * dim, 2 * REACH + 1))

    @staticmethod
    def parameters_of(dim: int) -> int:
        """Number of parameters for a trunk of width `dim`."""
        states = dim * (dim + 1) + dim * VOICES + dim * (VOICES - 1) * PITCHES + 2 * dim * (dim + 1)
        return states + 2 * dim * VOICES * (PITCHES + 2 * (2 * REACH + 1))

    def logits(self, context: Tensor, last: Tensor, above: Tensor, voice: int) -> Tensor:
        """Logits [N, 128] of one voice: context [N, dim], its last pitch [N], pitches above in this step [N, voice]."""
        state = context + self.voice[voice]
        for v in range(voice):
            state = state + self.chosen[v][above[:, v]]
        state = F.gelu(self.hidden(state))
        out = (state @ self.pitch[voice]).float() + _by_interval((state @ self.move[voice]).float(), last)
        if voice:
            out = out + _by_interval((state @ self.chord[voice]).float(), above[:, voice - 1])
        return out

    def losses(self, context: Tensor, last: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihoods [N, 4] in nats: context [N, dim], last [N, 4], target [N, 4]."""
        terms = [
            F.cross_entropy(self.logits(context, last[:, v], target[:, :v], v), target[:, v], reduction="none")
            for v in range(VOICES)
        ]
        return torch.stack(terms, dim=1)

    def write(
        self, context: Tensor, last: Tensor, temperature: float, top_p: float | None, generator: torch.Generator | None
    ) -> Tensor:
        """Draws a step [N, 4] int64 on the CPU, voice by voice: context [N, dim], last [N, 4]."""
        step = torch.zeros(len(context), 0, dtype=torch.int64)
        for v in range(VOICES):
            logits = self.logits(context, last[:, v], step.to(context.device), v)
            pitch = draw(logits, Sampling(temperature=temperature, top_p=top_p), generator)
            step = torch.cat([step, pitch[:, None]], dim=1)
        return step


def _by_interval(table: Tensor, origin: Tensor) -> Tensor:
    """Reads [N, 2 REACH + 1] interval logits as pitch logits [N, 128] around `origin` [N] (REST, START: all far)."""
    interval = torch.arange(PITCHES, device=origin.device) - origin.unsqueeze(1)
    sounding = ((origin > REST) & (origin < START)).unsqueeze(1)
    interval = torch.where(sounding, interval.clamp(-REACH, REACH), REACH)
    # a rest (pitch 0) is no interval: it and a repeated rest are left to the pitch logits
    interval[:, REST] = REACH
    return table.gather(1, interval + REACH)
