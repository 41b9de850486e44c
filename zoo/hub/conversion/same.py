"""Whether two descriptions are one model as far as its outputs go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.hub.conversion.language import Language
from zoo.hub.conversion.write import pair
from zoo.spec import Plain

# What only training or the choice of a kernel reads, by the type of the part.
UNREAD: dict[str, tuple[str, ...]] = {
    "moe": ("balance", "backend", "recompute", "dispatch", "allow_future"),
    "top_k": ("allow_constant",),
    "linear": ("jitter", "init_std"),
    "routed_attention": ("type", "balance", "allow_future"),
    "lightning": ("block",),
    "text": ("length", "tokenizer", "vocab"),
}


def differences(a: Language, b: Language) -> list[str]:
    """Paths at which two language models compute different things, each with both values."""
    return list(_walk(_essence(a), _essence(b), ""))


def _essence(model: Language) -> Plain:
    """The description without what outputs do not depend on, with values in place of defaults that mean them."""
    trunk = {key: value for key, value in model.trunk.items() if key not in ("checkpoint", "cond")}
    blocks = [_read(block, model.dim) for block in model.blocks]
    text = _read({"type": "text", **model.text}, model.dim)
    rows = model.text["vocab"] or model.text["tokenizer"]["vocab_size"]
    return {"backbone": {**trunk, "layers": blocks}, "text": {**text, "rows": rows}}


def _read(plain: Any, dim: int) -> Any:
    if isinstance(plain, list):
        return [_read(value, dim) for value in plain]
    if not isinstance(plain, dict):
        return plain
    left = {k: _read(v, dim) for k, v in plain.items() if k not in UNREAD.get(str(plain.get("type")), ())}
    if plain.get("type") == "grouped_query":
        left["kv_heads"] = plain["heads"] if plain["kv_heads"] is None else plain["kv_heads"]
        left["head_dim"] = dim // plain["heads"] if plain["head_dim"] is None else plain["head_dim"]
        left["scale"] = left["head_dim"] ** -0.5 if plain["scale"] is None else plain["scale"]
    if plain.get("type") == "sequential":
        left |= {name: list(pair(plain[name])) for name in ("residual", "skip")}
    if plain.get("type") == "attention_experts":
        heads = plain["attention"]
        sizes = {
            "kv_heads": heads["kv_heads"] or heads["heads"],
            "head_dim": heads["head_dim"] or dim // heads["heads"],
        }
        left["attention"] = _read({**heads, **sizes, "type": "routed_attention"}, dim)
    return left


def _walk(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.get("type") == b.get("type"):
        for key in sorted(a.keys() | b.keys()):
            yield from _walk(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _walk(x, y, f"{path}[{i}]")
    elif a != b:
        yield f"{path}: {_short(a)}, not {_short(b)}"


def _short(value: Any) -> str:
    shown = value.get("type", "...") if isinstance(value, dict) else value
    text = repr(shown)
    return text if len(text) <= 60 else text[:57] + "..."
