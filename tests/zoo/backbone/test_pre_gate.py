"""One pre-gate for all layers (Read-ME): the same experts everywhere, causal, cached in decoding, known ahead."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import zoo
from modalities.base import Tokens
from zoo.inference.lookahead import lookahead
from zoo.models.unified import ModelSpec, Unified
from zoo.moe.routing import RoutingContext
from zoo.spec import SpecError, dump, parse

TRUNK = {
    "dim": 8,
    "layers": [{"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": {"type": "dense", "hidden": 16}}}],
}


def plain(**router: Any) -> dict[str, Any]:
    """A three-layer byte model that is pre-gated, top-1 with weight 1."""
    gate = {"type": "pre_gated", "vocab": 259, "trunk": TRUNK, "init_std": 1.0}
    ffn = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8},
        "router": {"type": "top_k", "k": 1, "allow_constant": True, "gate": gate, **router},
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 3, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}},
    }


@pytest.fixture(scope="module")
def model() -> Unified:
    return zoo.create(plain(), seed=0).eval()


def logits(model: Unified, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """[B, S, E] of the pre-gate."""
    tokens = Tokens(embedding=torch.zeros(*ids.shape, 16), ids=ids, mask=mask)
    (found,) = model.moe_layers()[0].router.begin(tokens, None, 0).values()
    return found.unflatten(0, ids.shape)


def text(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(3))


def test_a_token_has_the_same_expert_in_all_layers_and_weighs_one(model: Unified) -> None:
    with torch.no_grad():
        tokens = model.modality("text").encode({"ids": text(), "mask": torch.ones(2, 12, dtype=torch.bool)})
        routings = [record.routing for record in model.run(tokens, "text").records]
    assert len(routings) == 3 and len(routings[0].expert.unique()) > 1
    for routing in routings:
        assert torch.equal(routing.expert, routings[0].expert) and torch.equal(routing.raw, routings[0].raw)
        assert bool((routing.gate == 1).all())


def test_equal_experts_under_weight_one_are_the_dense_network(model: Unified) -> None:
    """All masks one and gate 1: the mixture is the network its experts are copies of, wherever it sends a token."""
    layer = copy.deepcopy(model).double().moe_layers()[0]
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    x = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ctx = RoutingContext(shape=(2, 12), mask=torch.ones(24, dtype=torch.bool), ids=text().flatten())
    out = layer(x, ctx)
    assert len(out.routing.expert.unique()) > 1
    gate_up, down = layer.experts.gate_up[0], layer.experts.down[0]  # type: ignore[index]
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    torch.testing.assert_close(out.y, (torch.nn.functional.silu(gate) * up) @ down.T, atol=1e-12, rtol=0)


def test_the_pre_gate_is_held_and_counted_once(model: Unified) -> None:
    held = [name for name in model.state_dict() if ".gate." in name]
    assert held and all(name.startswith("backbone.blocks.0.ffn.router.gate.network.") for name in held)
    cost = model.spec.backbone.cost()
    assert cost.total == sum(p.numel() for p in model.backbone.parameters())
    assert parse(ModelSpec, dump(model.spec)) == model.spec


def test_later_tokens_change_no_earlier_logits(model: Unified) -> None:
    ids = text()
    with torch.no_grad():
        before = logits(model, ids)
        ids[:, 7:] = text().flip(1)[:, 7:]
        after = logits(model, ids)
    assert torch.equal(after[:, :7], before[:, :7]) and not torch.equal(after[:, 7:], before[:, 7:])


def test_decoding_with_its_own_cache_equals_the_whole_prefix(model: Unified) -> None:
    ids = text()
    router, cache = model.moe_layers()[0].router, model.backbone.new_cache()
    with torch.no_grad():
        whole = logits(model, ids)
        for start, stop in ((0, 5), (5, 6), (6, 9), (9, 12)):
            rows = Tokens(embedding=torch.zeros(2, stop - start, 16), ids=ids[:, start:stop])
            (piece,) = router.begin(rows, cache, 0).values()
            torch.testing.assert_close(piece.unflatten(0, (2, -1)), whole[:, start:stop])
            if stop == 6:  # beams change places
                order = torch.tensor([1, 0])
                cache.reorder(order)
                ids, whole = ids[order], whole[order]


def test_generated_text_does_not_depend_on_the_cache(model: Unified) -> None:
    ids = text(1, 6)
    written = model.generate(ids, max_new_tokens=8, temperature=0.0)
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    new = torch.as_tensor(written)
    assert torch.equal(new[:, -8:], ids[:, -8:])


def test_the_experts_of_prompts_are_known_before_they_are_read(model: Unified) -> None:
    prompts = ["To be, or not to be", "A horse!"]
    ahead = lookahead(model, prompts)
    side: Any = model.modality("text")
    batch = side.prompt(prompts)
    with torch.no_grad():
        records = model.run(model.modality("text").encode(batch), "text").records
    for layer, record in enumerate(records):
        assert torch.equal(ahead.expert[layer].flatten(0, 1), record.routing.expert)
    assert ahead.sets()[1] <= set(ahead.expert[0][1, -len("A horse!") - 1 :].flatten().tolist())
    alone = lookahead(model, batch["ids"][1:, -int(batch["mask"][1].sum()) :])
    assert alone.sets()[0] == ahead.sets()[1]


def test_the_task_loss_never_reaches_a_choice_of_weight_one() -> None:
    model = zoo.create(plain(), seed=0)
    batch = {"ids": text()}
    with pytest.raises(ValueError, match=r"allow_constant: true"):
        zoo.create(plain(allow_constant=False))
    loss = model(input_ids=batch["ids"], labels=batch["ids"]).loss
    assert loss is not None
    loss.backward()
    router = model.moe_layers()[0].router
    assert model.moe_layers()[0].spec.properties().task_gradient == "none"
    assert all(p.grad is None or not bool(p.grad.any()) for p in router.parameters())
    weighed = zoo.create(plain(k=2, allow_constant=False), seed=0)
    loss = weighed(input_ids=batch["ids"], labels=batch["ids"]).loss
    assert loss is not None
    loss.backward()
    heads = [p.grad for name, p in weighed.moe_layers()[0].router.named_parameters() if "head" in name]
    assert heads and all(g is not None and bool(g.any()) for g in heads)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trunk": {"dim": 8, "layers": [{"block": plain()["backbone"]["layers"][0]["block"]}]}}, "trunk.layers"),
        ({"trunk": {**TRUNK, "cond": 4}}, "cond"),
        ({"vocab": 0}, "vocab: got 0"),
    ],
)
def test_what_would_wait_for_itself_is_refused(change: dict[str, Any], said: str) -> None:
    gate = {**plain()["backbone"]["layers"][0]["block"]["ffn"]["router"]["gate"], **change}
    with pytest.raises(SpecError, match=said):
        parse(ModelSpec, plain(gate=gate))


def test_layers_after_another_router_or_with_another_pool_are_refused() -> None:
    described = plain()
    first = described["backbone"]["layers"][0]
    other = {**first, "block": {**first["block"], "ffn": {**first["block"]["ffn"], "routed": 5}}}
    described["backbone"]["layers"] = [first, other]
    with pytest.raises(SpecError, match=r"layers\[1\]\.block\.ffn\.router\.gate\.type"):
        parse(ModelSpec, described)


def test_a_model_with_per_layer_gates_cannot_look_ahead() -> None:
    described = plain(gate={"type": "linear"})
    with pytest.raises(ValueError, match="MoE layer 0 is not pre-gated"):
        lookahead(zoo.create(described), ["a"])
