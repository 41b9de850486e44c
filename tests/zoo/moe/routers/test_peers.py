"""Routers and experts answer what the modules of transformers answer on the same weights (float32, 1e-5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.moe.experts.base import ExpertSpec
from zoo.moe.experts.shared import SharedSpec
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import RoutingContext, Rows
from zoo.spec import Plain, parse

DIM, EXPERTS, TOKENS = 8, 8, 40


def context(tokens: int = TOKENS) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool))


def drawn(peer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*peer.named_parameters(), *peer.named_buffers()]:
            value.copy_((0.1 if "correction" in name else 0.6) * torch.randn(value.shape, generator=generator))
    return peer.eval()


def dense(expert: Tensor, gate: Tensor, experts: int = EXPERTS) -> Tensor:
    """[T, E] weights by expert, so that the order of slots does not matter."""
    return torch.zeros(len(expert), experts + 1).scatter(1, expert, gate)


def ernie() -> nn.Module:
    from transformers.models.ernie4_5_moe import Ernie4_5_MoeConfig
    from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter

    return Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(hidden_size=DIM, moe_num_experts=EXPERTS, moe_k=3))


def deepseek_v2(method: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers.models.deepseek_v2 import DeepseekV2Config
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

        config = DeepseekV2Config(
            hidden_size=DIM, n_routed_experts=EXPERTS, num_experts_per_tok=3, n_group=4, topk_group=2,
            topk_method=method, routed_scaling_factor=16.0, num_attention_heads=2,
        )  # fmt: skip
        return DeepseekV2TopkRouter(config)

    return build


def grouped(family: str, name: str, normalised: bool) -> Callable[[], nn.Module]:
    """The routers of DeepSeek-V3 and its kin."""

    def build() -> nn.Module:
        import importlib

        package = importlib.import_module(f"transformers.models.{family}")
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        config = getattr(package, f"{name}Config")(
            hidden_size=DIM, n_routed_experts=EXPERTS, num_local_experts=EXPERTS, num_experts_per_tok=3, n_group=4,
            topk_group=2, norm_topk_prob=normalised, routed_scaling_factor=2.5,
        )  # fmt: skip
        made: nn.Module = getattr(module, f"{name}TopkRouter")(config)
        return made

    return build


def qwen2(normalised: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers.models.qwen2_moe import Qwen2MoeConfig
        from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

        config = Qwen2MoeConfig(hidden_size=DIM, num_experts=EXPERTS, num_experts_per_tok=3, norm_topk_prob=normalised)
        return Qwen2MoeTopKRouter(config)

    return build


def hunyuan() -> nn.Module:
    from transformers.models.hunyuan_v1_moe import HunYuanMoEV1Config
    from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate

    return HunYuanMoEV1Gate(HunYuanMoEV1Config(hidden_size=DIM, num_experts=EXPERTS, moe_topk=3))


def gpt_oss() -> nn.Module:
    from transformers.models.gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    return GptOssTopKRouter(GptOssConfig(hidden_size=DIM, num_local_experts=EXPERTS, num_experts_per_tok=3))


def longcat() -> nn.Module:
    from transformers.models.longcat_flash import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashTopkRouter

    config = LongcatFlashConfig(
        hidden_size=DIM, n_routed_experts=EXPERTS - 3, zero_expert_num=3, moe_topk=3, routed_scaling_factor=6.0
    )
    return LongcatFlashTopkRouter(config)


LIMITED: Plain = {"groups": 4, "top_groups": 2}
V3: Plain = {"score": "sigmoid", "bias": True, "scale": 2.5, "group_score": "top2", **LIMITED}
CASES: dict[str, tuple[Callable[[], nn.Module], Plain]] = {
    "ernie4_5_moe": (ernie, {"bias": True}),
    "deepseek_v2 greedy": (deepseek_v2("greedy"), {"normalize": "all", "scale": 16.0}),
    "deepseek_v2 groups": (deepseek_v2("group_limited_greedy"), {"normalize": "all", "scale": 16.0, **LIMITED}),
    "deepseek_v3": (grouped("deepseek_v3", "DeepseekV3", True), V3),
    "deepseek_v3 plain": (grouped("deepseek_v3", "DeepseekV3", False), {**V3, "normalize": "none"}),
    "glm4_moe": (grouped("glm4_moe", "Glm4Moe", True), V3),
    "dots1": (grouped("dots1", "Dots1", True), V3),
    "qwen2_moe": (qwen2(False), {"normalize": "all"}),
    "qwen2_moe normalised": (qwen2(True), {}),
    "hunyuan_v1_moe": (hunyuan, {}),
    "gpt_oss": (gpt_oss, {"gate": {"bias": True}}),
    "longcat_flash": (longcat, {"normalize": "all", "scale": 6.0, "bias": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_router(name: str) -> None:
    build, keys = CASES[name]
    peer = drawn(build())
    spec = parse(RouterSpec, {"type": "top_k", "k": 3, **keys})
    null = 3 if name == "longcat_flash" else 0
    ours = spec.build(DIM, Pool(routed=EXPERTS - null, null=NullSpec(copy=null)))
    state = {("bias" if "correction" in k else k.rsplit(".")[-1]): v.flatten() for k, v in peer.state_dict().items()}
    if name == "gpt_oss":
        state["gate.bias"] = state.pop("bias")
    state["gate.weight"] = state.pop("weight").view(EXPERTS, DIM)
    ours.load_state_dict(state)
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, (_, weight, expert) = ours(x, context()), peer(x)
    torch.testing.assert_close(dense(found.expert, found.gate), dense(expert, weight), rtol=1e-5, atol=1e-7)


def test_gpt_oss_layer() -> None:
    from transformers.models.gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    config = GptOssConfig(hidden_size=DIM, intermediate_size=6, num_local_experts=4, num_experts_per_tok=2)
    config.swiglu_limit = 1.5  # so that it is met
    peer = drawn(GptOssMLP(config))
    experts = {"type": "swiglu", "hidden": 6, "bias": True, "alpha": 1.702, "limit": 1.5, "offset": 1.0}
    router = {"type": "top_k", "k": 2, "gate": {"bias": True}}
    ours = MoE(parse(FeedForwardSpec, {"type": "moe", "routed": 4, "experts": experts, "router": router}), DIM)  # type: ignore[arg-type]
    state = peer.state_dict()

    def halves(value: Tensor) -> Tensor:
        """Gate and up one after the other on axis 1, which they share in turns."""
        return torch.cat([value[:, ::2], value[:, 1::2]], 1)

    ours.load_state_dict(
        {
            "router.gate.weight": state["router.weight"],
            "router.gate.bias": state["router.bias"],
            "experts.gate_up": halves(state["experts.gate_up_proj"].transpose(1, 2)),
            "experts.gate_up_bias": halves(state["experts.gate_up_proj_bias"]),
            "experts.down": state["experts.down_proj"].transpose(1, 2),
            "experts.down_bias": state["experts.down_proj_bias"],
        }
    )
    x = torch.randn(1, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x, context()).y, peer(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys", [{}, {"activation": "gelu"}, {"activation": "gelu_tanh"}, {"activation": "relu"}])
@pytest.mark.parametrize("bias", [False, True])
def test_gated_networks_agree(keys: dict[str, Any], bias: bool) -> None:
    """One expert, a dense network and a shared expert of the same weights, and the cost of each."""
    keys = {"hidden": 6, "bias": bias, **keys}
    torch.manual_seed(0)
    expert = parse(ExpertSpec, {"type": "swiglu", **keys})
    network = parse(FeedForwardSpec, {"type": "dense", **keys})
    experts, one = expert.build(DIM, 1, "grouped"), network.build(DIM)
    assert expert.cost(DIM).total == network.cost(DIM).total == sum(p.numel() for p in one.parameters())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    experts.load_state_dict({name: value[None] for name, value in one.state_dict().items()})
    x = torch.randn(5, DIM)
    rows = Rows(x=x, counts=torch.tensor([5]), token=torch.arange(5), gate=torch.ones(5))
    torch.testing.assert_close(experts(rows, context(5)), one(x))
    described = parse(SharedSpec, {"count": 2, "gate": "router", **keys})
    shared = described.build(DIM)
    assert described.cost(DIM).total == sum(p.numel() for p in shared.parameters())
    state = one.state_dict()
    gate, up = state["gate_up"].chunk(2)
    double = {"gate_up": torch.cat([gate, gate, up, up]), "down": torch.cat([state["down"]] * 2, 1)}
    if bias:
        gate, up = state["gate_up_bias"].chunk(2)
        double |= {"gate_up_bias": torch.cat([gate, gate, up, up]), "down_bias": state["down_bias"].expand(2, -1)}
    shared.load_state_dict(double)
    weight = torch.tensor([0.25, 0.5]).expand(5, -1)
    torch.testing.assert_close(shared(x, weight), 0.75 * one(x))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"alpha": 2.0, "activation": "gelu"}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"limit": 0.0}, "limit"),
        ({"activation": "tanh"}, "activation"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_refuses(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(ExpertSpec, {"type": "swiglu", "hidden": 4, **keys})
