"""Attention and rotary positions against transformers' modules, with left padding and a cache."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.spec import Plain, parse

DIM, ROWS, LENGTH = 32, 2, 12
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
OURS_YARN = {"type": "yarn", "factor": 4.0, "context": 16}
NAMES = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj",), "sinks": ("sinks",),
    "q_norm": ("q_norm", "query_layernorm", "q_a_layernorm"), "k_norm": ("k_norm", "key_layernorm"),
    "q_down": ("q_a_proj",), "q_up": ("q_b_proj",), "kv_down": ("kv_a_proj_with_mqa",), "kv_norm": ("kv_a_layernorm",),
    "kv_up": ("kv_b_proj",),
}  # fmt: skip
THEIRS = {theirs: ours for ours, names in NAMES.items() for theirs in names}


@dataclass(frozen=True)
class Peer:
    """model and class prefix in transformers, its config, and ours: attention, rope and epsilon."""

    model: str
    prefix: str
    config: Plain
    attention: Plain
    rope: Plain = field(default_factory=dict)
    window: int | None = None
    attention_class: str = "Attention"


MLA: Plain = {
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 6, "qk_nope_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
LATENT: Plain = {
    "type": "latent", "heads": 4, "q_rank": 12, "kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "value_dim": 6,
}  # fmt: skip
LONG: Plain = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 9.0]}
PEERS = {
    "mistral window": Peer("mistral", "Mistral", {"head_dim": 16, "sliding_window": 5},
                           {"kv_heads": 2, "head_dim": 16, "window": 5}, window=5),
    "mixtral": Peer("mixtral", "Mixtral", {"sliding_window": None}, {"kv_heads": 2}),
    "olmoe clip": Peer("olmoe", "Olmoe", {"clip_qkv": 0.5}, {"kv_heads": 2, "qk_norm": True, "qk_norm_over": "all",
                                                             "clip": 0.5}),
    "olmo2": Peer("olmo2", "Olmo2", {}, {"kv_heads": 2, "qk_norm": True, "qk_norm_over": "all"}),
    "hunyuan ntk": Peer("hunyuan_v1_moe", "HunYuanMoEV1",
                        {"head_dim": 8, "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 1.0,
                                             "alpha": 50.0}},
                        {"kv_heads": 2, "qk_norm": True, "qk_norm_place": "after"},
                        {"scaling": {"type": "ntk", "alpha": 50.0}}),
    "gpt_oss": Peer("gpt_oss", "GptOss", {"head_dim": 8, "sliding_window": 5, "num_hidden_layers": 1,
                                          "layer_types": ["sliding_attention"],
                                          "attention_bias": True, "rope_parameters": {**YARN, "truncate": False}},
                    {"kv_heads": 2, "bias": True, "out_bias": True, "sinks": True, "window": 5},
                    {"scaling": {**OURS_YARN, "truncate": False}}, window=5),
    "phimoe longrope": Peer("phimoe", "Phimoe",
                            {"attention_bias": True, "rope_parameters": {
                                **LONG, "rope_theta": 1e4, "rope_type": "longrope", "short_mscale": 1.2,
                                "long_mscale": 1.5, "original_max_position_embeddings": 8, "factor": 2.0}},
                            {"kv_heads": 2, "bias": True, "out_bias": True},
                            {"scaling": {"type": "longrope", "short": LONG["short_factor"],
                                         "long": LONG["long_factor"], "context": 8, "attention_factor": 1.2,
                                         "long_attention_factor": 1.5, "switch": False}},
                            attention_class="Attention"),
    "glm4 partial": Peer("glm4_moe", "Glm4Moe",
                         {"head_dim": 16, "use_qk_norm": True, "attention_bias": True,
                          "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
                         {"kv_heads": 2, "head_dim": 16, "qk_norm": True, "bias": True, "partial": 0.5}),
    "ernie adjacent": Peer("ernie4_5_moe", "Ernie4_5_Moe", {"use_bias": True},
                           {"kv_heads": 2, "bias": True, "out_bias": True}, {"pairs": "adjacent"}),
    "granite scale": Peer("granitemoe", "GraniteMoe", {"attention_multiplier": 0.05}, {"kv_heads": 2, "scale": 0.05}),
    "deepseek_v2 yarn": Peer("deepseek_v2", "DeepseekV2",
                             {**MLA, "head_dim": 4,
                              "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4}},
                             LATENT, {"pairs": "adjacent",
                                      "scaling": {**OURS_YARN, "mscale": 0.7, "mscale_all_dim": 1.4}}),
    "deepseek_v2 direct": Peer("deepseek_v2", "DeepseekV2", {**MLA, "q_lora_rank": None, "head_dim": 4},
                               {**LATENT, "q_rank": None}, {"pairs": "adjacent"}),
    "deepseek_v3 bias": Peer("deepseek_v3", "DeepseekV3",
                             {**MLA, "head_dim": 4, "rope_interleave": True, "attention_bias": True},
                             {**LATENT, "bias": True}, {"pairs": "adjacent"}),
    "deepseek_v3 halves": Peer("deepseek_v3", "DeepseekV3", {**MLA, "head_dim": 4, "rope_interleave": False}, LATENT),
    "longcat": Peer("longcat_flash", "LongcatFlash", {**MLA, "head_dim": 4, "qk_head_dim": 12},
                    {**LATENT, "rank_scale": True}, {"pairs": "adjacent"}, attention_class="MLA"),
}  # fmt: skip


def peer_modules(peer: Peer) -> tuple[nn.Module, nn.Module]:
    """(attention, rotary embedding) of transformers, every parameter drawn."""
    configuration = importlib.import_module(f"transformers.models.{peer.model}.configuration_{peer.model}")
    modeling = importlib.import_module(f"transformers.models.{peer.model}.modeling_{peer.model}")
    base: Plain = {"hidden_size": DIM, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    base |= {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "max_position_embeddings": 64}
    config = getattr(configuration, f"{peer.prefix}Config")(**{**base, **peer.config})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    attention = getattr(modeling, peer.prefix + peer.attention_class)(config, 0).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_((parameter.dim() == 1) + 0.3 * torch.randn(parameter.shape))
    return attention, getattr(modeling, f"{peer.prefix}RotaryEmbedding")(config)


def our_trunk(peer: Peer, theirs: nn.Module) -> Backbone:
    block = {"type": "sequential", "attention": {"heads": 4, **peer.attention}, "ffn": {"type": "dense", "hidden": 4}}
    plain = {"dim": DIM, "norm_eps": 1e-5, "rope": peer.rope, "layers": [{"block": block}]}
    trunk = parse(BackboneSpec, plain).build().eval()
    renamed = {}
    for name, value in theirs.state_dict().items():
        head, _, tail = name.partition(".")
        renamed[".".join([THEIRS[head], *([tail] if tail else [])])] = value
    trunk.blocks[0].attention.load_state_dict(renamed)  # type: ignore[union-attr, operator]
    return trunk


def their_answer(peer: Peer, modules: tuple[nn.Module, nn.Module], x: Tensor, real: Tensor, position: Tensor) -> Tensor:
    index = torch.arange(x.shape[1])
    seen = (index[None] <= index[:, None]) & real[:, None]
    if peer.window is not None:
        seen = seen & (index[None] > index[:, None] - peer.window)
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    attention, rotary = modules
    turn = rotary(x, position)
    with torch.no_grad():
        return attention(hidden_states=x, position_embeddings=turn, attention_mask=bias)[0]


def our_answer(trunk: Backbone, x: Tensor, bounds: list[int], **fields: Any) -> Tensor:
    """The attention of the first block over x, in pieces with a cache where bounds are given."""
    cache, pieces = (trunk.new_cache() if bounds else None), []
    for start, stop in zip([0, *bounds], [*bounds, x.shape[1]], strict=True):
        part = {name: value[:, start:stop] for name, value in fields.items()}
        if "mask" in part and bool(part["mask"].all()):
            del part["mask"]
        tokens = Tokens(embedding=x[:, start:stop], **part)
        with torch.no_grad():
            pieces.append(trunk.blocks[0].attention(tokens.embedding, trunk._context(tokens, cache, None, None)))
    return torch.cat(pieces, 1)


def close(got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("name", PEERS)
def test_attention_equals_transformers(name: str) -> None:
    peer = PEERS[name]
    modules = peer_modules(peer)
    trunk = our_trunk(peer, modules[0])
    x = torch.randn(ROWS, LENGTH, DIM, generator=torch.Generator().manual_seed(1))
    plain = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    padded = plain.clone()
    padded[1, :3] = False
    for real in (plain, padded):
        position = (real.cumsum(1) - 1).clamp(min=0)
        expected = their_answer(peer, modules, x, real, position)[real]
        fields = {"position": position[..., None]} | ({"mask": real} if real is padded else {})
        close(our_answer(trunk, x, [], **fields)[real], expected)
        if "longrope" not in name:  # its factor follows the length seen so far
            close(our_answer(trunk, x, [4, 9, 10, 11], **fields)[real], expected)
