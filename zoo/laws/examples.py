"""Small descriptions of any registered part: its required keys filled by their types, and one variant per choice."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

from zoo import registry
from zoo.spec import Plain

SIZES: Plain = {
    "hidden": 6, "heads": 2, "dim": 8, "vocab": 64,
    "factor": 2.0, "alpha": 2.0, "context": 64, "short": [1.0, 2.0], "long": [1.0, 3.0],
}  # fmt: skip
"""Values of required numbers that are not 2 or 0.5: a context beyond which no law goes, and what heads of 4 need."""

BASE: dict[str, Plain] = {
    "expert": {"type": "swiglu", "hidden": 6},
    "router": {"type": "top_k"},
    "ffn": {
        "type": "moe",
        "routed": 4,
        "experts": {"type": "swiglu", "hidden": 6},
        "router": {"type": "top_k"},
        "allow_future": True,
    },
}
"""What stands in a socket when a case is about something else."""

DENSE: Plain = {"type": "dense", "hidden": 12}
"""A dense layer that BASE's four routed experts can be cut from, two from each of two specialists."""

TWO: list[Plain] = [{"hidden": 6}, {"hidden": 4, "bias": True}]

HEADS: Plain = {"routed": 3, "heads": 2, "allow_future": True}

EXTRA: dict[tuple[str, str], list[Plain]] = {
    ("router", "top_k"): [
        {"k": 3, "mask_zero": True},
        {"k": 1, "normalize": "all"},
        {"k": 3, "score": "sigmoid", "normalize": "none", "scale": 2.5},
        {"groups": 2, "top_groups": 1, "k": 2},
        {"groups": 2, "equal_groups": True, "k": 2, "normalize": "all", "expert_scale": True},
        {"groups": 2, "top_groups": 1, "group_score": "top2", "score": "sigmoid", "bias": True},
        {"gate": {"jitter": 0.3}},
        {"gate": {"type": "gumbel"}},
    ],
    ("router", "top_p"): [
        {"p": 1.0},
        {"p": 0.5, "max_k": 2},
        {"p": 0.5, "strict": True, "normalize": "all"},
        {"p": 0.5, "min_k": 2},
        {"combine": "sparsemixer", "near_tie": 0.2},
        {"gate": {"jitter": 0.3}},
    ],
    ("router", "expert_choice"): [
        {"offers": 2},
        {"offers": 1, "fill": True, "share": 0.3},
        {"offers": 3, "select": "threshold", "score": "sigmoid"},
        {"gate": {"jitter": 0.3}},
    ],
    ("router", "sequence_choice"): [{"k": 1, "score": "sigmoid", "normalize": "none"}],
    ("adapter", "lora_experts"): [
        {
            "counts": [1, 3, 0, 2],
            "ranks": [2, 3],
            "targets": ["attention.[qo]", "ffn.*"],
            "balance": [{"type": "switch"}],
        },
        {"router": {"type": "top_p"}, "dropout": 0.3},
    ],
    ("expert", "lora"): [{"rank": 3, "dropout": 0.2}],
    ("expert", "latent"): [
        {"group": 2},
        {"group": 2, "down": "factored", "inputs": "joint"},
        {"group": 1, "down": "factored", "larger": True},
    ],
    ("router", "dense_to_sparse"): [
        {"temperature": {"start": 0.4}, "threshold": 0.1, "hard": None, "noise": 0.0},
        {"temperature": {"start": 0.4}, "threshold": 0.1, "hard": 0, "bias": True},
        {"temperature": {"start": 0.4}, "hard": 0, "weights": "gumbel"},
        {"temperature": {"end": 0.5}, "threshold": 0.1, "noise_end": 0.5, "weights": "gumbel"},
    ],
    ("router", "sparse_mixer"): [{"near_tie": 0.4}, {"k": 1, "near_tie": 0.4}],
    ("expert", "swiglu"): [{"bias": True, "alpha": 1.702, "limit": 0.5, "offset": 1.0}],
    ("ffn", "dense"): [{"bias": True, "alpha": 1.702, "limit": 0.5, "offset": 1.0}],
    ("block", "sequential"): [{"norm": "stream", "residual": [0.5, 0.75], "skip": [1.25, 1.5]}],
    ("attention", "lightning"): [{"block": 3, "head_dim": 6}],
    ("block", "attention_experts"): [
        {"attention": {**HEADS, "router": {"type": "top_k", "k": 3}, "kv_heads": 1, "head_dim": 6, "out_bias": True}},
        {"attention": {**HEADS, "router": {"type": "top_p"}, "policy": [{"type": "capacity", "factor": 0.8}]}},
        {"attention": {**HEADS, "router": {"type": "top_k"}, "window": 2}},
        {"attention": {**HEADS, "router": {"type": "top_k"}, "own_keys": True}, "parallel": True},
    ],
    ("block", "shortcut"): [
        {"dense": TWO, "source": "input", "combine": "sigmoid"},
        {"dense": TWO, "source": "attention", "own_norm": False},
        {"dense": TWO, "source": "output", "own_norm": False, "combine": "softmax", "combine_bias": True},
    ],
    ("block", "double_gating"): [
        {"dense": [], "source": "input"},
        {"dense": TWO, "source": "output"},
    ],
    ("attention", "grouped_query"): [
        {"heads": 4, "kv_heads": 2},
        {"heads": 4, "kv_heads": 2, "head_dim": 6, "qk_norm": True, "bias": True, "out_bias": True},
        {"qk_norm": True, "qk_norm_over": "all", "clip": 0.5, "scale": 0.3},
        {"qk_norm": True, "qk_norm_place": "after", "partial": 0.5},
        {"window": 3},
        {"heads": 4, "kv_heads": 2, "window": 2, "sinks": True},
        {"partial": 0.0},
    ],
    ("attention", "selective"): [
        {"router": {"type": "top_k", "k": 1, "normalize": "all"}, "balance": [{"type": "switch"}]},
        {"router": {"type": "expert_choice", "select": "threshold"}},
        {"router": {"type": "expert_choice", "offers": 1}, "allow_future": True},
    ],
    ("attention", "latent"): [{"q_rank": 4, "rank_scale": True, "bias": True}],
    ("gate", "linear"): [{"jitter": 0.3}],
    ("gate", "residual"): [{"gate": {"type": "mlp", "hidden": 5}}, {"gate": {"jitter": 0.3}, "spread": 1.0}],
    ("gate", "pre_gated"): [
        {
            "trunk": {
                "dim": 6,
                "layers": [
                    {
                        "repeat": 2,
                        "block": {
                            "type": "sequential",
                            "attention": {"heads": 1},
                            "ffn": {"type": "dense", "hidden": 5},
                        },
                    }
                ],
            }
        },
    ],
    ("gate", "recurrent"): [{"state": 3}],
    ("gate", "activation"): [
        {"temperature": {"start": 2.0, "end": 0.5, "steps": 4}},
        {"activation": "none", "temperature": {"start": 0.5}},
    ],
    ("gate", "warm_up"): [{"gate": {"type": "residual"}}, {"gate": {"type": "recurrent", "state": 3}, "steps": 3}],
    ("policy", "capacity"): [
        {"factor": 0.6},
        {"factor": 0.6, "null_too": True, "tau": 0.5, "first_choices": True},
        {"factor": 0.6, "level": "device", "devices": 2, "drop_first": [0]},
        {"factor": 0.6, "priority": "random", "seed": 3, "inference": True},
        {"factor": 8.0},
    ],
    ("policy", "reroute"): [{"devices": 2}, {"devices": 2, "level": "device", "factor": 0.6}],
    ("balance", "switch"): [
        {"groups": 2},
        {"groups": 2, "once": True, "scope": "sequence"},
        {"groups": 2, "probability": "local"},
        {"groups": 2, "routed_share": 0.6, "scope": "global_exact"},
        {"score": "sigmoid", "scope": "sequence", "count": "best"},
        {"routed_share": 0.6},
        {"null_weight": 0.75},
        {"scope": "global_exact", "count": "tokens"},
        {"scope": "global_exact", "count": "first"},
    ],
    ("balance", "bias"): [{"routed_share": 0.5}, {"routed_share": 0.5, "target": "routed", "step": "proportional"}],
}
"""Variants that a change of one key from the defaults does not reach."""


