"""LoRA experts beside a model's maps: silent at first, plain LoRA with one expert, merged where they are one matrix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import zoo
from modalities.base import Tokens
from zoo.backbone.adapters.lora_experts import LoraExpertsOfBlock, LoraExpertsSpec
from zoo.backbone.trunk import BackboneSpec
from zoo.models.unified import Unified
from zoo.moe.balance.step import BalanceStep
from zoo.moe.routers.top_k import TopKSpec
from zoo.spec import SpecError, dump, parse
from zoo.surgery.lora_experts import add_lora_experts, merge_lora_experts

EVERY = ("attention.*", "ffn.*")


def plain(layers: int = 4, ffn: dict[str, Any] | None = None, **backbone: Any) -> dict[str, Any]:
    block = {
        "type": "sequential",
        "attention": {"heads": 2, "bias": True},
        "ffn": ffn or {"type": "dense", "hidden": 12},
    }
    return {
        "type": "unified",
        "backbone": {"dim": 8, "layers": [{"repeat": layers, "block": block}], **backbone},
        "modalities": {"text": {"type": "text", "length": 16}},
    }


def model(**keys: Any) -> Unified:
    return zoo.create(plain(**keys), seed=3).double().eval()


def adapters(adapted: Unified) -> list[LoraExpertsOfBlock]:
    return [m for m in adapted.modules() if isinstance(m, LoraExpertsOfBlock)]


def stir(adapted: Unified, *, routers: bool = True) -> Unified:
    """Draws B, and the routers, so that nothing is silent."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(adapted):
            for name, parameter in adapter.named_parameters():
                if name.endswith(".b") or (routers and "router" in name):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return adapted


def states(adapted: Unified) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    tokens = Tokens(embedding=torch.randn(2, 5, 8, generator=generator, dtype=torch.float64))
    return adapted.backbone(tokens).tokens.embedding


def test_it_starts_silent_and_its_routers_have_no_task_gradient_there() -> None:
    base = model()
    adapted = add_lora_experts(base, targets=EVERY)
    assert torch.equal(states(adapted), states(base))
    states(adapted).square().sum().backward()
    for name, parameter in adapted.named_parameters():
        if ".adapter." not in name:
            assert parameter.grad is None, name
        elif not name.endswith(".b"):
            assert parameter.grad is not None and not parameter.grad.any(), name
    assert any(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if n.endswith(".b"))


def test_routers_learn_once_the_experts_speak() -> None:
    adapted = stir(add_lora_experts(model(), targets=EVERY))
    states(adapted).square().sum().backward()
    silent = [n for n, p in adapted.named_parameters() if ".adapter." in n and (p.grad is None or not p.grad.any())]
    assert not silent


def lora_by_hand(adapted: Unified, weights: list[float]) -> Unified:
    """The base model with W + alpha / r sum_i w_i B_i A_i in place of every adapted map."""
    twin = model()
    base = dict(twin.backbone.named_modules())
    with torch.no_grad():
        for index, adapter in enumerate(adapters(adapted)):
            for name in adapter.places:
                experts = adapter.layer(name).experts
                a, b = cast(Tensor, experts.a), cast(Tensor, experts.b)
                delta = sum(w * 16 / a.shape[1] * (b[i] @ a[i]) for i, w in enumerate(weights))
                owner = base[f"blocks.{index}.{name.rpartition('.')[0]}"]
                last = name.rpartition(".")[2]
                if last in ("gate", "up"):
                    rows = owner.gate_up[:12] if last == "gate" else owner.gate_up[12:]
                    rows += delta
                else:
                    weight = owner.down if last == "down" else cast(nn.Linear, getattr(owner, last)).weight
                    weight += delta
    return twin


def test_one_expert_is_plain_lora_whatever_its_router() -> None:
    adapted = stir(add_lora_experts(model(), counts=(1,), ranks=3, targets=EVERY))
    torch.testing.assert_close(states(adapted), states(lora_by_hand(adapted, [1.0])), rtol=0, atol=1e-12)


