"""Feed-forward layers in the manner of DeepSeekMoE (arXiv 2401.06066): the first ones dense, then many small routed
experts beside shared ones. DeepSeek-V2 and V3, dots.llm1 and GLM-4.5 share fields and names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.latent import latent
from zoo.hub.conversion.pieces import Piece
from zoo.spec import Plain

SPLIT = frozenset({"ep_size"})  # how a cluster was split while training


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a family takes where config.json says nothing; None where it has to.

    routed, chosen, shared  numbers of experts, of those a token goes to, and of shared ones (None: there are none)
    width, dense            widths of an expert and of a dense layer
    first                   number of dense layers
    groups, top_groups      groups of experts, and how many of them a token may choose from
    normalize, scale        whether weights are divided by their sum over the chosen, and what they are multiplied by
    """

    width: int
    dense: int
    routed: int | None = None
    chosen: int | None = None
    shared: int | None = None
    first: int = 0
    groups: int = 1
    top_groups: int = 1
    normalize: bool = False
    scale: float = 1.0


def _number(fields: Fields, names: tuple[str, ...], default: int | None) -> int:
    return fields.get(names, int) if default is None else fields.get(names, int, default)


def read_layers(fields: Fields, depth: int, router: Plain, default: Defaults) -> list[Plain]:
    """The feed-forward layer of each block."""
    fields.only("moe_layer_freq", 1)
    dense = read.dense(fields, default=default.dense)
    width = fields.get("moe_intermediate_size", int, default.width)
    shared = fields.optional("n_shared_experts", int, default.shared)
    layer = read.moe(
        {"type": "swiglu", "hidden": width},
        _number(fields, ("n_routed_experts", "num_experts", "num_local_experts"), default.routed),
        router,
        {"count": shared, "hidden": width} if shared else None,
    )
    first = fields.get("first_k_dense_replace", int, default.first)
    return [dense if i < first else layer for i in range(depth)]


def read_groups(fields: Fields, default: Defaults) -> Plain:
    """Keys of a router: how many it chooses, and from which groups. A null stands for one group."""
    groups, top = (
        fields.optional("n_group", int, default.groups),
        fields.optional("topk_group", int, default.top_groups),
    )
    plain = read.chosen(_number(fields, ("num_experts_per_tok",), default.chosen))
    plain["scale"] = fields.get("routed_scaling_factor", float, default.scale)
    return plain if groups in (None, 1) else {**plain, "groups": groups, "top_groups": top or 1}


def read_sigmoid(fields: Fields, default: Defaults, *spellings: str) -> Plain:
    """The router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): sigmoid scores, of which a bias changes the order
    and not the weights; a group ranks by its two best experts. spellings are further values of `scoring_func`."""
    fields.only("scoring_func", "sigmoid", *spellings)
    fields.only("topk_method", "noaux_tc")
    plain = read_groups(fields, default) | {"score": "sigmoid", "bias": True}
    plain["normalize"] = "selected" if fields.get("norm_topk_prob", bool, default.normalize) else "none"
    return plain | {"group_score": "top2"} if "groups" in plain else plain


def write_sigmoid(model: Language) -> Plain:
    """What `read_sigmoid` reads."""
    router = of_type(write.mixture(model)["router"], "ffn.router", "top_k")
    return {
        **write_groups(router),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": router["normalize"] == "selected",
    }


def write_groups(router: Plain) -> Plain:
    """What `read_groups` reads."""
    return {
        "num_experts_per_tok": router["k"],
        "routed_scaling_factor": router["scale"],
        "n_group": router["groups"],
        "topk_group": router["top_groups"],
    }


def write_layers(model: Language) -> Plain:
    """What `read_layers` reads. Raises MismatchError where dense layers stand between others or differ, and without
    shared experts, which other libraries do not build such layers without."""
    layer = write.mixture(model)
    width = of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"]
    dense = write.write_sparse(model)
    first = len(dense["mlp_only_layers"])
    if dense["mlp_only_layers"] != list(range(first)):
        raise MismatchError(f"ffn: blocks {dense['mlp_only_layers']} are dense; expected the first ones, or none")
    shared = layer["shared"]
    if shared is None:
        raise MismatchError("ffn.shared: is none, expected shared experts")
    if shared["hidden"] != width:
        raise MismatchError(f"ffn.shared.hidden: is {shared['hidden']}, expected that of routed experts, {width}")
    plain: Plain = {
        "hidden_act": "silu",
        "first_k_dense_replace": first,
        "moe_layer_freq": 1,
        "moe_intermediate_size": width,
        "n_routed_experts": layer["routed"],
        "n_shared_experts": shared["count"],
    }
    return plain | {"intermediate_size": dense["intermediate_size"]} if first else plain


def layer_pieces(theirs: str, ours: str, ffn: dict[str, Any], layout: str) -> Iterator[Piece]:
    """The tensors of a feed-forward layer; shared experts are one network."""
    if ffn["type"] == "dense":
        yield from rules.glu(theirs, ours, ffn["hidden"])
        return
    yield Piece(f"{theirs}.gate.weight", f"{ours}.router.gate.weight")
    if ffn["router"]["bias"]:
        yield Piece(f"{theirs}.gate.e_score_correction_bias", f"{ours}.router.bias")
    yield from rules.experts(f"{theirs}.experts", f"{ours}.experts", ffn["routed"], ffn["experts"]["hidden"], layout)
    if ffn["shared"] is not None:
        width = ffn["shared"]["count"] * ffn["shared"]["hidden"]
        yield from rules.glu(f"{theirs}.shared_experts", f"{ours}.shared_experts", width)


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of a model with such layers, over latent or grouped-query attention."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        attention = rules.grouped if block["attention"]["type"] == "grouped_query" else latent
        yield from rules.pre_norms(theirs, ours, model)
        yield from attention(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield from layer_pieces(f"{theirs}.mlp", f"{ours}.ffn", block["ffn"], layout)
