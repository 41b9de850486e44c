"""What is compared: our backends, transformers' expert implementations with the same weights, and a dense yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from benchmarks.layer.shapes import Shape
from modalities.base import Tokens
from zoo.moe.experts.base import Backend
from zoo.moe.feed_forward import Dense, DenseSpec
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import parse

BACKENDS: tuple[str, ...] = get_args(Backend)  # a new backend is measured as soon as it stands there
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
REFERENCE_EXPERTS = 16  # the readable backend's backward is quadratic in the experts: minutes at 64
COPIED_BYTES = 2 * 2**30  # batched_mm copies the weights of every slot; above this it is not run
DENSE = "dense SwiGLU"
DEFAULT: str = MoESpec.backend
# name -> backend and further keys of the layer's spec
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {f"moezoo {b}": (b, {}) for b in BACKENDS}
VARIANTS[f"moezoo {DEFAULT}, recompute"] = (DEFAULT, {"recompute": True})


@dataclass(frozen=True)
class Candidate:
    """A layer as a function of x [1, T, D]; its weights are shared with the others of its shape, the yardstick's not.

    refuses(shape, mode) -> why it is not measured there, or None.
    """

    name: str
    family: Literal["dense", "transformers", "moezoo"]
    module: nn.Module
    call: Callable[[Tensor], Tensor]
    refuses: Callable[[Shape, str], str | None] = lambda shape, mode: None

    @property
    def reference(self) -> bool:
        """The readable backend: it is there to be checked against, not to be fast."""
        return self.name == "moezoo reference"


def build_moe(shape: Shape, backend: str, device: str, dtype: torch.dtype, **more: Any) -> MoE:
    """Our layer: top-k over a softmax, weights normalised over the chosen experts."""
    plain = {
        "type": "moe", "routed": shape.experts, "experts": {"type": "swiglu", "hidden": shape.hidden},
        "router": {"type": "top_k", "k": shape.k, **more.pop("router", {})}, "backend": backend, **more,
    }  # fmt: skip
    return MoE(parse(MoESpec, plain), shape.dim).to(device=device, dtype=dtype).eval()


def own_call(layer: MoE) -> Callable[[Tensor], Tensor]:
    """The whole layer: checks, routing, statistics and all."""
    contexts: dict[int, RoutingContext] = {}

    def call(x: Tensor) -> Tensor:
        ctx = contexts.get(x.shape[1]) or contexts.setdefault(x.shape[1], RoutingContext.of(Tokens(embedding=x)))
        return layer(x, ctx).y

    return call


def own(shape: Shape, device: str, dtype: torch.dtype) -> tuple[list[Candidate], dict[str, str]]:
    """One per backend, and the default one recomputing its activations, all with the weights of the first; and why
    others cannot be built here."""
    found: list[Candidate] = []
    skipped: dict[str, str] = {}
    for name, (backend, more) in VARIANTS.items():
        try:
            layer = build_moe(shape, backend, device, dtype, **more)
            with torch.inference_mode():
                own_call(layer)(torch.zeros(1, 1, shape.dim, device=device, dtype=dtype))
        except (ValueError, RuntimeError, ImportError) as error:  # a backend may want a GPU or a compiler
            skipped[name] = first_line(error)
            continue
        if found:
            layer.load_state_dict(found[0].module.state_dict(), assign=True)
        refuses = {"reference": _reference_refuses}.get(backend, _recompute_refuses if more else Candidate.refuses)
        found.append(Candidate(name, "moezoo", layer, own_call(layer), refuses))
    return found, skipped


def first_line(error: Exception) -> str:
    """What went wrong, short enough for a table."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def _reference_refuses(shape: Shape, mode: str) -> str | None:
    if mode in ("train", "memory") and shape.experts > REFERENCE_EXPERTS:
        return f"its backward pass is quadratic in the experts; measured up to {REFERENCE_EXPERTS}"
    return None


def _recompute_refuses(shape: Shape, mode: str) -> str | None:
    return None if mode in ("train", "memory") else "without a backward pass nothing is recomputed"


def transformers_block(shape: Shape, implementation: str, source: MoE) -> nn.Module:
    """A Qwen3-MoE block, whose routing is ours (softmax, top-k, normalised), on the weights of `source`."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(  # type: ignore[call-arg]
        hidden_size=shape.dim, moe_intermediate_size=shape.hidden, num_experts=shape.experts,
        num_experts_per_tok=shape.k, norm_topk_prob=True, experts_implementation=implementation,
    )  # fmt: skip
    with torch.device("meta"):
        block = Qwen3MoeSparseMoeBlock(config)
    experts: Any = source.experts
    router: Any = source.router
    state = {
        "experts.gate_up_proj": experts.gate_up.detach(),
        "experts.down_proj": experts.down.detach(),
        "gate.weight": router.gate.weight.detach().to(experts.down.dtype),  # it routes in the dtype of the model
    }
    block.load_state_dict(state, assign=True)
    return block.eval()


def transformers(shape: Shape, source: MoE) -> list[Candidate]:
    """One per expert implementation."""
    found = []
    for name in IMPLEMENTATIONS:
        block = transformers_block(shape, name, source)
        refuses = _batched_refuses if name == "batched_mm" else Candidate.refuses
        found.append(Candidate(f"transformers {name}", "transformers", block, block, refuses))
    return found


def _batched_refuses(shape: Shape, mode: str) -> str | None:
    copied = 2 * shape.dim * shape.hidden * shape.tokens * shape.k * 4
    return f"it would copy {copied / 2**30:.0f} GiB of weights" if copied > COPIED_BYTES else None


def dense(shape: Shape, device: str, dtype: torch.dtype) -> Candidate:
    """One SwiGLU of width k * hidden: the FLOPs of the active experts without any routing."""
    layer = Dense(DenseSpec(hidden=shape.k * shape.hidden), shape.dim).to(device=device, dtype=dtype).eval()
    return Candidate(DENSE, "dense", layer, layer)


def build(shape: Shape, device: str, dtype: torch.dtype) -> tuple[list[Candidate], dict[str, str]]:
    """All candidates of a shape, the yardstick first; and why others cannot be built here."""
    ours, skipped = own(shape, device, dtype)
    source = ours[0].module
    assert isinstance(source, MoE)
    return [dense(shape, device, dtype), *transformers(shape, source), *ours], skipped
