"""Parts that families share, from our plain description (every default written out) to fields of config.json."""

from __future__ import annotations

from typing import Any

from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.read import WINDOWED
from zoo.hub.conversion.rotary import write_rotary
from zoo.spec import Plain


def write_language(model: Language, *, eps_name: str = "rms_norm_eps", partial: float = 1.0) -> Plain:
    """What `read.language` reads."""
    tokenizer = of_type(model.text["tokenizer"], "text.tokenizer", "files")
    eos = list(tokenizer["eos"])
    return {
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        eps_name: model.trunk["norm_eps"],
        "vocab_size": tokenizer["vocab_size"],
        "max_position_embeddings": model.text["length"],
        "tie_word_embeddings": model.text["tie"],
        "bos_token_id": tokenizer["bos"],
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": tokenizer["pad"],
        **write_rotary(model.trunk, partial),
    }


def write_grouped(model: Language) -> Plain:
    """What `read.grouped` reads, from attention that is the same in all blocks but for its window."""
    a = attention(model)
    return {
        "num_attention_heads": a["heads"],
        "num_key_value_heads": a["heads"] if a["kv_heads"] is None else a["kv_heads"],
        "head_dim": model.dim // a["heads"] if a["head_dim"] is None else a["head_dim"],
    }


def attention(model: Language) -> Plain:
    """The grouped-query attention of all blocks, its window left out. Raises MismatchError where blocks differ."""

    def read(block: Plain) -> Plain:
        of_type(block, "block", "sequential")
        plain = of_type(block["attention"], "attention", "grouped_query")
        return {key: value for key, value in plain.items() if key != "window"}

    found: Plain = model.same("attention", read)
    return found


def pair(scale: Any) -> tuple[float, float]:
    """Factors of attention and feed-forward layer, from one number for both or a pair."""
    attention, ffn = scale if isinstance(scale, list | tuple) else (scale, scale)
    return attention, ffn


def window(model: Language) -> int | None:
    """The sliding window that all blocks share."""
    found: int | None = model.same("attention.window", lambda block: block["attention"]["window"])
    return found


def write_windows(model: Language, *, layered: bool = True) -> Plain:
    """What `read.windows` reads; layered says whether the family has `layer_types`."""
    each = [block["attention"]["window"] for block in model.blocks]
    sizes = {size for size in each if size is not None}
    if len(sizes) > 1:
        raise MismatchError(f"attention.window: blocks have windows of {sorted(sizes)}; expected one size, or none")
    plain: Plain = {"use_sliding_window": bool(sizes), "sliding_window": sizes.pop() if sizes else None}
    if not layered:
        window(model)
        return plain
    types = ["full_attention" if size is None else WINDOWED for size in each]
    return {**plain, "max_window_layers": 0 if plain["use_sliding_window"] else model.depth, "layer_types": types}


def write_dense(model: Language) -> Plain:
    """What `read.dense` reads: the width of a dense network that is the same in all blocks."""
    hidden = model.same("ffn", lambda block: of_type(block["ffn"], "ffn", "dense")["hidden"])
    return {"intermediate_size": hidden, "hidden_act": "silu"}


def write_sparse(model: Language) -> Plain:
    """What `read.sparse` reads, and the width of dense layers where there are any."""
    dense = [i for i, block in enumerate(model.blocks) if block["ffn"]["type"] == "dense"]
    plain: Plain = {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    widths = {model.blocks[i]["ffn"]["hidden"] for i in dense}
    if len(widths) > 1:
        raise MismatchError(f"ffn.hidden: dense layers have widths {sorted(widths)}; expected one")
    return plain | {"intermediate_size": widths.pop()} if widths else plain


def mixture(model: Language) -> Plain:
    """The MoE layer that all blocks with experts share."""
    layers = [block["ffn"] for block in model.blocks if block["ffn"]["type"] == "moe"]
    if not layers:
        raise MismatchError("ffn: no block has experts")
    if any(layer != layers[0] for layer in layers):
        raise MismatchError("ffn: layers with experts differ; expected the same in all")
    return dict(layers[0])


def write_routed(model: Language, width: str = "intermediate_size") -> Plain:
    """SwiGLU experts of this width under a top-k router whose weights may be divided by their sum over the chosen."""
    layer = mixture(model)
    router = of_type(layer["router"], "ffn.router", "top_k")
    return {
        "hidden_act": "silu",
        width: of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_experts": layer["routed"],
        "num_experts_per_tok": router["k"],
        "norm_topk_prob": router["normalize"] == "selected",
    }