def test_all_experts_at_equal_logits_are_their_average() -> None:
    adapted = stir(add_lora_experts(model(), counts=(2,), ranks=3, targets=EVERY), routers=False)
    for adapter in adapters(adapted):
        for name, parameter in adapter.named_parameters():
            if "router" in name:
                nn.init.zeros_(parameter)
    expected = states(lora_by_hand(adapted, [0.5, 0.5]))
    torch.testing.assert_close(states(adapted), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(states(merge_lora_experts(adapted)), expected, rtol=0, atol=1e-12)


def test_weights_of_the_two_best() -> None:
    adapted = add_lora_experts(model(), counts=(3,))
    router = adapters(adapted)[0].layer("attention.q").router
    gate, _ = router.weigh(torch.tensor([[0.5, 0.3, 0.2]]).double().log(), torch.tensor([[0, 1]]))
    torch.testing.assert_close(gate, torch.tensor([[0.625, 0.375]]).double())


def test_one_expert_merges_and_several_are_refused_by_name() -> None:
    adapted = stir(add_lora_experts(model(), counts=(1,), targets=EVERY))
    merged = merge_lora_experts(adapted)
    assert merged.spec == model().spec and not adapters(merged)
    torch.testing.assert_close(states(merged), states(adapted), rtol=0, atol=1e-12)
    several = stir(add_lora_experts(model(), counts=(1, 2)))
    with pytest.raises(ValueError, match=r"blocks\.2\.attention\.q: its router chooses among 2 experts by the token"):
        merge_lora_experts(several)


def test_a_weight_that_follows_the_token_is_not_merged_even_alone() -> None:
    router = TopKSpec(k=1, score="sigmoid", normalize="none")
    described = plain(adapter=dump(LoraExpertsSpec(counts=(1,), router=router)))
    adapted = stir(zoo.create(described).double())
    with pytest.raises(ValueError, match=r"attention\.q: its router"):
        merge_lora_experts(adapted)


def test_a_saved_model_opens_again_frozen(tmp_path: Path) -> None:
    adapted = stir(add_lora_experts(model(), ranks=(2, 4), targets=("attention.[qv]", "ffn.down")).float())
    loaded = zoo.load(zoo.save(adapted, tmp_path / "adapted"))
    assert loaded.spec == adapted.spec
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in adapted.state_dict().items())
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in loaded.named_parameters() if ".adapter." in name}
    assert parse(type(loaded.spec), dump(loaded.spec)) == loaded.spec


def test_a_copy_has_adapters_of_its_own() -> None:
    adapted = stir(add_lora_experts(model()))
    twin = copy.deepcopy(adapted)
    for adapter in adapters(twin):
        for parameter in adapter.parameters():
            nn.init.zeros_(parameter)
    assert not torch.equal(states(twin), states(adapted))
    torch.testing.assert_close(states(twin), states(model()), rtol=0, atol=1e-12)


def test_trainable_parameters_follow_the_formula() -> None:
    adapted = add_lora_experts(model(), counts=(2, 4, 6, 8), ranks=3, targets=("attention.q", "ffn.up"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 20 * ((3 * (8 + 8) + 8) + (3 * (8 + 12) + 8))
    assert adapted.spec.backbone.cost().total == sum(p.numel() for p in adapted.backbone.parameters())


@pytest.mark.parametrize(
    ("counts", "slots", "total"),
    [("inverted_triangle", 160, 105_635_840), ("triangle", 160, 105_635_840), ("hourglass", 160, 105_635_840),
     ("rectangle", 160, 105_635_840), ([8], 256, 169_017_344), ([1] + 31 * [0], 1, 660_224)],
)  # fmt: skip
def test_published_counts(counts: Any, slots: int, total: int) -> None:
    """LLaMA-2-7B, rank 8, all seven maps."""
    adapter = {"type": "lora_experts", "counts": counts, "targets": EVERY}
    block = {"type": "sequential", "attention": {"heads": 32}, "ffn": {"type": "dense", "hidden": 11008}}
    base: dict[str, Any] = {"dim": 4096, "layers": [{"repeat": 32, "block": block}]}
    added = parse(BackboneSpec, {**base, "adapter": adapter}).cost().total - parse(BackboneSpec, base).cost().total
    assert added == total == slots * 660_224
    wide = {"type": "lora_experts", "counts": [8], "targets": ["attention.q"]}
    square = {**base, "layers": [{"block": block}]}
    added = parse(BackboneSpec, {**square, "adapter": wide}).cost().total - parse(BackboneSpec, square).cost().total
    assert added == 557_056


def test_balance_is_over_all_maps_of_a_layer_together() -> None:
    adapter = {"type": "lora_experts", "counts": [3, 2, 4, 4], "targets": EVERY,
               "balance": [{"type": "switch", "weight": 1.0}]}  # fmt: skip
    adapted = stir(zoo.create(plain(adapter=adapter)).double())
    out = adapted.backbone(Tokens(embedding=torch.randn(2, 5, 8, dtype=torch.float64)))
    layers = adapted.moe_layers()
    assert [layer.pool.experts for layer in layers] == [3, 2, 4, 4]
    step = BalanceStep(layers)
    step.add(out.records)
    found = step.losses(out.records, 0)["switch"] * 4  # the mean over layers times their number
    expected = torch.zeros(())
    for record, layer in zip(out.records, layers, strict=True):
        routing, experts = record.routing, layer.pool.experts
        assert record.shape == (14, 5) and len(routing.expert) == 7 * 10
        share = torch.bincount(routing.expert.flatten(), minlength=experts) / routing.expert.numel()
        expected = expected + 10 * experts * (share * routing.raw.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(found, expected, check_dtype=False)
    for adapter_module in adapters(adapted):
        for name, parameter in adapter_module.named_parameters():
            if "router" in name:
                nn.init.zeros_(parameter)
    out = adapted.backbone(Tokens(embedding=torch.randn(2, 5, 8, dtype=torch.float64)))
    even = BalanceStep(layers)
    even.add(out.records)
    assert float(even.losses(out.records, 0)["switch"].detach()) / 10 == pytest.approx(1)  # uniform P: 1 a token


def test_beside_a_moe_layer_records_keep_their_order_under_recomputation() -> None:
    moe = {"type": "moe", "routed": 5, "experts": {"type": "swiglu", "hidden": 4}, "router": {"type": "top_k"}}
    adapter = {"type": "lora_experts", "counts": [2, 3], "dropout": 0.2}
    found = []
    for checkpoint in (False, True):
        adapted = stir(zoo.create(plain(layers=2, ffn=moe, adapter=adapter, checkpoint=checkpoint))).train()
        tokens = Tokens(embedding=torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)))
        out = adapted.backbone(tokens, seed=4)
        assert [r.routing.experts for r in out.records] == [5, 2, 5, 3]
        out.tokens.embedding.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1])


