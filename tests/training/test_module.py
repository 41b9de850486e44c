"""One training step is one optimiser step, whatever it is cut into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

EXACT = {
    "none": [],
    "sequence": [{"type": "switch", "scope": "sequence", "weight": 0.1}, {"type": "z_loss", "weight": 0.1}],
    "global_exact": [{"type": "switch", "scope": "global_exact", "weight": 0.1}],
}
WHOLE = [("text", range(4)), ("time_series", range(6))]
CUT = [("text", [0]), ("time_series", [0, 1, 2, 3]), ("text", [1, 2, 3]), ("time_series", [4, 5])]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("divide", ["step", "modality"])
@pytest.mark.parametrize("balance", EXACT.values(), ids=EXACT.keys())
def test_cutting_a_step_changes_no_gradient(tiny: Any, balance: list[dict[str, Any]], divide: str) -> None:
    whole, cut = (tiny.module(tiny.spec(balance), divide=divide, clip=None) for _ in range(2))
    close(tiny.gradients(whole, tiny.steps(whole, WHOLE)), tiny.gradients(cut, tiny.steps(cut, CUT)))


def test_the_gradient_is_that_of_the_mean_over_the_step(tiny: Any) -> None:
    module = tiny.module(clip=None, loss_weights={"text": 2.0})
    step = tiny.steps(module, WHOLE)
    losses = {name: module.model(name, batch).loss for name, batch in step}
    units = sum(float(loss.count) for loss in losses.values())
    ((2.0 * losses["text"].total + losses["time_series"].total) / units).backward()
    wanted = {n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()
    close(tiny.gradients(module, step), wanted)


def test_balance_is_divided_by_the_tokens_of_the_step(tiny: Any) -> None:
    rule = {"type": "z_loss", "weight": 1.0}
    module = tiny.module(tiny.spec([rule]), clip=None, loss_weights={"text": 0.0, "time_series": 0.0})
    step = tiny.steps(module, WHOLE)
    records = [module.model(name, batch).records for name, batch in step]
    tokens = sum(float(r[0].stats.tokens) for r in records)
    squares = sum(
        torch.logsumexp(layer.routing.logits[layer.routing.mask], -1).square().sum() for r in records for layer in r
    )
    (squares / 2 / tokens).backward()
    name = "backbone.blocks.1.ffn.router.gate.weight"
    wanted = dict(module.model.named_parameters())[name].grad.clone()
    module.zero_grad()
    torch.testing.assert_close(tiny.gradients(module, step)[name], wanted, atol=1e-6, rtol=1e-4)


def test_units_that_disagree_with_the_loss_are_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny.module()
    monkeypatch.setattr(module.model.modality("text"), "units", lambda batch: (torch.tensor(1), torch.tensor(1)))
    with pytest.raises(RuntimeError, match="text: units"):
        tiny.train(module, [tiny.steps(module, WHOLE)])


def test_a_step_that_is_not_finite_is_left_out_and_counted(tiny: Any) -> None:
    module = tiny.module(tiny.spec([{"type": "bias", "weight": 0.1}], bias=True))
    good, bad = tiny.steps(module, WHOLE), tiny.steps(module, WHOLE)
    bad[1][1]["future"][0, 0] = float("nan")
    tiny.train(module, [good])
    before = {k: v.clone() for k, v in module.model.state_dict().items()}
    tiny.train(module, [bad])
    assert module.skipped == 1 and module.done == 2
    assert all(torch.equal(before[k], v) for k, v in module.model.state_dict().items())
    tiny.train(module, [good])
    assert any(not torch.equal(before[k], v) for k, v in module.model.state_dict().items())


def test_too_many_such_steps_end_training(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.stepping.PATIENCE", 2)
    module = tiny.module()
    bad = tiny.steps(module, WHOLE)
    bad[1][1]["future"][0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="2 steps in a row were not finite"):
        tiny.train(module, [bad] * 3)


def test_the_bias_follows_the_load_of_the_whole_step(tiny: Any) -> None:
    module = tiny.module(tiny.spec([{"type": "bias", "weight": 0.1}], bias=True))
    step = tiny.steps(module, CUT)
    load = sum(module.model(name, batch).records[1].stats.load for name, batch in step)
    tiny.train(module, [step])
    wanted = 0.1 * torch.sign(1 / 5 - load / load.sum())
    torch.testing.assert_close(module.model.moe_layers()[1].router.bias, wanted)


def test_clipping_bounds_the_norm_of_the_whole_step(tiny: Any) -> None:
    module = tiny.module(clip=0.05)
    found = tiny.gradients(module, tiny.steps(module, CUT))
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    assert float(norm) == pytest.approx(0.05, rel=1e-3) and module.norm > 0.05


@pytest.mark.parametrize("scope", ["sequence", "global_exact"])
def test_bfloat16_keeps_the_router_in_float32(tiny: Any, scope: str) -> None:
    seen = []
    module = tiny.module(tiny.spec([{"type": "switch", "scope": scope}]), clip=None)
    router = module.model.moe_layers()[0].router
    router.register_forward_hook(lambda m, i, routing: seen.append((i[0].dtype, routing.raw.dtype, routing.gate.dtype)))
    step = tiny.steps(module, CUT)
    found = tiny.gradients(module, step, precision="bf16-mixed")
    assert {raw for _, raw, _ in seen} == {gate for *_, gate in seen} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    exact = tiny.gradients(tiny.module(tiny.spec([{"type": "switch", "scope": scope}]), clip=None), step)
    assert found.keys() == exact.keys()
    for name in ("backbone.blocks.1.ffn.experts.down", "modalities.text.embedding.weight"):
        gap = (found[name] - exact[name]).norm() / exact[name].norm()
        assert float(gap) < 0.1, name


def test_frozen_parts_stay_and_the_rest_trains(tiny: Any) -> None:
    module = tiny.module(trainable=["router"])
    before = {k: v.clone() for k, v in module.model.named_parameters()}
    tiny.train(module, [tiny.steps(module, CUT)])
    moved = {k for k, v in module.model.named_parameters() if not torch.equal(before[k], v)}
    assert moved == {k for k in before if "router" in k}


def test_a_pattern_that_matches_nothing_is_an_error(tiny: Any) -> None:
    with pytest.raises(ValueError, match="trainable: 'ruoter' matches no parameter"):
        tiny.module(trainable=["ruoter"])


def test_an_unknown_modality_among_the_weights_is_an_error(tiny: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'text'"):
        tiny.module(loss_weights={"txt": 1.0})


def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone(tiny: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = tiny.module(seed=1), tiny.module(seed=1), tiny.module(seed=2)
    assert torch.equal(torch.rand(2), expected)
    state = first.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in second.model.state_dict().items())
    assert any(not torch.equal(v, state[k]) for k, v in other.model.state_dict().items())


def test_hyper_parameters_are_plain_and_rebuild_the_module(tiny: Any) -> None:
    from training.module import UnifiedModule

    module = tiny.module(overrides={"backbone.dim": 24}, loss_weights={"text": 2.0})
    plain = dict(module.hparams)

    def check(value: Any) -> None:
        assert isinstance(value, (dict, list, str, int, float, bool, type(None))), value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(plain)
    assert plain["spec"]["backbone"]["dim"] == 24
    again = UnifiedModule(**plain)
    assert again.model.spec == module.model.spec and dict(again.hparams) == plain


def test_weights_come_from_a_file(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    first = tiny.module(seed=1)
    save_file(first.model.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        second = tiny.module(seed=2, init_from=str(path))
        assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())
        assert second.fitted == {"text", "time_series"}
    wider = tiny.spec()
    wider["modalities"]["text"]["tokenizer"] = {"type": "bytes"}
    wider["modalities"]["time_series"]["heads"] = [4, 8]
    with pytest.raises(ValueError, match=r"missing modalities\.time_series"):
        tiny.module(wider, init_from=str(tmp_path))
    with pytest.warns(UserWarning, match="not taken over"):
        third = tiny.module(wider, init_from=str(tmp_path), init_strict=False)
    assert third.fitted == {"text"}


def test_weights_from_nowhere(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="init_from"):
        tiny.module(init_from=str(tmp_path / "none"))


def test_a_dense_model_trains_too(tiny: Any, tmp_path: Path) -> None:
    from training.run import fit
    from training.sources import build_data

    spec = tiny.spec()
    spec["backbone"]["layers"][0]["block"]["ffn"] = {"type": "dense", "hidden": 16}
    module = tiny.module(spec)
    data = build_data({"sources": tiny.sources(), "micro_batches": 2})
    fit(module, data, max_steps=2, folder=tmp_path, log_every=1, progress=False, tensorboard=False, heat_maps=1)
    assert module.report.load == {} and "routing/mean_k" not in module.report.scalars
    assert module.report.scalars["train/text/loss"] > 0


def test_noise_follows_from_seed_step_and_place(tiny: Any) -> None:
    a, b, c = (tiny.module(tiny.spec(gate={"jitter": 0.5}), seed=s, clip=None) for s in (1, 1, 1))
    step = tiny.steps(a, CUT)
    c.done = 5
    first, second, later = (tiny.gradients(m, step) for m in (a, b, c))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], later[k]) for k in first)
