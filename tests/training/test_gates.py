"""Routers with gates of their own in training: micro-batches, recomputation, statistics."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from zoo.moe.gates.warm_up import WarmUpGate
from zoo.spec import Plain, override

WHOLE = [("text", [0, 1, 2, 3]), ("time_series", [0, 1, 2, 3])]
PARTS = [("text", [0]), ("time_series", [0, 1]), ("text", [1, 2, 3]), ("time_series", [2, 3])]
RECURRENT: Plain = {"type": "recurrent", "state": 6, "init_std": 0.3}
RESIDUAL: Plain = {"type": "residual", "gate": {"type": "mlp", "init_std": 0.3}}


def described(tiny: Any, gate: Plain, **more: Any) -> Plain:
    balance = [{"type": "switch", "scope": "global_exact", "weight": 0.1}]
    return override(tiny.spec(balance), {"backbone.layers.0.block.ffn.router.gate": gate, **more})


@pytest.mark.parametrize("gate", [RECURRENT, RESIDUAL])
def test_micro_batches_and_recomputation_change_no_gradient(tiny: Any, gate: Plain) -> None:
    found = []
    for checkpoint, parts in ((False, WHOLE), (False, PARTS), (True, WHOLE)):
        module = tiny.module(described(tiny, gate, **{"backbone.checkpoint": checkpoint}), clip=None)
        found.append(tiny.gradients(module, tiny.steps(module, parts)))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=2e-6, rtol=1e-3, msg=name)


def test_warm_up_takes_up_its_statistics_once_per_optimiser_step(tiny: Any) -> None:
    for checkpoint in (False, True):
        gate = {"type": "warm_up", "steps": 4, "gate": {"init_std": 0.3}}
        module = tiny.module(described(tiny, gate, **{"backbone.checkpoint": checkpoint}))
        tiny.train(module, [tiny.steps(module, PARTS) for _ in range(2)])
        gates = [cast(WarmUpGate, layer.router.gate) for layer in module.model.moe_layers()]
        assert [int(gate.seen) for gate in gates] == [2, 2]
        assert all(float(gate.mean) != 0 and 0 < float(gate.variance) != 1 for gate in gates)
