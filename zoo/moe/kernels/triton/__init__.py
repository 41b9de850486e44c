"""Fused Triton kernels for SwiGLU experts: gather + GEMM + activation, then GEMM + gate + sum over the slots.

Nothing of Triton is imported before `swiglu_mixture` is called. Tested in Triton's interpreter in float32 and through
its compiler for Hopper; not yet run on a GPU, so bfloat16 results and every speed are still to be measured there.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from zoo.moe.kernels.triton.settings import SHARED_MEMORY, choose

__all__ = ["available", "choose", "swiglu_mixture"]


def available(device: torch.device) -> bool:
    """Whether the kernels run on this device: a CUDA GPU whose programs may use as much shared memory as a Hopper's
    (the tiles are cut for it), or any device in Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported)."""
    if importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type in ("cpu", "cuda")
    if device.type != "cuda":
        return False
    limit: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return limit >= SHARED_MEMORY


# Looking for a package cannot be traced. This is what torch.compiler.assume_constant_result sets, but calling that
# imports the whole compiler.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def swiglu_mixture(
    x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor, *, recompute: bool = False
) -> Tensor:
    """y[t] = sum over slots k of gate[t, k] * down_e (silu(gate_e x[t]) * up_e x[t]), e = expert[t, k].

    x        [T, D] bfloat16 or float32
    gate_up  [R, 2F, D] contiguous, of x's dtype; the gate's rows first
    down     [R, D, F] contiguous, of x's dtype
    expert   [T, K] int64; ids >= R are null or empty slots and are skipped
    gate     [T, K], any floating dtype

    Returns y [T, D] in x's dtype, summed in float32 and in a fixed order (no atomics). Differentiable once in x,
    gate_up, down and gate. Under autocast x and the weights are cast first. Nothing is read back by the host.

    For the backward pass the 2F preactivations of every slot are kept; with recompute=True nothing but the inputs and
    the sorted order is, and the first product is done twice.

    Raises TypeError (dtype) or ValueError (device, shape, layout), naming the tensor.
    """
    from zoo.moe.kernels.triton.ops import mixture

    return mixture(x, gate_up, down, expert, gate, recompute)
