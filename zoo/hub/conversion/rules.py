"""Generators of pieces for the parts that families share. `theirs` and `ours` are prefixes of names without a dot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zoo.hub.conversion.family import FUSED
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import WHOLE, Piece
from zoo.spec import Plain

GLU = ("gate_proj", "up_proj", "down_proj")


def frame(model: Language, *, embedding: str = "model.embed_tokens", head: str = "lm_head") -> Iterator[Piece]:
    """Embedding, final norm and head with its bias; the head of a tied model repeats the embedding."""
    text = f"modalities.{model.name}"
    yield Piece(f"{embedding}.weight", f"{text}.embedding.weight")
    yield from norm("model.norm", "backbone.norm", model)
    if model.text["head_bias"]:
        yield Piece(f"{head}.bias", f"{text}.head_bias")
    if model.text["tie"]:
        yield Piece(f"{head}.weight", f"{text}.embedding.weight", again=True)
    else:
        yield Piece(f"{head}.weight", f"{text}.head.weight")


def blocks(model: Language) -> Iterator[tuple[str, str, Plain]]:
    """(theirs, ours, the block's mapping) for every block."""
    for i, block in enumerate(model.blocks):
        yield f"model.layers.{i}", f"backbone.blocks.{i}", block


def decoder(model: Language, mixture: Callable[[str, str, Plain], Iterator[Piece]] | None = None) -> Iterator[Piece]:
    """A model of blocks of grouped-query attention with norms before the branches, whose networks are dense SwiGLU or
    what mixture(block of theirs, our feed-forward part, its mapping) gives."""
    yield from frame(model)
    for theirs, ours, block in blocks(model):
        ffn = block["ffn"]
        yield from pre_norms(theirs, ours, model)
        yield from grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        if ffn["type"] == "dense" or mixture is None:
            yield from glu(f"{theirs}.mlp", f"{ours}.ffn", ffn["hidden"], bias=ffn["bias"])
        else:
            yield from mixture(theirs, f"{ours}.ffn", ffn)


def linear(theirs: str, ours: str, bias: bool = False) -> Iterator[Piece]:
    """A map, with its bias where it has one."""
    yield Piece(f"{theirs}.weight", f"{ours}.weight")
    if bias:
        yield Piece(f"{theirs}.bias", f"{ours}.bias")


def norm(theirs: str, ours: str, model: Language) -> Iterator[Piece]:
    """A norm of the trunk's kind: LayerNorm has a bias."""
    yield from linear(theirs, ours, bias=model.trunk["norm"] == "layer")


def pre_norms(theirs: str, ours: str, model: Language) -> Iterator[Piece]:
    """The norms of a block that stand before its branches."""
    yield from norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm", model)
    yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}.ffn_norm", model)


def post_norms(theirs: str, ours: str, model: Language) -> Iterator[Piece]:
    """The norms of a block that stand after its branches."""
    yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}.attention_post_norm", model)
    yield from norm(f"{theirs}.post_feedforward_layernorm", f"{ours}.ffn_post_norm", model)


def grouped(
    theirs: str, ours: str, spec: Mapping[str, Any], norms: tuple[str, str] = ("q_norm", "k_norm")
) -> Iterator[Piece]:
    """Grouped-query attention, with biases, norms and sinks as described."""
    for name in "qkv":
        yield from linear(f"{theirs}.{name}_proj", f"{ours}.{name}", spec["bias"])
    yield from linear(f"{theirs}.o_proj", f"{ours}.o", spec["out_bias"])
    if spec["qk_norm"]:
        for name, ours_name in zip(norms, ("q_norm", "k_norm"), strict=True):
            yield Piece(f"{theirs}.{name}.weight", f"{ours}.{ours_name}.weight")
    if spec["sinks"]:
        yield Piece(f"{theirs}.sinks", f"{ours}.sinks")


def glu(
    theirs: str, ours: str, hidden: int, names: tuple[str, str, str] = GLU, *, bias: bool = False
) -> Iterator[Piece]:
    """A dense SwiGLU network, or all shared experts together: gate and up in one tensor of ours, gate first."""
    gate, up, down = names
    if bias:
        yield Piece(f"{theirs}.{gate}.bias", f"{ours}.gate_up_bias", WHOLE.rows(0, hidden))
        yield Piece(f"{theirs}.{up}.bias", f"{ours}.gate_up_bias", WHOLE.rows(hidden, 2 * hidden))
        yield Piece(f"{theirs}.{down}.bias", f"{ours}.down_bias")
    yield Piece(f"{theirs}.{gate}.weight", f"{ours}.gate_up", WHOLE.rows(0, hidden))
    yield Piece(f"{theirs}.{up}.weight", f"{ours}.gate_up", WHOLE.rows(hidden, 2 * hidden))
    yield Piece(f"{theirs}.{down}.weight", f"{ours}.down")


def experts(
    theirs: str, ours: str, count: int, hidden: int, layout: str, names: tuple[str, str, str] = GLU
) -> Iterator[Piece]:
    """Routed SwiGLU experts, stacked as ours are (FUSED) or one by one under these names."""
    if layout == FUSED:
        yield Piece(f"{theirs}.gate_up_proj", f"{ours}.gate_up")
        yield Piece(f"{theirs}.down_proj", f"{ours}.down")
        return
    gate, up, down = names
    for i in range(count):
        one = WHOLE.index(i)
        yield Piece(f"{theirs}.{i}.{gate}.weight", f"{ours}.gate_up", one.rows(0, hidden))
        yield Piece(f"{theirs}.{i}.{up}.weight", f"{ours}.gate_up", one.rows(hidden, 2 * hidden))
        yield Piece(f"{theirs}.{i}.{down}.weight", f"{ours}.down", one)
