"""Latent attention in the fields and names of DeepSeek-V2, which DeepSeek-V3 and LongCat-Flash kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.hub.conversion import rules
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import Piece
from zoo.hub.conversion.rotary import Rotary, rotary
from zoo.spec import Plain

UNUSED = frozenset({"head_dim"})  # computed from other sizes, whatever is written there


def read_latent(fields: Fields) -> Plain:
    """Latent attention. Every head expands keys of its own, so there are no groups of heads."""
    heads = fields.get("num_attention_heads", int)
    fields.only("num_key_value_heads", heads)
    nope, rope = fields.get("qk_nope_head_dim", int, 128), fields.get("qk_rope_head_dim", int, 64)
    fields.only("qk_head_dim", nope + rope)
    return {
        "type": "latent",
        "heads": heads,
        "q_rank": fields.optional("q_lora_rank", int, 1536),
        "kv_rank": fields.get("kv_lora_rank", int, 512),
        "nope_dim": nope,
        "rope_dim": rope,
        "value_dim": fields.get("v_head_dim", int, 128),
        "bias": fields.get("attention_bias", bool, False),
    }


def read_positions(fields: Fields, pairs: str, *, theta: float = 10000.0) -> Rotary:
    """Rotary positions of all of `qk_rope_head_dim`, in adjacent pairs or in halves."""
    return Rotary({**rotary(fields, theta=theta).rope, "pairs": pairs})


def attention(model: Language) -> Plain:
    """The latent attention of all blocks. Raises MismatchError where they differ."""
    found: Plain = model.same("attention", lambda block: of_type(block["attention"], "attention", "latent"))
    return found


def write_latent(model: Language) -> Plain:
    """What `read_latent` reads."""
    a = attention(model)
    if a["scale"] is not None:
        raise MismatchError(f"attention.scale: is {a['scale']}, expected none")
    return {
        "num_attention_heads": a["heads"],
        "num_key_value_heads": a["heads"],
        "q_lora_rank": a["q_rank"],
        "kv_lora_rank": a["kv_rank"],
        "qk_nope_head_dim": a["nope_dim"],
        "qk_rope_head_dim": a["rope_dim"],
        "qk_head_dim": a["nope_dim"] + a["rope_dim"],
        "v_head_dim": a["value_dim"],
        "attention_bias": a["bias"],
    }


def latent(theirs: str, ours: str, spec: Mapping[str, Any]) -> Iterator[Piece]:
    """The tensors of latent attention; without a latent of queries these have one map."""
    if spec["q_rank"] is None:
        yield from rules.linear(f"{theirs}.q_proj", f"{ours}.q")
    else:
        yield from rules.linear(f"{theirs}.q_a_proj", f"{ours}.q_down", spec["bias"])
        yield from rules.linear(f"{theirs}.q_a_layernorm", f"{ours}.q_norm")
        yield from rules.linear(f"{theirs}.q_b_proj", f"{ours}.q_up")
    yield from rules.linear(f"{theirs}.kv_a_proj_with_mqa", f"{ours}.kv_down", spec["bias"])
    yield from rules.linear(f"{theirs}.kv_a_layernorm", f"{ours}.kv_norm")
    yield from rules.linear(f"{theirs}.kv_b_proj", f"{ours}.kv_up")
    yield from rules.linear(f"{theirs}.o_proj", f"{ours}.o", spec["bias"])
