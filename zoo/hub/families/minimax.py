"""MiniMax-01: lightning attention with softmax attention between, factors on both paths of a residual that starts at
the norm, routed experts (arXiv 2501.08313)."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import WHOLE, Piece
from zoo.hub.conversion.rotary import rotary
from zoo.spec import Plain

LINEAR, FULL = "linear_attention", "full_attention"
PREFIX = {"lightning": "linear_attn", "grouped_query": "full_attn"}
# Follow from the number of heads and layers and the block; the peers compute them where they are not stored.
DECAYS = r"model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)"
NAMES = ("w1", "w3", "w2")  # of an expert's maps on the hub


def spec(fields: Fields) -> Language:
    """`layer_types` says where attention is linear, in every second layer where it is not there."""
    fields.only("postnorm", True)
    fields.only("shared_intermediate_size", 0)
    depth = fields.count()
    full, positions = read.grouped(fields, kv_heads=8), rotary(fields, theta=1e6, partial=1.0)
    full["window"] = fields.get("sliding_window", int, None)
    full["partial"] = partial(fields, full["head_dim"], positions.partial)
    linear = {
        "type": "lightning",
        "heads": full["heads"],
        "head_dim": full["head_dim"],
        "depth": depth,
        "block": fields.get("block_size", int, 256),
    }
    router = read.chosen(fields.get("num_experts_per_tok", int, 2))
    layer = read.moe(read.swiglu(fields), fields.get(("num_local_experts", "num_experts"), int, 8), router)
    blocks = [
        read.sequential(linear if kind == LINEAR else full, layer, **factors(fields, kind))
        for kind in layer_types(fields, depth)
    ]
    return read.language(fields, blocks, eps=1e-5, ids=(1, 2, None), positions=positions)


def partial(fields: Fields, size: int, share: float) -> float:
    """Share of a head that turns. `rotary_dim` is honoured as by the publisher's code (half a head, section 2 of the
    paper); transformers 5.23 does not read it, and turns whole heads."""
    turned = fields.get("rotary_dim", int, None)
    if turned is None:
        return share
    if not 0 < turned <= size:
        raise fields.error("rotary_dim", f"got {turned}, expected 1..{size}, the size of a head")
    return turned / size


def layer_types(fields: Fields, depth: int) -> list[str]:
    """The kind of attention of each layer."""
    types = fields.get("layer_types", list, [LINEAR if i % 2 else FULL for i in range(depth)])
    if len(types) != depth or any(kind not in (LINEAR, FULL) for kind in types):
        raise fields.error("layer_types", f"got {types!r}, expected {FULL} or {LINEAR} for {depth} layers")
    return [str(kind) for kind in types]


def factors(fields: Fields, kind: str) -> Plain:
    """alpha stands on the state, beta on what a branch adds."""
    attention = "linear_attn" if kind == LINEAR else "full_attn"
    skip, residual = (
        [fields.get(f"{part}_{name}_factor", float, 1.0) for part in (attention, "mlp")] for name in ("alpha", "beta")
    )
    other = "full_attn" if kind == LINEAR else "linear_attn"
    for name in ("alpha", "beta"):
        fields.raw(f"{other}_{name}_factor")  # without influence where no layer is of that kind
    return {"norm": "stream", "skip": skip, "residual": residual}


def config(model: Language) -> Plain:
    """The fields of MiniMax-01."""
    layer = write.mixture(model)
    attentions: dict[str, Plain] = {}
    plain: Plain = {}
    for block in model.blocks:
        of_type(block, "block", "sequential")
        attention = block["attention"]
        kind = attention["type"]
        if kind not in PREFIX or attentions.setdefault(kind, attention) != attention:
            raise MismatchError("attention: expected lightning and grouped_query alone, each the same in all layers")
        for name, pair in (("alpha", write.pair(block["skip"])), ("beta", write.pair(block["residual"]))):
            for part, factor in zip((PREFIX[kind], "mlp"), pair, strict=True):
                if plain.setdefault(f"{part}_{name}_factor", factor) != factor:
                    raise MismatchError("residual, skip: differ between layers; expected the same in all of a kind")
    return {
        **write.write_language(model),
        **plain,
        **sizes(model, attentions),
        "layer_types": [LINEAR if block["attention"]["type"] == "lightning" else FULL for block in model.blocks],
        "hidden_act": "silu",
        "intermediate_size": of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": of_type(layer["router"], "ffn.router", "top_k")["k"],
    }


def sizes(model: Language, attentions: dict[str, Plain]) -> Plain:
    """The sizes of both kinds of attention."""
    first = next(iter(attentions.values()))
    heads = first["heads"]
    size = model.dim // heads if first["head_dim"] is None else first["head_dim"]
    plain: Plain = {"num_attention_heads": heads, "head_dim": size, "sliding_window": None}
    if "lightning" in attentions:
        plain["block_size"] = attentions["lightning"]["block"]
    full = attentions.get("grouped_query", {"kv_heads": None, "window": None, "partial": 1.0})
    plain["num_key_value_heads"] = heads if full["kv_heads"] is None else full["kv_heads"]
    if full["partial"] != 1:
        plain["rotary_dim"] = int(size * full["partial"])
    return {**plain, "sliding_window": full["window"]}


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """Experts as in Mixtral."""
    moe = "mlp" if layout == FUSED else "block_sparse_moe"
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        ffn, attention = block["ffn"], block["attention"]
        yield from rules.pre_norms(theirs, ours, model)
        if attention["type"] == "lightning":
            yield from lightning(f"{theirs}.self_attn", f"{ours}.attention", attention, model.dim)
        else:
            yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", attention)
        yield Piece(f"{theirs}.{moe}.gate.weight", f"{ours}.ffn.router.gate.weight")
        hidden = ffn["experts"]["hidden"]
        yield from rules.experts(f"{theirs}.{moe}.experts", f"{ours}.ffn.experts", ffn["routed"], hidden, layout, NAMES)


def lightning(theirs: str, ours: str, spec: Plain, dim: int) -> Iterator[Piece]:
    """Queries, keys and values of a head stand together: [H, 3, d] rows."""
    heads = spec["heads"]
    size = dim // heads if spec["head_dim"] is None else spec["head_dim"]
    for i, name in enumerate("qkv"):
        yield Piece(
            f"{theirs}.qkv_proj.weight",
            f"{ours}.{name}.weight",
            WHOLE.unflatten(0, heads, size),
            shape=(3 * heads * size, dim),
            part=WHOLE.unflatten(0, heads, 3, size).index(i, axis=1),
        )
    for name, mine in (("out_proj", "o"), ("output_gate", "gate"), ("norm", "norm")):
        yield Piece(f"{theirs}.{name}.weight", f"{ours}.{mine}.weight")


FAMILY = Family(
    name="minimax",
    architecture="MiniMaxForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
    # noise of training, and how shared experts would be added if there were any
    harmless=frozenset({"router_jitter_noise", "shared_moe_mode"}),
    ignored=(DECAYS,),
)
