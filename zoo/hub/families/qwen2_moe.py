"""Qwen2-MoE: routed experts beside one shared expert with a gate of its own; some layers may be dense (Qwen1.5-MoE)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError
from zoo.hub.conversion.pieces import Piece
from zoo.spec import Plain


def alternate(layer: int, stop: int) -> bool:
    """Where windows are unless `layer_types` says: in every other layer below `max_window_layers`."""
    return layer % 2 == 0 and layer < stop


def router(fields: Fields, k: int) -> Plain:
    """Softmax over all experts; `norm_topk_prob` divides the weights by their sum over the chosen."""
    normalize = "selected" if fields.get("norm_topk_prob", bool, False) else "all"
    return read.chosen(fields.get("num_experts_per_tok", int, k), normalize=normalize)


def spec(fields: Fields) -> Language:
    """Dense layers are those without experts by `mlp_only_layers` and `decoder_sparse_step`."""
    depth, bias = fields.count(), fields.get("qkv_bias", bool, True)
    attention, dense = read.grouped(fields, bias=bias, kv_heads=16), read.dense(fields, default=5632)
    routed = fields.get(("num_experts", "num_local_experts"), int, 60)
    shared = {"count": 1, "hidden": fields.get("shared_expert_intermediate_size", int, 5632), "gate": "sigmoid"}
    experts = read.swiglu(fields, "moe_intermediate_size")
    layer = read.moe(experts, routed, router(fields, 4), shared)
    each = zip(read.windows(fields, alternate, depth), read.sparse(fields, depth, routed), strict=True)
    blocks = [read.sequential({**attention, "window": size}, layer if has else dense) for size, has in each]
    return read.language(fields, blocks)


def config(model: Language) -> Plain:
    """The fields of Qwen2-MoE."""
    layer = write.mixture(model)
    if layer["shared"] is None:
        raise MismatchError("ffn.shared: is none, expected one shared expert")
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_windows(model),
        **experts(model),
        "qkv_bias": write.attention(model)["bias"],
        "shared_expert_intermediate_size": layer["shared"]["hidden"],
    }


def experts(model: Language) -> Plain:
    """The fields of routed experts and dense layers, as Qwen3-MoE has them too."""
    return {**write.write_sparse(model), **write.write_routed(model, "moe_intermediate_size")}


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of Qwen2-MoE, and of Qwen3-MoE, which has no shared expert."""
    return rules.decoder(model, partial(mixture, layout))


def mixture(layout: str, theirs: str, ours: str, ffn: Plain) -> Iterator[Piece]:
    """Router and experts."""
    yield Piece(f"{theirs}.mlp.gate.weight", f"{ours}.router.gate.weight")
    hidden, shared = ffn["experts"]["hidden"], ffn["shared"]
    yield from rules.experts(f"{theirs}.mlp.experts", f"{ours}.experts", ffn["routed"], hidden, layout)
    if shared is not None:
        yield from rules.glu(f"{theirs}.mlp.shared_expert", f"{ours}.shared_experts", shared["hidden"])
        yield Piece(f"{theirs}.mlp.shared_expert_gate.weight", f"{ours}.shared_experts.gate")


FAMILY = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
)
