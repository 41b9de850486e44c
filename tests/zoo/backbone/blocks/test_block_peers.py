"""Blocks answer what the decoder layers of transformers answer on the same weights (float32, 1e-5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.spec import Plain, parse

DIM, LENGTH = 16, 9


def trunk(block: Plain, **keys: Any) -> Backbone:
    plain = {"dim": DIM, "norm_eps": 1e-5, "layers": [{"block": block}], **keys}
    return parse(BackboneSpec, plain).build().eval()


def drawn(peer: nn.Module) -> nn.Module:
    """Every parameter and floating buffer drawn anew, norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*peer.named_parameters(), *peer.named_buffers()]:
            if "slope" in name or "decay" in name or "inv_freq" in name:
                continue
            centre = 1.0 if "norm" in name and "bias" not in name else 0.0
            value.copy_(centre + 0.3 * torch.randn(value.shape, generator=generator))
    return peer.eval()


def states() -> Tensor:
    return torch.randn(2, LENGTH, DIM, generator=torch.Generator().manual_seed(1))


def answer(ours: Backbone, x: Tensor) -> Tensor:
    """What the first block makes of x."""
    with torch.no_grad():
        return ours(Tokens(embedding=x), output_hidden=True).hidden[0]


def theirs(layer: nn.Module, rotary: nn.Module, x: Tensor) -> Tensor:
    """What a decoder layer makes of x, causally."""
    position = torch.arange(LENGTH)[None].expand(len(x), -1)
    mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        out = layer(x, attention_mask=mask, position_ids=position, position_embeddings=rotary(x, position))
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def configured(made: Any, **keys: Any) -> Any:
    """A configuration of transformers with attention as plain operations."""
    config = made(**keys)
    config._attn_implementation = "eager"
    return config


def agree(ours: Backbone, values: dict[str, Tensor], layer: nn.Module, rotary: nn.Module) -> None:
    """The first block with these weights answers what the decoder layer does."""
    fill(ours.blocks[0], values)
    x = states()
    torch.testing.assert_close(answer(ours, x), theirs(layer, rotary, x), rtol=1e-5, atol=1e-5)


def fill(ours: nn.Module, values: dict[str, Tensor]) -> None:
    """All parameters, and the selection bias; set equality is checked."""
    missing = ours.load_state_dict(values, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys


def test_longcat_flash() -> None:
    from transformers.models.longcat_flash import modeling_longcat_flash as peer
    from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig

    config = configured(
        LongcatFlashConfig,
        hidden_size=DIM, num_layers=1, num_attention_heads=2, num_key_value_heads=2, ffn_hidden_size=20,
        expert_ffn_hidden_size=12, q_lora_rank=8, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6,
        head_dim=4, moe_topk=3, n_routed_experts=5, zero_expert_num=3, routed_scaling_factor=2.5, rms_norm_eps=1e-5,
        vocab_size=10,
    )  # fmt: skip
    layer = drawn(peer.LongcatFlashDecoderLayer(config, 0))
    latent = {"type": "latent", "heads": 2, "q_rank": 8, "kv_rank": 6, "nope_dim": 4, "rope_dim": 4, "value_dim": 6}
    moe = {
        "type": "moe", "routed": 5, "experts": {"type": "swiglu", "hidden": 12}, "null_experts": {"copy": 3},
        "router": {"type": "top_k", "k": 3, "normalize": "all", "scale": 2.5, "bias": True},
    }  # fmt: skip
    ours = trunk(
        {
            "type": "shortcut", "attention": {**latent, "rank_scale": True}, "moe": moe, "own_norm": False,
            "dense": [{"hidden": 20}, {"hidden": 20}],
        },
        rope={"theta": config.rope_parameters["rope_theta"], "pairs": "adjacent"},
    )  # fmt: skip
    state = layer.state_dict()
    renamed = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj", "kv_down": "kv_a_proj_with_mqa"}
    renamed |= {"kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "o": "o_proj"}
    values = {
        "moe.router.gate.weight": state["mlp.router.classifier.weight"],
        "moe.router.bias": state["mlp.router.e_score_correction_bias"],
        "moe.experts.gate_up": state["mlp.experts.gate_up_proj"][:5],
        "moe.experts.down": state["mlp.experts.down_proj"],
    }
    for i in (0, 1):
        values |= {f"attention.{i}.{a}.weight": state[f"self_attn.{i}.{b}.weight"] for a, b in renamed.items()}
        values[f"attention_norm.{i}.weight"] = state[f"input_layernorm.{i}.weight"]
        values[f"dense_norm.{i}.weight"] = state[f"post_attention_layernorm.{i}.weight"]
        gate_up = [state[f"mlps.{i}.{name}_proj.weight"] for name in ("gate", "up")]
        values |= {f"dense.{i}.gate_up": torch.cat(gate_up), f"dense.{i}.down": state[f"mlps.{i}.down_proj.weight"]}
    agree(ours, values, layer, peer.LongcatFlashRotaryEmbedding(config))


def test_jetmoe() -> None:
    from transformers.models.jetmoe import modeling_jetmoe as peer
    from transformers.models.jetmoe.configuration_jetmoe import JetMoeConfig

    config = configured(
        JetMoeConfig,
        hidden_size=DIM, num_hidden_layers=1, num_key_value_heads=2, kv_channels=6, intermediate_size=10,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=10,
    )  # fmt: skip
    layer = drawn(peer.JetMoeDecoderLayer(config, 0))
    router = {"type": "top_k", "k": 2}
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 10}, "router": router, "out_bias": True}
    ours = trunk(
        {
            "type": "attention_experts", "ffn": ffn,
            "attention": {"routed": 4, "router": router, "heads": 2, "head_dim": 6, "out_bias": True},
        },
        norm_eps=1e-6,
        rope={"theta": config.rope_parameters["rope_theta"]},
    )  # fmt: skip
    state = layer.state_dict()
    key, value = state["self_attention.kv_proj.weight"].chunk(2)
    values = {
        "attention_norm.weight": state["input_layernorm.weight"],
        "attention.router.gate.weight": state["self_attention.experts.router.layer.weight"],
        "attention.experts.q": state["self_attention.experts.input_linear.weight"],
        "attention.experts.o": state["self_attention.experts.output_linear.weight"],
        "attention.out_bias": state["self_attention.experts.bias"],
        "attention.k.weight": key,
        "attention.v.weight": value,
        "ffn_norm.weight": state["post_attention_layernorm.weight"],
        "ffn.router.gate.weight": state["mlp.router.layer.weight"],
        "ffn.experts.gate_up": state["mlp.input_linear.weight"],
        "ffn.experts.down": state["mlp.output_linear.weight"],
        "ffn.out_bias": state["mlp.bias"],
    }
    agree(ours, values, layer, peer.JetMoeRotaryEmbedding(config))


