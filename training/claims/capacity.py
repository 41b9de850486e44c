"""A trained model read once more under capacity policies: what they cost in loss, and what the busiest device saves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from training.claims.base import TrainedClaim
from training.claims.counting import text_name
from training.claims.lab import Outcome, one_thread
from training.claims.measuring import measure
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.moe.layer import MoE, MoEOutput
from zoo.moe.policies.base import PolicySpec
from zoo.moe.stats import count_slots
from zoo.spec import Plain, parse


@dataclass(frozen=True)
class Reading:
    """Held-out text under one policy.

    loss     nats per byte
    dropped  share of the router's choices that the policy emptied
    busiest  slots of the busiest device, summed over layers and forward passes: what a layer waits for
    """

    loss: float
    dropped: float
    busiest: float


@contextmanager
def under(layers: Sequence[MoE], policies: tuple[PolicySpec, ...]) -> Iterator[None]:
    """The layers with other policies."""
    before = [layer.spec for layer in layers]
    try:
        for layer in layers:
            layer.spec = replace(layer.spec, policy=policies, allow_future=True)
        yield
    finally:
        for layer, spec in zip(layers, before, strict=True):
            layer.spec = spec


@contextmanager
def busiest(layers: Sequence[MoE], devices: int) -> Iterator[list[float]]:
    """Slots of the busiest device of every layer's forward passes inside, routed experts lying in equal blocks."""
    found: list[float] = []

    def note(layer: nn.Module, inputs: Any, out: MoEOutput) -> None:
        load = count_slots(out.routing.expert, out.stats.pool.experts)[: out.stats.pool.routed]
        found.append(float(load.view(devices, -1).sum(-1).max()))

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class CapacityClaim(TrainedClaim):
    """What checks of inference policies share: one training, then a reading per policy.

    devices  devices over which the experts are spread
    """

    devices: int = 4

    def trained(self, entry: Entry, seed: int, progress: bool) -> Outcome:
        """The entry's model, trained; a policy that acts in inference only plays no part in that."""
        return self.outcome(self.described(entry), seed, progress)

    def read(self, outcome: Outcome, *policies: Plain) -> Reading:
        """Held-out text under these policies, in passes of 16 windows."""
        name = text_name(outcome.model.spec)
        parsed = tuple(parse(PolicySpec, policy, "policy") for policy in policies)
        layers = outcome.model.moe_layers()
        raws = self.train.source().raws(name, "test")
        with one_thread(), under(layers, parsed), busiest(layers, self.devices) as waited:
            found = measure(outcome.model, name, raws, self.train.held_out)
        slots, kept = (sum(values) for values in zip(*((sum(x.load), x.kept) for x in found.layers), strict=True))
        return Reading(found.loss, 1 - kept / max(slots, 1), sum(waited))


@dataclass(frozen=True, kw_only=True)
class CapacityOrderSpec(CapacityClaim):
    """Policies from the gentlest to the harshest: at every factor the loss rises from each to the next.

    policies  names and descriptions, in that order; `factor` is set to each of the factors
    factors   capacity factors
    slack     nats per byte by which a later policy may still be better
    """

    policies: dict[str, dict[str, Any]]
    factors: tuple[float, ...] = (2.0, 1.5, 1.25, 1.0, 0.75)
    slack: float = 0.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        outcome, lines, least = self.trained(entry, seed, progress), [], float("inf")
        for factor in self.factors:
            losses = {
                name: self.read(outcome, {**policy, "factor": factor}).loss for name, policy in self.policies.items()
            }
            least = min(least, *(b - a for a, b in itertools.pairwise(losses.values())))
            lines.append(f"{factor:g}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        expected = f"from each policy to the next the loss rises, or falls by at most {self.slack:g}"
        return Finding(least, expected, least >= -self.slack, "nats per byte at factor " + "; ".join(lines))


@dataclass(frozen=True, kw_only=True)
class CapacityQualitySpec(CapacityClaim):
    """How much loss a policy costs at a factor, beside the model without it.

    policy   its description
    factors  further factors that are reported
    at_most  nats per byte that the policy may cost as it is described
    """

    policy: dict[str, Any]
    factors: tuple[float, ...] = (3.0, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5)
    at_most: float

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        outcome = self.trained(entry, seed, progress)
        plain, own = self.read(outcome), self.read(outcome, self.policy)
        readings = {factor: self.read(outcome, {**self.policy, "factor": factor}) for factor in self.factors}
        note = f"without {plain.loss:.4f}; " + "; ".join(
            f"{factor:g}: {r.loss - plain.loss:+.4f} at {r.dropped:.1%} dropped" for factor, r in readings.items()
        )
        cost = own.loss - plain.loss
        return Finding(cost, f"at most {self.at_most:g} nats per byte", cost <= self.at_most, note)


@dataclass(frozen=True, kw_only=True)
class CapacitySpeedSpec(CapacityClaim):
    """How much sooner the busiest device is done: its slots without the policy over those with it.

    policy    its description
    at_least  least ratio
    """

    policy: dict[str, Any]
    at_least: float

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        outcome = self.trained(entry, seed, progress)
        plain, own = self.read(outcome), self.read(outcome, self.policy)
        ratio = plain.busiest / max(own.busiest, 1.0)
        note = f"{self.devices} devices; {own.dropped:.1%} of the choices dropped, loss {own.loss - plain.loss:+.4f}"
        return Finding(ratio, f"at least {self.at_least:g} times as fast", ratio >= self.at_least, note)