SURGERIES: dict[str, tuple[Plain, Plain]] = {
    "spawn": ({}, {"backbone.layers.0.block.ffn": {"type": "dense", "hidden": 6}}),
    "merge": ({"stages": ["a", "b"], "owners": {"text": "b"}}, {"backbone.layers.0.block.ffn": DENSE}),
}
"""Keys of a surgery, and by dotted path what its sources have in another way than the model operated on."""


def fill(cls: type) -> Plain:
    """The required keys of a spec class with small values. Raises ValueError naming a key of unknown type."""
    hints = typing.get_type_hints(cls)
    return {f.name: _value(f.name, hints[f.name]) for f in _fields(cls) if _required(f)}


def variants(kind: str, name: str) -> Iterator[tuple[str, Plain]]:
    """(label, description) of a part: its defaults, every other choice of one key at a time, and EXTRA."""
    cls = registry.get(kind, name)
    base = {"type": name, **fill(cls)}
    yield name, base
    hints = typing.get_type_hints(cls)
    for f in _fields(cls):
        default = base.get(f.name, None if _required(f) else f.default)
        for choice in _choices(hints[f.name]):
            if choice != default:
                yield f"{name}({f.name}={choice})", {**base, f.name: choice}
    for more in EXTRA.get((kind, name), []):
        yield f"{name}({', '.join(f'{k}={v}' for k, v in more.items())})", {**base, **more}


def _fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.init]


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return (False, True) if hint is bool else ()


def _value(name: str, hint: Any) -> Any:
    """A small value of a type."""
    if name in SIZES:
        return SIZES[name]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return args[0]
    if origin in (Union, types.UnionType):
        return None if type(None) in args else _value(name, args[0])
    if origin is tuple:
        return [_value(name, args[0])]
    if dataclasses.is_dataclass(hint):
        kind = getattr(hint, "kind", None)
        return fill(typing.cast(type, hint)) if kind is None else _socket(kind, typing.cast(type, hint))
    plain = {int: 2, float: 0.5, bool: False, str: "a"}
    if hint not in plain:
        raise ValueError(f"{name}: required and of type {hint}; the laws cannot make up a value for it")
    return plain[hint]


def _socket(kind: str, hint: type) -> Plain:
    """What BASE puts there, if it may stand there; else the part that the hint names, or the first of the kind."""
    names = registry.names(kind)
    name = next((n for n in names if registry.get(kind, n) is hint), None) if registry.is_registered(hint) else None
    if kind in BASE and name in (None, BASE[kind]["type"]):
        return dict(BASE[kind])
    name = name or str(getattr(hint, "default_type", names[0]))
    return {"type": name, **fill(registry.get(kind, name))}
