"""Parts that families share, from the fields of config.json to our plain description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.rotary import Rotary, rotary
from zoo.spec import Plain

LONGEST_ROW = 2048  # tokens of a training row, however many the checkpoint can read
WINDOWED = "sliding_attention"


def grouped(
    fields: Fields,
    *,
    bias: bool = False,
    out_bias: bool = False,
    kv_heads: int | None = None,
    head_dim: int | None = None,
) -> Plain:
    """Grouped-query attention: heads, key heads (as many as heads where there is no default) and head size (width /
    heads where there is none)."""
    heads, dim = fields.get("num_attention_heads", int), fields.get("hidden_size", int)
    size = fields.get("head_dim", int, head_dim)
    if heads < 1 or (size is None and dim % heads):
        raise fields.error("num_attention_heads", f"got {heads}, expected a number that hidden_size {dim} divides into")
    return {
        "type": "grouped_query",
        "heads": heads,
        "kv_heads": fields.get("num_key_value_heads", int, heads if kv_heads is None else kv_heads),
        "head_dim": dim // heads if size is None else size,
        "bias": bias,
        "out_bias": out_bias,
    }


def windows(fields: Fields, windowed: Callable[[int, int], bool], depth: int, *, start: int = 28) -> list[int | None]:
    """The sliding window of each layer in the manner of Qwen: `use_sliding_window` switches it on; `layer_types`, or
    else windowed(layer, max_window_layers), says where. start is the default of `max_window_layers`."""
    on, size = fields.get("use_sliding_window", bool, False), fields.get("sliding_window", int, 4096)
    above, types = fields.get("max_window_layers", int, start), layer_types(fields, depth)
    each = [windowed(i, above) if types is None else types[i] == WINDOWED for i in range(depth)]
    return [size if on and here else None for here in each]


def sparse(fields: Fields, depth: int, experts: int) -> list[bool]:
    """Whether each layer has experts, by `mlp_only_layers` and `decoder_sparse_step` (Qwen-MoE)."""
    without, step = fields.get("mlp_only_layers", list, []), fields.get("decoder_sparse_step", int, 1)
    if step < 1:
        raise fields.error("decoder_sparse_step", f"got {step}, expected 1 or more")
    return [i not in without and experts > 0 and (i + 1) % step == 0 for i in range(depth)]


def layer_types(fields: Fields, depth: int) -> list[str] | None:
    """`layer_types`, checked: full_attention or sliding_attention for each layer."""
    types = fields.get("layer_types", list, None)
    if types is None:
        return None
    unknown = [t for t in types if t not in (WINDOWED, "full_attention")]
    if unknown or len(types) != depth:
        raise fields.error("layer_types", f"got {types!r}, expected full_attention or {WINDOWED} for {depth} layers")
    return [str(t) for t in types]


def dense(fields: Fields, name: str = "intermediate_size", *, bias: bool = False, default: int | None = None) -> Plain:
    """A dense SwiGLU network; without a default its width has to be there."""
    fields.only("hidden_act", "silu", "swish")
    hidden = fields.get(name, int) if default is None else fields.get(name, int, default)
    plain: Plain = {"type": "dense", "hidden": hidden}
    return {**plain, "bias": True} if bias else plain


def moe(experts: Plain, routed: int, router: Plain, shared: Plain | None = None) -> Plain:
    """An MoE layer."""
    plain: Plain = {"type": "moe", "routed": routed, "experts": experts, "router": router}
    return plain if shared is None else {**plain, "shared": shared}


def chosen(k: int, **more: Any) -> Plain:
    """Softmax over the k chosen experts. With one the weight is the constant 1, which has to be asked for."""
    return {"type": "top_k", "k": k, **({"allow_constant": True} if k == 1 else {}), **more}


def swiglu(fields: Fields, name: str = "intermediate_size") -> Plain:
    """SwiGLU experts."""
    fields.only("hidden_act", "silu", "swish")
    return {"type": "swiglu", "hidden": fields.get(name, int)}


def sequential(attention: Plain, ffn: Plain, **more: Any) -> Plain:
    """A sequential block."""
    return {"type": "sequential", "attention": attention, "ffn": ffn, **more}


def language(
    fields: Fields,
    blocks: Sequence[Plain],
    *,
    eps: float = 1e-6,
    eps_name: str = "rms_norm_eps",
    tie: bool = False,
    ids: tuple[int | None, int | None, int | None] = (None, None, None),
    positions: Rotary | None = None,
    trunk: Plain | None = None,
    text: Plain | None = None,
) -> Language:
    """Blocks, positions and text as a language model.

    eps, tie and ids (bos, eos, pad) are the family's defaults; positions are read here where they are not given; trunk
    and text are further keys.
    """
    rope = (rotary(fields) if positions is None else positions).rope
    rows = fields.get("vocab_size", int)
    bos, eos, pad = (fields.raw(f"{name}_token_id", i) for name, i in zip(("bos", "eos", "pad"), ids, strict=True))
    tokenizer = {
        "type": "files",
        "vocab_size": rows,
        "bos": _within(bos, rows),
        "eos": [i for i in (eos if isinstance(eos, list) else [eos]) if _within(i, rows) is not None],
        "pad": _within(pad, rows),
    }
    longest = fields.get("max_position_embeddings", int, LONGEST_ROW)
    return Language(
        {
            "dim": fields.get("hidden_size", int),
            "norm_eps": fields.get(eps_name, float, eps),
            "rope": rope,
            **(trunk or {}),
        },
        tuple(blocks),
        {
            "tokenizer": tokenizer,
            "tie": fields.get("tie_word_embeddings", bool, tie),
            "length": max(min(longest, LONGEST_ROW), 2),
            **(text or {}),
        },
    )


def _within(i: Any, rows: int) -> int | None:
    """An id, or None where there is no such row (some checkpoints write -1 for none)."""
    return i if isinstance(i, int) and 0 <= i < rows else None
