"""How blocks are wired: identities that hold whatever the weights, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modalities.base import Tokens
from zoo.backbone.blocks.shortcut import Shortcut
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.laws.cases import LayerCase, TrunkCase, draw_
from zoo.laws.catalogue import all_cases
from zoo.moe.kernels import reference
from zoo.moe.layer import MoE
from zoo.spec import Plain, SpecError, parse

DIM = 8
MOE: Plain = {
    "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": {"type": "top_k", "k": 2},
}  # fmt: skip
DENSE: Plain = {"type": "dense", "hidden": 10}
ATTENTION: Plain = {"heads": 2}


def trunk(*blocks: Plain, **keys: Any) -> Backbone:
    layers = [{"block": block} for block in blocks]
    built = parse(BackboneSpec, {"dim": DIM, "layers": layers, **keys}).build().double()
    draw_(built, 0)
    return built.eval()


def states(length: int = 6) -> Tensor:
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(built: Backbone, x: Tensor) -> Tensor:
    """What the last block answers, before the final norm."""
    with torch.no_grad():
        return built(Tokens(embedding=x), output_hidden=True).hidden[-1]


def shortcut(**keys: Any) -> Plain:
    return {"type": "shortcut", "attention": ATTENTION, "dense": [DENSE, DENSE], "moe": MOE, **keys}


def zero_(*weights: Tensor) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.zero_()


def block_of(built: Backbone) -> Shortcut:
    block = built.blocks[0]
    assert isinstance(block, Shortcut)
    return block


def test_a_shortcut_block_without_routed_answer_is_two_dense_blocks() -> None:
    built = trunk(shortcut())
    block = block_of(built)
    zero_(block.moe.experts.down)  # type: ignore[arg-type]
    plain = trunk(*[{"type": "sequential", "attention": ATTENTION, "ffn": DENSE}] * 2)
    state: dict[str, Tensor] = {}
    for i in (0, 1):
        state |= {f"{i}.attention.{k}": v for k, v in block.attention[i].state_dict().items()}
        state |= {f"{i}.ffn.{k}": v for k, v in block.dense[i].state_dict().items()}
        state[f"{i}.attention_norm.weight"] = block.attention_norm[i].weight  # type: ignore[assignment]
        state[f"{i}.ffn_norm.weight"] = block.dense_norm[i].weight  # type: ignore[assignment]
    plain.blocks.load_state_dict(state)
    torch.testing.assert_close(run(built, states()), run(plain, states()))


def test_all_sources_are_one_state_where_nothing_comes_before() -> None:
    answers = []
    for source in ("input", "attention", "output"):
        built = trunk(shortcut(source=source))
        block = block_of(built)
        zero_(block.attention[0].o.weight, block.dense[0].down)  # type: ignore[arg-type,union-attr]
        answers.append(run(built, states()))
    torch.testing.assert_close(answers[1], answers[0])
    torch.testing.assert_close(answers[2], answers[0])


@pytest.mark.parametrize("source", ["input", "attention", "output"])
def test_an_own_norm_of_the_same_weights_changes_nothing(source: str) -> None:
    own, shared = trunk(shortcut(source=source)), trunk(shortcut(source=source, own_norm=False))
    one = block_of(own)
    norms = {"input": one.attention_norm[0], "attention": one.dense_norm[0], "output": one.attention_norm[1]}
    assert one.moe_norm is not None
    one.moe_norm.load_state_dict(norms[source].state_dict())
    shared.load_state_dict({k: v for k, v in own.state_dict().items() if "moe_norm" not in k})
    torch.testing.assert_close(run(own, states()), run(shared, states()))


def test_sources_differ() -> None:
    answers = [run(trunk(shortcut(source=source)), states()) for source in ("input", "attention", "output")]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2])


@pytest.mark.parametrize(("combine", "dense", "routed"), [("sigmoid", 0.5, 1.0), ("softmax", 0.5, 0.5)])
def test_coefficients_start_from_what_the_network_reads(combine: str, dense: float, routed: float) -> None:
    """At W = 0 the network weighs 1/2; the MoE layer 1 beside a sigmoid and 1/2 in a softmax."""
    added, weighed = trunk(shortcut()), trunk(shortcut(combine=combine))
    weighed.load_state_dict(added.state_dict() | {"blocks.0.combine.weight": block_of(weighed).combine.weight})  # type: ignore[union-attr]
    zero_(block_of(weighed).combine.weight)  # type: ignore[union-attr]
    expected = run(added, states())
    with torch.no_grad():
        block_of(weighed).dense[1].down.div_(dense)  # type: ignore[operator]
        block_of(weighed).moe.experts.down.div_(routed)  # type: ignore[operator]
    torch.testing.assert_close(run(weighed, states()), expected)


def test_one_sub_layer_that_reads_its_input_is_moe_in_every_block() -> None:
    built = trunk(shortcut(dense=[DENSE], source="input"), shortcut(dense=[DENSE], source="input"))
    out = built(Tokens(embedding=states()))
    assert len(out.records) == 2
    assert built.windows == [None, None]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"dense": []}, "dense: got none"),
        ({"dense": [MOE]}, "dense: expected networks of type dense"),
        ({"moe": DENSE}, "moe: expected a layer of type moe"),
        ({"dense": [DENSE], "source": "output"}, "source: got 'output' with one sub-layer"),
        ({"attention": {"heads": 3}}, "attention.heads"),
    ],
)
def test_shortcut_refuses(keys: Plain, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        trunk(shortcut(**keys))


def routed(router: Plain, own_keys: bool = False, **keys: Any) -> Plain:
    attention = {"routed": 3, "heads": 2, "router": router, "own_keys": own_keys}
    return {"type": "attention_experts", "attention": attention, "ffn": DENSE, **keys}


def test_equal_attention_experts_are_one_attention() -> None:
    """BAM: with weights that sum to 1, experts of the same maps answer as one of them."""
    built = trunk(routed({"type": "top_k", "k": 3, "normalize": "all"}))
    plain = trunk({"type": "sequential", "attention": ATTENTION, "ffn": DENSE})
    state = built.state_dict()
    for name in ("q", "o"):
        maps = state[f"blocks.0.attention.experts.{name}"]
        maps.copy_(maps[:1].expand_as(maps).clone())
        state[f"blocks.0.attention.{name}.weight"] = maps[0]
    plain.load_state_dict({k: v for k, v in state.items() if "experts" not in k and "router" not in k})
    torch.testing.assert_close(run(built, states()), run(plain, states()))


SOFT: Plain = {"type": "top_k", "k": 3, "normalize": "all"}


def test_equal_own_keys_are_shared_keys() -> None:
    own, shared = trunk(routed(SOFT, own_keys=True)), trunk(routed(SOFT))
    state = shared.state_dict()
    for name in ("k", "v"):
        key = f"blocks.0.attention.{name}.weight"
        state[key] = state[key].repeat(3, 1)
    own.load_state_dict(state)
    torch.testing.assert_close(run(own, states()), run(shared, states()))


@pytest.mark.parametrize("k", [1, 3])
def test_one_hot_weights_give_that_experts_own_attention(k: int) -> None:
    """BAM: expert 1 is certain, so its queries, keys, values and output map are all that counts."""
    built = trunk(routed({"type": "top_k", "k": k, "normalize": "all", "gate": {"bias": True}}, own_keys=True))
    state = built.state_dict()
    state["blocks.0.attention.router.gate.bias"] = torch.tensor([-1e4, 1e4, -1e4])
    built.load_state_dict(state)
    plain = trunk({"type": "sequential", "attention": ATTENTION, "ffn": DENSE})
    for name in ("q", "o"):
        state[f"blocks.0.attention.{name}.weight"] = state[f"blocks.0.attention.experts.{name}"][1]
    for name in ("k", "v"):
        state[f"blocks.0.attention.{name}.weight"] = state[f"blocks.0.attention.{name}.weight"].chunk(3)[1]
    plain.load_state_dict({k: v for k, v in state.items() if "experts" not in k and "router" not in k})
    torch.testing.assert_close(run(built, states()), run(plain, states()))


def test_a_parallel_block_sums_both_answers_of_one_norm() -> None:
    built = trunk(routed({"type": "top_k", "k": 2}, parallel=True))
    x = states()
    both = run(built, x)
    parts = []
    for name in ("blocks.0.ffn.down", "blocks.0.attention.experts.o"):
        state = built.state_dict()
        half = trunk(routed({"type": "top_k", "k": 2}, parallel=True))
        half.load_state_dict(state | {name: torch.zeros_like(state[name])})
        parts.append(run(half, x))
    torch.testing.assert_close(both, parts[0] + parts[1] - x)


def test_both_routers_leave_records_in_order() -> None:
    built = trunk({**routed({"type": "top_k", "k": 2}), "ffn": MOE})
    out = built(Tokens(embedding=states()))
    assert [record.routing.experts for record in out.records] == [3, 4]
    assert [type(layer).__name__ for layer in built.moe_layers()] == ["RoutedAttention", "MoE"]


@pytest.mark.parametrize(("norm", "names"), [
    ("before", {"attention_norm", "ffn_norm"}),
    ("stream", {"attention_norm", "ffn_norm"}),
    ("after", {"attention_post_norm", "ffn_post_norm"}),
    ("both", {"attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm"}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_stand_where_they_should(norm: str, names: set[str], kind: str) -> None:
    block = {"type": "sequential", "attention": ATTENTION, "ffn": DENSE, "norm": norm}
    built = trunk(block, norm=kind)
    found = {name.split(".")[0] for name in built.blocks[0].state_dict() if "norm" in name}
    assert found == names
    assert built.spec.cost().total == sum(p.numel() for p in built.parameters())


def test_branches_and_stream_have_factors() -> None:
    plain: Plain = {"type": "sequential", "attention": ATTENTION, "ffn": DENSE}
    built = trunk(plain | {"residual": [0.0, 2.0], "skip": [3.0, 0.5]})
    x = states()
    block = built.blocks[0]
    expected = 0.5 * (3 * x) + 2 * block.ffn(block.ffn_norm(3 * x))  # type: ignore[operator]
    torch.testing.assert_close(run(built, x), expected.detach())


def test_cost_of_every_case_of_the_laws_is_the_count_of_its_parameters() -> None:
    counted = 0
    for case in all_cases():
        if isinstance(case, TrunkCase):
            held, cost = sum(p.numel() for p in case.spec.build().parameters()), case.spec.cost()
        elif isinstance(case, LayerCase):
            held, cost = sum(p.numel() for p in MoE(case.spec, DIM).parameters()), case.spec.cost(DIM)
        else:
            continue
        assert cost.total == held, case.name
        assert cost.active <= cost.total + 1e-9, case.name
        counted += 1
    assert counted > 50


@pytest.mark.parametrize("combine", ["add", "softmax"])
def test_operations_of_a_shortcut_block(combine: str) -> None:
    counted(shortcut(combine=combine, moe={**MOE, "backend": "grouped"}))


def test_operations_of_attention_experts() -> None:
    """Every slot has its own queries, keys and values are made once."""
    counted(routed({"type": "top_k", "k": 2}))
    counted(routed({"type": "top_k", "k": 2}, own_keys=True))


def counted(block: Plain) -> None:
    """The stated operations are those torch counts, over S tokens that all see S keys."""
    built, length = trunk(block), 6
    for layer in built.moe_layers():  # the counter knows torch's own products alone
        layer.experts.linear = reference.linear
    everyone = torch.ones(2, length, dtype=torch.bool)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        built(Tokens(embedding=states(length), span=everyone.long(), bidirectional=everyone))
    assert counter.get_total_flops() == pytest.approx(2 * length * built.spec.cost(length).flops, rel=1e-9)


def test_sections_must_fit_the_heads_of_attention_experts() -> None:
    with pytest.raises(SpecError, match=r"rope.sections: sum to 3, expected 2"):
        trunk(routed({"type": "top_k"}), rope={"axes": 2, "layout": "sections", "sections": [2, 1]})


def test_longcat_flash_at_its_published_size() -> None:
    """Sheet: 560,664,958,976 parameters with both embeddings, 512 of 768 experts being networks; a token with 8 of
    them uses 27.15 B without the input embedding."""
    latent = {"type": "latent", "heads": 64, "q_rank": 1536, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64}
    moe = {
        "type": "moe", "routed": 512, "experts": {"type": "swiglu", "hidden": 2048}, "null_experts": {"copy": 256},
        "router": {"type": "top_k", "k": 12, "normalize": "all", "scale": 6.0, "bias": True},
    }  # fmt: skip
    block = {"type": "shortcut", "own_norm": False, "dense": [{"hidden": 12288}] * 2, "moe": moe}
    block["attention"] = {**latent, "value_dim": 128, "rank_scale": True}
    cost = parse(BackboneSpec, {"dim": 6144, "layers": [{"repeat": 28, "block": block}]}).cost()
    embedding = 131072 * 6144
    assert cost.total + 2 * embedding == 560_664_958_976
    assert (cost.active + embedding) / 1e9 == pytest.approx(27.15, abs=0.01)