def _attention(state: dict[str, Tensor], norms: bool = False) -> dict[str, Tensor]:
    found = {f"attention.{n}.weight": state[f"self_attn.{n}_proj.weight"] for n in ("q", "k", "v", "o")}
    if norms:
        found |= {f"attention.{n}_norm.weight": state[f"self_attn.{n}_norm.weight"] for n in ("q", "k")}
    return found


def _pre_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    return {f"{ours}.weight": state[f"{peers}.weight"] for ours, peers in names.items()}


def _routed(state: dict[str, Tensor], gate: str = "gate") -> dict[str, Tensor]:
    return {
        "ffn.router.gate.weight": state[f"mlp.{gate}.weight"],
        "ffn.experts.gate_up": state["mlp.experts.gate_up_proj"],
        "ffn.experts.down": state["mlp.experts.down_proj"],
    }


SMALL: Plain = {
    "hidden_size": DIM, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 10, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip
FFN: Plain = {
    "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 10}, "router": {"type": "top_k", "k": 2},
}  # fmt: skip
HEADS: Plain = {"heads": 4, "kv_heads": 2}


def test_flex_olmo() -> None:
    from transformers.models.flex_olmo import modeling_flex_olmo as peer
    from transformers.models.flex_olmo.configuration_flex_olmo import FlexOlmoConfig

    config = configured(FlexOlmoConfig, **SMALL, num_experts=4, norm_topk_prob=True)
    layer = drawn(peer.FlexOlmoDecoderLayer(config, 0))
    attention = {**HEADS, "qk_norm": True, "qk_norm_over": "all"}
    theta = config.rope_parameters["rope_theta"]
    ours = trunk(
        {"type": "sequential", "norm": "after", "attention": attention, "ffn": FFN}, rope={"theta": theta}
    )  # fmt: skip
    state = layer.state_dict()
    values = _attention(state, norms=True) | _routed(state)
    values["attention_post_norm.weight"] = state["post_attention_layernorm.weight"]
    values["ffn_post_norm.weight"] = state["post_feedforward_layernorm.weight"]
    agree(ours, values, layer, peer.FlexOlmoRotaryEmbedding(config))


def test_granite() -> None:
    from transformers.models.granitemoeshared import modeling_granitemoeshared as peer
    from transformers.models.granitemoeshared.configuration_granitemoeshared import GraniteMoeSharedConfig

    config = configured(
        GraniteMoeSharedConfig,
        **SMALL,
        num_local_experts=4,
        shared_intermediate_size=6,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
    )
    layer = drawn(peer.GraniteMoeSharedDecoderLayer(config, 0))
    ours = trunk(
        {
            "type": "sequential", "residual": 0.22, "attention": {**HEADS, "scale": 0.3},
            "ffn": {**FFN, "shared": {"hidden": 6}},
        },
        rope={"theta": config.rope_parameters["rope_theta"]},
    )  # fmt: skip
    state = layer.state_dict()
    moe = "block_sparse_moe"
    found = {name: value for name, value in state.items() if name.startswith(moe)}
    values = (
        _attention(state)
        | _pre_norms(state)
        | {
            "ffn.router.gate.weight": found[next(n for n in found if "router" in n)],
            "ffn.experts.gate_up": found[next(n for n in found if "gate_up" in n or "input_linear" in n)],
            "ffn.experts.down": found[next(n for n in found if "down" in n or "output_linear" in n)],
            "ffn.shared_experts.gate_up": state["shared_mlp.input_linear.weight"],
            "ffn.shared_experts.down": state["shared_mlp.output_linear.weight"],
        }
    )
    agree(ours, values, layer, peer.GraniteMoeSharedRotaryEmbedding(config))


def test_minimax_reads_and_skips_the_normed_stream() -> None:
    from transformers.models.minimax import modeling_minimax as peer
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig

    factors = {"full_attn_alpha_factor": 1.5, "full_attn_beta_factor": 0.75}
    factors |= {"mlp_alpha_factor": 1.25, "mlp_beta_factor": 0.5}
    config = configured(
        MiniMaxConfig, **SMALL, **factors, num_local_experts=4, head_dim=4, layer_types=["full_attention"] * 2
    )
    layer = drawn(peer.MiniMaxDecoderLayer(config, 0))
    block = {"type": "sequential", "norm": "stream", "skip": [1.5, 1.25], "residual": [0.75, 0.5]}
    theta = config.rope_parameters["rope_theta"]
    ours = trunk({**block, "attention": {**HEADS, "head_dim": 4}, "ffn": FFN}, rope={"theta": theta})
    state = layer.state_dict()
    values = _attention(state) | _pre_norms(state) | _routed(state)
    agree(ours, values, layer, peer.MiniMaxRotaryEmbedding(config))


def test_phimoe_has_layer_norms() -> None:
    from transformers.models.phimoe import modeling_phimoe as peer
    from transformers.models.phimoe.configuration_phimoe import PhimoeConfig

    config = configured(PhimoeConfig, **SMALL, num_local_experts=4, attention_bias=True, router_jitter_noise=0.2)
    layer = drawn(peer.PhimoeDecoderLayer(config, 0))
    ours = trunk(
        {
            "type": "sequential", "attention": {**HEADS, "bias": True, "out_bias": True},
            "ffn": {**FFN, "router": {"type": "sparse_mixer", "near_tie": 0.2}},
        },
        norm="layer",
        rope={"theta": config.rope_parameters["rope_theta"]},
    )  # fmt: skip
    state = layer.state_dict()
    values = _attention(state) | {
        f"attention.{n}.bias": state[f"self_attn.{n}_proj.bias"] for n in ("q", "k", "v", "o")
    }
    for name, peers in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
        values |= {f"{name}.{part}": state[f"{peers}.{part}"] for part in ("weight", "bias")}
    values |= _routed(state, "router")
    agree(ours, values, layer, peer.PhimoeRotaryEmbedding(config))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("block", [2, 4, 256])
def test_minimax_lightning_attention(index: int, block: int) -> None:
    """Whatever the block size of either, and in both layers, whose decays differ."""
    from transformers.models.minimax import modeling_minimax as peer
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig

    config = configured(
        MiniMaxConfig, **SMALL, num_local_experts=4, head_dim=6, block_size=4, layer_types=["linear_attention"] * 2
    )
    config.num_hidden_layers = 3
    layer = drawn(peer.MiniMaxLightningAttention(config, index))
    lightning = {"type": "lightning", "heads": 4, "head_dim": 6, "depth": 3, "block": block}
    plain: Plain = {"type": "sequential", "attention": lightning, "ffn": {"type": "dense", "hidden": 4}}
    ours = parse(BackboneSpec, {"dim": DIM, "layers": [{"repeat": 2, "block": plain}]}).build().eval()
    state = layer.state_dict()
    each = state["qkv_proj.weight"].unflatten(0, (4, 3, 6))
    values = {f"{name}.weight": each[:, i].flatten(0, 1) for i, name in enumerate(("q", "k", "v"))}
    values |= {"o.weight": state["out_proj.weight"], "gate.weight": state["output_gate.weight"]}
    attention = ours.blocks[index].attention
    fill(attention, values | {"norm.weight": state["norm.weight"]})  # type: ignore[arg-type]
    x = states()
    tokens = Tokens(embedding=x)
    with torch.no_grad():
        found = attention(x, ours._context(tokens, None, None, None))  # type: ignore[operator]
        expected = layer(x, None, None)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
