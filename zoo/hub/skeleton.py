"""Building modules without paying for weights that are about to be replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

LARGE = 1 << 24  # elements above which a tensor about to be drawn gets no memory at all
DRAWN = (torch.empty, torch.randn, torch.rand)
FILLED = {
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "exponential_", "bernoulli_", "erfinv_", "log_normal_", "cauchy_", "geometric_")
} | {
    getattr(nn.init, name)
    for name in ("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "kaiming_normal_")
}


class WithoutDraws(TorchFunctionMode):
    """Inside, no random number is drawn, and large tensors that were to be drawn or filled are on the meta device.

    Computed buffers (positions, filter banks) come out as always.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in FILLED:
            return args[0] if args else named["tensor"]
        if func in DRAWN:
            named.pop("generator", None)
            with torch._C.DisableTorchFunction():
                blank = torch.empty(*args, **named | {"device": "meta"})
                return blank if blank.numel() > LARGE else torch.empty(*args, **named)
        return func(*args, **named)


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    handle = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """The module of `make` with parameters on the meta device (shapes and dtypes, no memory) and buffers as computed.

    Every tensor of its state dict has to be replaced before use. torch's global generator stays as it was.
    """
    with torch.random.fork_rng(devices=[]), _parameters_on_meta(), WithoutDraws():
        return make()


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(math.prod(t.shape) * t.element_size() for t in tensors)
