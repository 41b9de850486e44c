"""The regression study of the temperature gate: its facts, and that it runs."""

from __future__ import annotations

import pytest
import torch

from benchmarks import temperature_gate as study
from zoo.moe.gates.activation import ActivationGateSpec
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext


@pytest.mark.parametrize(("activation", "ratio"), [("tanh", 3.0e-5), ("sigmoid", 1.6e-5), ("gelu", 0.9e-5)])
def test_an_activation_makes_every_parameter_known(activation: str, ratio: float) -> None:
    found = torch.linalg.eigvalsh(study.fisher(study.Arm(activation, 3.0)))
    assert float(found[0] / found[-1]) == pytest.approx(ratio, rel=0.06)


def test_the_linear_gate_leaves_one_direction_unknown() -> None:
    found = torch.linalg.eigvalsh(study.fisher(study.Arm("none", 3.0)))
    assert abs(float(found[0] / found[-1])) < 1e-15 and float(found[1] / found[-1]) > 1e-7


@pytest.mark.parametrize("activation", ["tanh", "none"])
def test_its_gate_is_the_routers(activation: str) -> None:
    arm = study.Arm(activation, 1.5)
    theta = arm.truth.clone()
    theta[2] = 0.7
    gate = ActivationGateSpec(activation=activation, temperature=TemperatureSpec(start=0.7)).build(1, Pool(routed=2))  # type: ignore[arg-type]
    gate = gate.double()
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[1.5], [0.0]]))
        gate.bias.copy_(torch.tensor([0.5, 0.0]))
        raw = gate(x[:, None], RoutingContext(shape=(1, 9), mask=torch.ones(9, dtype=torch.bool))).raw
    torch.testing.assert_close(raw.log_softmax(-1), arm.log_gate(theta, x))


def test_the_likelihood_is_climbed_and_the_invariants_are_found() -> None:
    """Twice the gain over the truth is a chi-square of 9, or 8, degrees of freedom."""
    for arm in study.ARMS.values():
        table = study.study(arm, [400, 4000], 5)
        assert all(3 < value < 20 for value in table["2 log ratio"])
        for name in ("beta0 / tau", "experts", "gate"):
            assert table[name][1] < table[name][0], name


def test_it_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    study.main(["--replicates", "1", "--sizes", "100", "200"])
    printed = capsys.readouterr().out
    assert printed.count("| gate |") == 2 and printed.count("eigenvalue") == 2