def test_dropout_follows_the_seed() -> None:
    adapted = stir(zoo.create(plain(adapter={"type": "lora_experts", "dropout": 0.5}))).train()
    tokens = Tokens(embedding=torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)))

    def run(seed: int | None) -> Tensor:
        return adapted.backbone(tokens, seed=seed).tokens.embedding

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert run(2**43).isfinite().all()  # as large as seeds get in training
    assert torch.equal(run(None), adapted.eval().backbone(tokens).tokens.embedding)


def test_which_maps_there_are() -> None:
    attention = {"type": "latent", "heads": 2, "kv_rank": 4, "nope_dim": 4, "rope_dim": 2, "value_dim": 4}
    described = plain(cond=3)["backbone"]
    moe = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 4}, "router": {"type": "top_k"},
           "shared": {"count": 1, "hidden": 4}}  # fmt: skip
    described["layers"] = [
        {"block": {"type": "adaln", "attention": {"heads": 2}, "ffn": {"type": "dense", "hidden": 12}}},
        {"block": {"type": "sequential", "attention": attention, "ffn": moe}},
    ]
    first, second = parse(BackboneSpec, described).maps()
    assert sorted(first) == [*(f"attention.{m}" for m in "koqv"), "ffn.down", "ffn.gate", "ffn.up"]
    assert sorted(second) == ["attention.kv_down", "attention.o", "attention.q"]  # kv_up is read, not called


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"targets": ["attention.w"]},
            r"backbone\.adapter\.targets\[0\]: no map 'attention.w'.*attention\.k, att",
        ),
        ({"counts": [2, 4, 6]}, r"backbone\.adapter\.counts: got 3 numbers, expected one for each of the 4 layers"),
        ({"counts": "pyramid"}, r"backbone\.adapter\.counts: got 'pyramid'"),
        ({"counts": [0]}, r"backbone\.adapter\.counts: got 0 in every layer"),
        ({"ranks": 0}, r"backbone\.adapter\.ranks: got 0"),
        ({"router": {"type": "top_k", "bias": True}}, r"backbone\.adapter\.router\.bias"),
        ({"router": {"type": "expert_choice"}}, r"backbone\.adapter\.router: lets later tokens matter"),
    ],
)
def test_what_cannot_be_is_refused_with_its_path(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        zoo.create(plain(adapter={"type": "lora_experts", **keys}))


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="adapter: the model has one already"):
        add_lora_experts(add_lora_experts(model()))
