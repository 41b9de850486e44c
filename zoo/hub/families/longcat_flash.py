"""LongCat-Flash: blocks of two attentions and two dense networks around one MoE layer, of whose experts a third answer
their input (arXiv 2509.01322).

Releases hold the maps of routed experts alone. transformers 5.23 allocates gate and up maps for the others as well,
never reads them, saves them, and does not open files without them; such maps are left unread here and not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.hub.conversion import fine, read, rules, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.latent import latent, read_latent, read_positions, write_latent
from zoo.hub.conversion.pieces import Piece
from zoo.hub.conversion.surplus import PREDICTORS
from zoo.spec import Plain

SUBLAYERS = 2


def moe(fields: Fields) -> Plain:
    """The MoE layer: weights of the softmax over all experts, whose choice a bias corrects. A router with a bias of its
    map is refused: the publisher's code and transformers hold one and leave it out, other libraries add it."""
    fields.only("router_bias", False)
    fields.only("router_dtype", "float32")  # routers compute in it here
    fields.only("norm_topk_prob", False)
    fields.only("zero_expert_type", "identity")
    router = {
        "type": "top_k",
        "k": fields.get(("moe_topk", "num_experts_per_tok"), int, 12),
        "normalize": "all",
        "bias": True,
        "scale": fields.get("routed_scaling_factor", float, 6.0),
    }
    hidden = fields.get(("expert_ffn_hidden_size", "moe_intermediate_size"), int, 2048)
    routed = fields.get(("n_routed_experts", "num_local_experts"), int, 512)
    copies = fields.optional("zero_expert_num", int, 256) or 0
    layer = read.moe({"type": "swiglu", "hidden": hidden}, routed, router)
    return {**layer, "null_experts": {"copy": copies}} if copies else layer


def spec(fields: Fields) -> Language:
    """`num_hidden_layers` counts blocks or, as transformers writes it, sub-layers."""
    depth = fields.count("num_layers")
    fields.only("num_hidden_layers", depth, SUBLAYERS * depth)
    fields.only("attention_method", "MLA")
    fields.only("mla_scale_q_lora", True)
    fields.only("mla_scale_kv_lora", True)
    attention = read_latent(fields) | {"rank_scale": True}
    if attention["q_rank"] is None:
        raise fields.error("q_lora_rank", "got null, expected a number: queries always have a latent here")
    fields.only("head_dim", attention["rope_dim"])
    fields.only("hidden_act", "silu", "swish")
    dense = {"type": "dense", "hidden": fields.get(("ffn_hidden_size", "intermediate_size"), int, 12288)}
    block = {
        "type": "shortcut",
        "attention": attention,
        "dense": [dense] * SUBLAYERS,
        "moe": moe(fields),
        "source": "attention",
        "own_norm": False,
    }
    positions = read_positions(fields, "adjacent", theta=1e7)
    return read.language(fields, [block] * depth, eps=1e-5, ids=(1, 2, None), positions=positions)


def config(model: Language) -> Plain:
    """The fields of LongCat-Flash."""
    block = model.same("block", lambda block: of_type(block, "block", "shortcut"))
    layer = block["moe"]
    networks = [of_type(dense, "dense", "dense")["hidden"] for dense in block["dense"]]
    if len(networks) != SUBLAYERS or networks[0] != networks[1]:
        raise MismatchError(f"dense: has widths {networks}, expected {SUBLAYERS} equal ones")
    fields = write.write_language(model)
    fields.pop("num_hidden_layers")
    router = of_type(layer["router"], "moe.router", "top_k")
    return {
        **fields,
        **write_latent(model),
        "num_layers": model.depth,
        "head_dim": block["attention"]["rope_dim"],
        "attention_method": "MLA",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "hidden_act": "silu",
        "ffn_hidden_size": networks[0],
        "expert_ffn_hidden_size": of_type(layer["experts"], "moe.experts", "swiglu")["hidden"],
        "n_routed_experts": layer["routed"],
        "zero_expert_num": layer["null_experts"]["copy"],
        "zero_expert_type": "identity",
        "moe_topk": router["k"],
        "routed_scaling_factor": router["scale"],
        "router_bias": False,
        "norm_topk_prob": False,
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """Lists hold one part per sub-layer."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        for i, dense in enumerate(block["dense"]):
            yield from rules.norm(f"{theirs}.input_layernorm.{i}", f"{ours}.attention_norm.{i}", model)
            yield from rules.norm(f"{theirs}.post_attention_layernorm.{i}", f"{ours}.dense_norm.{i}", model)
            yield from latent(f"{theirs}.self_attn.{i}", f"{ours}.attention.{i}", block["attention"])
            yield from rules.glu(f"{theirs}.mlps.{i}", f"{ours}.dense.{i}", dense["hidden"])
        moe, routed = block["moe"], f"{theirs}.mlp.experts"
        yield Piece(f"{theirs}.mlp.router.classifier.weight", f"{ours}.moe.router.gate.weight")
        yield Piece(f"{theirs}.mlp.router.e_score_correction_bias", f"{ours}.moe.router.bias")
        yield from rules.experts(routed, f"{ours}.moe.experts", moe["routed"], moe["experts"]["hidden"], layout)


def unread(content: Mapping[str, Any], model: Language) -> tuple[str, ...]:
    """Maps of experts that have none."""
    moe = model.blocks[0]["moe"]
    first, copies = moe["routed"], moe["null_experts"]["copy"]
    numbers = "|".join(str(first + i) for i in range(copies))
    return (rf"model\.layers\.\d+\.mlp\.experts\.({numbers})\.(gate|up)_proj\.weight",) if copies else ()


FAMILY = Family(
    name="longcat_flash",
    architecture="LongcatFlashForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    harmless=fine.SPLIT | {PREDICTORS},
    ignored=(r"model\.mtp\..*",),  # predicts further tokens
    unread=unread,
)
