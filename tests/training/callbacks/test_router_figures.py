"""Figures of routers: by hand, against autograd, over micro-batches, and into the logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from training.callbacks.router_figures import RouterFigures, similarity
from zoo.moe.balance.switch import SwitchSpec

PARTS = [("text", [0, 1, 2]), ("time_series", [0, 1]), ("text", [3])]


def shift(module: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Shifts of all tokens' probabilities, 0 and to be differentiated, of what weights and what balance read."""
    layers = module.model.moe_layers()
    weights, balance = ([torch.zeros(5, requires_grad=True) for _ in layers] for _ in range(2))
    for layer, delta in zip(layers, weights, strict=True):
        layer.router.forward = shifted_weights(layer.router.forward, delta)
    plain, called = SwitchSpec._probabilities, [0]

    def shifted(rule: SwitchSpec, routing: Any) -> Tensor:
        called[0] += 1
        return plain(rule, routing) + balance[(called[0] - 1) % len(layers)]

    monkeypatch.setattr(SwitchSpec, "_probabilities", shifted)
    return weights, balance


def shifted_weights(plain: Callable[..., Any], delta: Tensor) -> Callable[..., Any]:
    def forward(x: Tensor, ctx: Any) -> Any:
        routing = plain(x, ctx)
        share = torch.cat([torch.softmax(routing.raw, -1) + delta, routing.raw.new_zeros(len(x), 1)], dim=-1)
        gate = 1.5 * share.gather(1, routing.expert)
        torch.testing.assert_close(gate, routing.gate)
        return routing.replace(gate=gate)

    return forward


@pytest.mark.parametrize(("scope", "checkpoint"), [("micro", False), ("global_exact", True), ("sequence", False)])
def test_the_ratio_is_that_of_autograd(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, scope: str, checkpoint: bool
) -> None:
    spec = tiny.spec([{"type": "switch", "weight": 0.3, "scope": scope}], normalize="all", scale=1.5)
    spec["backbone"]["checkpoint"] = checkpoint
    module, figures = tiny.module(spec, clip=None), RouterFigures()
    weights, balance = shift(module, monkeypatch)
    tiny.train(module, [tiny.steps(module, PARTS)], [figures], log_every_n_steps=1)
    for i, (task, rule) in enumerate(zip(weights, balance, strict=True)):
        assert task.grad is not None and rule.grad is not None and float(task.grad.norm()) > 0
        expected = float(rule.grad.norm() / task.grad.norm())
        assert figures.scalars[f"router/layer{i}/gradient_ratio"] == pytest.approx(expected, rel=1e-4)


def test_the_ratio_follows_the_weight_of_the_loss(tiny: Any) -> None:
    found = []
    for weight in (0.01, 0.03):
        module, figures = tiny.module(tiny.spec([{"type": "switch", "weight": weight}])), RouterFigures()
        tiny.train(module, [tiny.steps(module, PARTS)], [figures], log_every_n_steps=1)
        found.append(figures.scalars["router/layer1/gradient_ratio"])
    assert found[1] == pytest.approx(3 * found[0], rel=1e-4)


def test_a_router_of_constant_weight_has_no_ratio(tiny: Any) -> None:
    spec = tiny.spec([{"type": "switch"}], k=1, allow_constant=True)
    module, figures = tiny.module(spec), RouterFigures()
    tiny.train(module, [tiny.steps(module, PARTS)], [figures], log_every_n_steps=1)
    assert set(figures.scalars) == {"router/layer0/similarity", "router/layer1/similarity"}


def test_similarity_by_hand(tiny: Any) -> None:
    layer = tiny.module().model.moe_layers()[0]
    rows = layer.router.gate.weight
    with torch.no_grad():
        rows.zero_()
        rows[:4, 0] = torch.tensor([1.0, 2.0, 3.0, 0.0])
        rows[3, 1] = 5.0
        rows[4] = 7.0  # the null expert's
    assert similarity(layer) == pytest.approx(0.5)  # three pairs of six point the same way, three stand upright
    gate = {"gate": {"type": "mlp"}}
    assert similarity(tiny.module(tiny.spec(**gate)).model.moe_layers()[0]) is None


def test_they_are_logged_at_the_steps_that_are(tiny: Any, tmp_path: Any) -> None:
    from training.callbacks.metrics import Metrics
    from training.csv_log import CSVLog

    module, log = tiny.module(tiny.spec([{"type": "switch"}])), CSVLog(str(tmp_path / "log.csv"))
    steps = [tiny.steps(module, PARTS)] * 4
    tiny.train(module, steps, [RouterFigures(), Metrics()], log_every_n_steps=2, logger=[log])
    rows = [row for row in log.rows() if row.get("router/layer1/gradient_ratio")]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["router/layer0/gradient_ratio"]) > 0 and row["router/layer0/similarity"] for row in rows)
