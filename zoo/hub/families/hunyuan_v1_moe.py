"""Hunyuan-A13B: norms over query and key heads after rotation, a shared network in every layer, a number of chosen
experts per layer (Hunyuan-A13B technical report, 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import Piece
from zoo.hub.conversion.rotary import rotary
from zoo.spec import Plain

# Options of the publisher's own code that would make another model.
FIXED: dict[str, tuple[object, ...]] = {
    "use_qk_norm": (True,),
    "use_mixed_mlp_moe": (True, 1),
    "use_rotary_pos_emb": (True,),
    "norm_topk_prob": (True,),
    "norm_type": ("rms",),
    "mlp_bias": (False,),
    "use_cla": (False,),
    "use_mla": (False,),
    "moe_layer_num_skipped": (0,),
    "moe_drop_tokens": (False,),
    "moe_random_routing_dropped_token": (False,),
    "group_limited_greedy": (False,),
    "n_group": (False, 0, 1),
    "topk_group": (False, 0, 1),
    "routed_scaling_factor": (False, 1, 1.0),
    "position_embedding_xdrope": (False,),
    "add_classification_head": (False,),
    "class_num": (0,),
}
# Ids beyond those that end a text, the pooling of classifiers, and options of what is off above.
HARMLESS = frozenset({
    "cla_share_factor", "dense_list", "pool_type", "org_vocab_size", "num_media_embeds", "mask_init_id",
    "eod_token_id", "pad_id", "im_start_id", "im_end_id", "im_newline_id", "image_token_id", "text_start_id",
    "text_end_id", "video_start_id", "video_end_id", "skip_cls_token", "capacity_factor",
})  # fmt: skip
UNREAD = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # stand beside alpha, and are not looked at


def spec(fields: Fields) -> Language:
    """`moe_topk`, `moe_intermediate_size` and `num_shared_expert` are one number, or one for each layer."""
    for name, allowed in FIXED.items():
        fields.only(name, *allowed)
    depth, bias = fields.count(), fields.get("attention_bias", bool, False)
    size = fields.get("attention_head_dim", int, None)
    attention = read.grouped(fields, bias=bias, out_bias=bias, head_dim=size)
    attention |= {"qk_norm": True, "qk_norm_place": "after"}
    experts = read.swiglu(fields)
    for name, value in (("moe_intermediate_size", experts["hidden"]), ("num_shared_expert", 1)):
        if any(found != value for found in each(fields, (name,), depth, value)):
            raise fields.error(name, f"got {fields.raw(name)!r}, supported is {value} in every layer")
    routed = fields.get(("num_experts", "num_local_experts"), int, 1)
    chosen = each(fields, ("moe_topk", "num_experts_per_tok"), depth, 1)
    layers = [read.moe(experts, routed, read.chosen(k), {"count": 1, "hidden": experts["hidden"]}) for k in chosen]
    blocks = [read.sequential(attention, layer) for layer in layers]
    return read.language(fields, blocks, eps=1e-5, ids=(1, 2, 0), positions=rotary(fields, adapt=by_alpha))


def each(fields: Fields, names: tuple[str, ...], depth: int, default: int) -> list[int]:
    """A number for each layer, from one number or a list of them, in the first spelling that is there."""
    found = next((value for name in names if (value := fields.raw(name)) is not None), default)
    for name in names:
        fields.raw(name)
    numbers = found if isinstance(found, list) else [found] * depth
    if len(numbers) < depth or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
        raise fields.error(names[0], f"got {found!r}, expected a number, or one for each of {depth} layers")
    return [int(n) for n in numbers[:depth]]


def by_alpha(form: Fields, scaling: Plain) -> Plain:
    """`dynamic` with alpha stretches by alpha at any length."""
    alpha = form.get("alpha", float, None)
    if scaling["type"] != "dynamic" or not alpha:
        return scaling
    for name in UNREAD:
        form.raw(name)
    return {"type": "ntk", "alpha": alpha}


def config(model: Language) -> Plain:
    """The fields of Hunyuan-A13B."""
    attention = write.attention(model)
    if not attention["qk_norm"]:
        raise MismatchError("attention.qk_norm: is false, expected true")
    chosen = [of_type(of_type(b["ffn"], "ffn", "moe")["router"], "ffn.router", "top_k")["k"] for b in model.blocks]
    layer = model.same("ffn", without_router)
    hidden = of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"]
    return {
        **positions(model),
        **write.write_grouped(model),
        "attention_bias": attention["bias"],
        "hidden_act": "silu",
        "intermediate_size": hidden,
        "moe_intermediate_size": hidden,
        "num_experts": layer["routed"],
        "moe_topk": chosen[0] if len(set(chosen)) == 1 else chosen,
        "num_shared_expert": 1,
    }


def without_router(block: Plain) -> Plain:
    """A layer with experts but for its router, which may differ between blocks."""
    plain: dict[str, Any] = of_type(block["ffn"], "ffn", "moe")
    return {key: value for key, value in plain.items() if key != "router"}


def positions(model: Language) -> Plain:
    """The common fields; a stretch by alpha goes by the name dynamic."""
    rope = model.trunk["rope"]
    scaling = rope["scaling"]
    if scaling is None or scaling["type"] != "ntk":
        return write.write_language(model)
    plain: Plain = {"type": "dynamic", "factor": 1.0, "context": model.text["length"]}
    fields = write.write_language(replace(model, trunk={**model.trunk, "rope": {**rope, "scaling": plain}}))
    for form in ("rope_scaling", "rope_parameters"):
        fields[form] = {**fields[form], "alpha": scaling["alpha"]}
    return fields


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of Hunyuan-A13B."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        ffn = block["ffn"]
        hidden = ffn["experts"]["hidden"]
        yield from rules.pre_norms(theirs, ours, model)
        norms = ("query_layernorm", "key_layernorm")
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"], norms)
        yield Piece(f"{theirs}.mlp.gate.wg.weight", f"{ours}.ffn.router.gate.weight")
        yield from rules.experts(f"{theirs}.mlp.experts", f"{ours}.ffn.experts", ffn["routed"], hidden, layout)
        yield from rules.glu(f"{theirs}.mlp.shared_mlp", f"{ours}.ffn.shared_experts", ffn["shared"]["hidden"])


FAMILY = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
    harmless=HARMLESS,
)
