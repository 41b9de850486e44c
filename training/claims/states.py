"""Hidden states under a hidden z-loss, and gradients of balance beside the task's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modalities.text.evaluate import windows
from modalities.text.module import Text
from training.callbacks.router_figures import RouterFigures
from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.counting import text_name
from training.claims.lab import Outcome
from training.hidden_z import HiddenZ
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class HiddenStatesSpec(TrainedClaim):
    """A hidden z-loss keeps the greatest value of what the last block puts out small, at no cost in held-out loss: that
    value with the loss over that without.

    weight   of the loss
    at_most  greatest ratio
    slack    nats per byte that the loss may cost
    """

    weight: float
    at_most: float = 0.8
    slack: float = 0.01

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        plain, last = self.described(entry), len(lab.unified(self.described(entry)).build().backbone.blocks) - 1
        name, sizes, losses = f"backbone.blocks.{last}", [], []
        for weights in ({name: self.weight}, {}):
            with lab.bar(self.train.steps, progress) as tick:
                outcome = lab.run(plain, self.train, seed=seed, tick=tick, settings={"hidden_z": weights})
            sizes.append(self._greatest(outcome, name))
            losses.append(outcome.measured.loss)
        ratio, cost = sizes[0] / sizes[1], losses[0] - losses[1]
        expected = f"at most {self.at_most:g} times as great, at {self.slack:g} nats per byte more at most"
        note = f"greatest value {sizes[0]:.3g}, without {sizes[1]:.3g}; loss {losses[0]:.4f}, without {losses[1]:.4f}"
        return Finding(ratio, expected, ratio <= self.at_most and cost <= self.slack, note)

    @torch.no_grad()
    def _greatest(self, outcome: Outcome, module: str) -> float:
        """Of the module's values over held-out text."""
        model, name = outcome.model, text_name(outcome.model.spec)
        text: Any = model.modality(name)
        assert isinstance(text, Text)
        held = windows(text, self.train.source().raws(name, "test"), min(self.train.held_out, 16))
        with lab.one_thread(), HiddenZ(model, {module: 1.0}).watch() as seen:
            model.run(text.encode(text.batch([torch.tensor(window.ids) for window in held])), name)
        return float(seen[module].abs().max())


@dataclass(frozen=True, kw_only=True)
class GradientRatioSpec(TrainedClaim):
    """The balance losses' gradient by the batch's mean probabilities stays small beside that of the task: the ratio of
    the norms in the worst layer, the mean over the steps of the second half of training that are looked at.

    at_most  greatest ratio
    """

    at_most: float = 0.1

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        heard = _Heard()
        with lab.bar(self.train.steps, progress) as tick:
            lab.run(self.described(entry), self.train, seed=seed, tick=tick, callbacks=[heard])
        late = heard.found[len(heard.found) // 2 :]
        if not late or not late[0]:
            raise ValueError("gradient_ratio: expected MoE layers whose weights have a task gradient")
        each = [sum(step[i] for step in late) / len(late) for i in range(len(late[0]))]
        note = "by layer: " + ", ".join(f"{ratio:.3g}" for ratio in each)
        return Finding(max(each), f"at most {self.at_most:g}", max(each) <= self.at_most, note)


class _Heard(RouterFigures):
    """Keeps the ratios of every step that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[float]] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As its base, and keeps what that found."""
        heard = bool(self.task)
        super().on_train_batch_end(*args, **kwargs)
        if heard:
            self.found.append([value for key, value in self.scalars.items() if key.endswith("gradient_ratio")])
