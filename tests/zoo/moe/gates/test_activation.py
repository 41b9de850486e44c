"""Gates with a temperature: the ridge of the linear one and what breaks it (arXiv 2401.13875), schedules, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.gates import activation as gates
from zoo.moe.gates.activation import ActivationGate, ActivationGateSpec
from zoo.moe.gates.base import GateSpec
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import SpecError, parse

DIM, EXPERTS, TOKENS = 3, 4, 50
RIDGE = {"none": 1.0, "relu": 1.0, "cube": 1 / 3}  # degrees of homogeneity, inverted
OTHERS = ("tanh", "sigmoid", "gelu")


@pytest.fixture(autouse=True)
def cube(monkeypatch: pytest.MonkeyPatch) -> None:
    """z^3 as an activation, for the study alone."""
    monkeypatch.setitem(gates.ACTIVATIONS, "cube", lambda z: z**3)


def build(activation: str, seed: int = 0, **keys: Any) -> ActivationGate:
    spec = ActivationGateSpec(activation=activation, temperature=TemperatureSpec(learn=True, floor=0.0, **keys))  # type: ignore[arg-type]
    made = spec.build(DIM, Pool(routed=EXPERTS)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.normal_(generator=generator)
        made.bias.normal_(generator=generator)
    return made


def set_temperature(made: ActivationGate, value: float) -> None:
    rho = made.temperature.rho
    assert rho is not None
    with torch.no_grad():
        rho.copy_(torch.tensor(value, dtype=torch.float64).expm1().log())


def temperature(made: ActivationGate) -> Tensor:
    return torch.as_tensor(made.temperature(None))


def inputs() -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def weights(made: ActivationGate, step: int | None = None) -> Tensor:
    """[T, E]"""
    when = None if step is None else torch.tensor(step)
    ctx = RoutingContext(shape=(1, TOKENS), mask=torch.ones(TOKENS, dtype=torch.bool), step=when)
    raw: Tensor = made(inputs(), ctx).raw
    return raw.softmax(-1)


def moved(activation: str) -> float:
    """How far the gate moves along (c^degree W, c b, c tau), c = 3."""
    made = build(activation)
    set_temperature(made, 0.8)
    before = weights(made)
    with torch.no_grad():
        made.weight.mul_(3 ** RIDGE.get(activation, 1.0))
        made.bias.mul_(3)
    set_temperature(made, 2.4)
    return (weights(made) - before).abs().max().item()


@pytest.mark.parametrize("activation", RIDGE)
def test_homogeneous_scores_leave_the_temperature_redundant(activation: str) -> None:
    assert moved(activation) < 1e-14


@pytest.mark.parametrize("activation", OTHERS)
def test_other_activations_fix_the_temperature(activation: str) -> None:
    assert moved(activation) > 1e-3


def euler(activation: str, loss: Callable[[Tensor], Tensor]) -> float:
    """tau dL/dtau + W . dL/dW / degree + b . dL/db."""
    made = build(activation)
    set_temperature(made, 0.8)
    rho = made.temperature.rho
    assert rho is not None
    found = torch.autograd.grad(loss(weights(made)), [made.weight, made.bias, rho])
    slope, bias = (made.weight * found[0]).sum() * RIDGE.get(activation, 1.0), (made.bias * found[1]).sum()
    by_tau = found[2] / torch.sigmoid(rho)  # rho gives tau = softplus(rho)
    return float((slope + bias + temperature(made) * by_tau).detach())


LOSSES: list[Callable[[Tensor], Tensor]] = [
    lambda gate: (gate**2).sum(),
    lambda gate: (gate * torch.linspace(-1, 2, EXPERTS, dtype=gate.dtype)).sum(-1).sin().sum(),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", [*RIDGE, *OTHERS])
def test_eulers_identity(activation: str, loss: Callable[[Tensor], Tensor]) -> None:
    value = abs(euler(activation, loss))
    assert value < 1e-12 if activation in RIDGE else value > 1e-3


def test_the_limits_of_the_temperature() -> None:
    made = build("tanh")
    set_temperature(made, 500.0)  # expm1 of more has no logarithm in float64
    torch.testing.assert_close(weights(made), torch.full((TOKENS, EXPERTS), 0.25).double(), rtol=0, atol=4e-3)
    set_temperature(made, 1e-6)
    best = (torch.tanh(inputs() @ made.weight.T) + made.bias).argmax(-1)
    one_hot = torch.nn.functional.one_hot(best, EXPERTS).double()
    torch.testing.assert_close(weights(made), one_hot, rtol=0, atol=1e-9)


@pytest.mark.parametrize("curve", ["linear", "exponential"])
def test_schedules_start_end_and_stay(curve: str) -> None:
    tau = TemperatureSpec(start=2.0, end=0.5, steps=100, curve=curve).build()  # type: ignore[arg-type]
    found = [float(tau(torch.tensor(step))) for step in (0, 50, 100, 101, 10**6)]
    assert found == pytest.approx([2.0, 1.25 if curve == "linear" else 1.0, 0.5, 0.5, 0.5])
    assert tau(None) == 0.5


def test_a_scheduled_gate_follows_the_step() -> None:
    spec = ActivationGateSpec(temperature=TemperatureSpec(start=2.0, end=0.5, steps=10))
    made = spec.build(DIM, Pool(routed=EXPERTS)).double()
    with torch.no_grad():
        made.weight.normal_()
    log = [weights(made, step).log() for step in (0, 10)]
    spread = [row.amax(-1) - row.amin(-1) for row in log]
    torch.testing.assert_close(spread[1], 4 * spread[0])


def test_learned_temperatures_begin_at_the_start_and_stay_above_the_floor() -> None:
    tau = TemperatureSpec(start=0.3, learn=True).build()
    assert float(torch.as_tensor(tau(None)).detach()) == pytest.approx(0.3)
    assert tau.rho is not None
    with torch.no_grad():
        tau.rho.fill_(-100.0)
    assert float(torch.as_tensor(tau(None)).detach()) == pytest.approx(0.05)


def test_a_learned_temperature_has_a_pace_of_its_own() -> None:
    moved = []
    for rate in (1.0, 0.1):
        tau = TemperatureSpec(start=1.0, learn=True, rate=rate).build().double()
        assert float(torch.as_tensor(tau(None)).detach()) == pytest.approx(1.0)
        adam = torch.optim.AdamW(tau.parameters(), lr=1e-3, weight_decay=0.0)
        torch.as_tensor(tau(None)).backward()
        adam.step()
        moved.append(1.0 - float(torch.as_tensor(tau(None)).detach()))
    assert moved[0] > 0 and moved[1] == pytest.approx(moved[0] / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"start": 0.0}, r"temperature\.start: got 0\.0"),
        ({"start": 1.0, "end": 2.0}, r"temperature\.end: got 2\.0, expected more than 0 and at most start"),
        ({"end": 0.0}, r"temperature\.end: got 0\.0"),
        ({"steps": 0}, r"temperature\.steps: got 0"),
        ({"end": 0.5, "learn": True}, r"temperature\.learn: a scheduled temperature"),
        ({"learn": True, "rate": 0.0}, r"temperature\.rate: got 0\.0"),
        ({"rate": 2.0}, r"temperature\.rate: got 2\.0, but nothing is learned"),
        ({"learn": True, "floor": 1.0}, r"temperature\.floor: got 1\.0"),
    ],
)
def test_temperatures_that_cannot_be(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse(GateSpec, {"type": "activation", "temperature": keys})
