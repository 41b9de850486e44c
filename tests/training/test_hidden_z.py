"""Hidden z-loss: its figure by hand, and its way into a training step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training.hidden_z import HiddenZ, hidden_z

LAST = "backbone.blocks.1"


def test_by_hand() -> None:
    """z = [1, -2, 0, 0]: 6.219097; never below (log d)^2."""
    z = torch.tensor([[[1.0, -2.0, 0.0, 0.0]]], dtype=torch.float64)
    assert float(hidden_z(z, None)) == pytest.approx(6.219097, abs=1e-6)
    assert float(hidden_z(0 * z, None)) == pytest.approx(math.log(4) ** 2, abs=1e-12)


def test_padding_counts_for_nothing_also_where_it_is_not_finite() -> None:
    z = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = sum(float(hidden_z(z[r, c].view(1, 1, 4), None)) for r, c in ((0, 0), (0, 1), (1, 0)))
    z[0, 2] = torch.nan
    z.requires_grad_()
    total = hidden_z(z, mask)
    (gradient,) = torch.autograd.grad(total, z)
    assert float(total.detach()) == pytest.approx(expected, abs=1e-12)
    assert bool(gradient.isfinite().all()) and not bool(gradient[~mask].any())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_adds_the_mean_over_its_tokens(tiny: Any, checkpoint: bool) -> None:
    spec = tiny.spec()
    spec["backbone"]["checkpoint"] = checkpoint
    parts = [("text", [0, 1]), ("time_series", [0, 1]), ("text", [2])]
    plain = tiny.module(spec, clip=None)
    steps = tiny.steps(plain, parts)
    base = tiny.gradients(plain, steps)
    more = tiny.gradients(tiny.module(spec, clip=None, hidden_z={LAST: 0.5}), steps)
    module, total, tokens = tiny.module(spec), torch.zeros(()), 0.0
    watcher = HiddenZ(module.model, {LAST: 0.5})
    for name, batch in steps:
        with watcher.watch() as seen:
            out = module.model(name, batch)
        total, tokens = total + watcher.losses(seen, out.tokens)["hidden_z"], tokens + float(out.tokens.real)
    (total / tokens).backward()
    for name, parameter in module.model.named_parameters():
        extra = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(more.get(name, extra), base.get(name, 0 * extra) + extra, atol=2e-6, rtol=1e-4)
    assert float(more["modalities.text.embedding.weight"].sub(base["modalities.text.embedding.weight"]).norm()) > 1e-4
    assert not any(m._forward_hooks for m in module.model.modules())


def test_it_keeps_states_small_at_a_high_learning_rate(tiny: Any) -> None:
    sizes = []
    for weights in (None, {LAST: 0.1}):
        module = tiny.module(lr=3e-2, hidden_z=weights)
        step = tiny.steps(module, [("text", range(4))])
        tiny.train(module, [step] * 15)
        watcher = HiddenZ(module.model, {LAST: 1.0})
        with watcher.watch() as seen, torch.no_grad():
            module.model(*step[0])
        sizes.append(float(seen[LAST].abs().amax()))
    assert sizes[1] < 0.8 * sizes[0]


def test_it_is_logged_and_kept_in_the_hyper_parameters(tiny: Any) -> None:
    module = tiny.module(hidden_z={LAST: 1e-7})
    tiny.train(module, [tiny.steps(module, [("text", [0])])], log_every_n_steps=1)
    assert module.report.scalars["balance/hidden_z"] > 0
    assert module.hparams["hidden_z"] == {LAST: 1e-7}


def test_unknown_modules_and_negative_weights_are_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"did you mean 'backbone\.blocks\.1'.*blocks are backbone\.blocks\.0, "):
        tiny.module(hidden_z={"backbone.block.1": 1.0})
    with pytest.raises(ValueError, match=r"got -1\.0 for backbone"):
        tiny.module(hidden_z={LAST: -1.0})
