"""Hidden z-loss: keeps the states of named modules small (LongCat-Flash, arXiv 2509.01322)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.registry import nearest

States = dict[str, Tensor]


def hidden_z(state: Tensor, mask: Tensor | None) -> Tensor:
    """sum over real tokens of (log sum_i exp |z_i|)^2 in float32 at least: state [B, S, D], mask [B, S] -> scalar.

    Its least value is (log D)^2 per token, not 0.
    """
    z = state.to(torch.promote_types(state.dtype, torch.float32))
    if mask is None:
        return torch.logsumexp(z.abs(), dim=-1).square().sum()
    squares = torch.logsumexp(torch.where(mask[..., None], z, 0).abs(), dim=-1).square()
    return torch.where(mask, squares, 0).sum()


class HiddenZ:
    """The hidden z-losses of a training step.

    weights  name of a module of the model whose output (or the first of its outputs) is [B, S, D], such as
             backbone.blocks.3, to the loss's factor
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, float]) -> None:
        modules = dict(model.named_modules())
        for name, weight in weights.items():
            if name not in modules:
                blocks = [known for known in modules if known.startswith("backbone.blocks.") and known.count(".") == 2]
                raise ValueError(
                    f"hidden_z: no module {name!r}{nearest(name, list(modules))}; blocks are {', '.join(blocks)}"
                )
            if weight < 0:
                raise ValueError(f"hidden_z: got {weight} for {name}, expected 0 or more")
        self.weights = dict(weights)
        self.modules = {name: modules[name] for name in weights}

    @contextmanager
    def watch(self) -> Iterator[States]:
        """Keeps what the modules put out inside; a pass that is recomputed later is not looked at again."""
        seen: States = {}
        handles = [module.register_forward_hook(_keep(seen, name)) for name, module in self.modules.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def losses(self, seen: States, tokens: Tokens) -> dict[str, Tensor]:
        """The weighted loss as a sum over the trunk's real tokens; nothing where no module is named."""
        terms = [weight * hidden_z(seen[name], tokens.mask) for name, weight in self.weights.items()]
        return {"hidden_z": torch.stack(terms).sum()} if terms else {}


def _keep(seen: States, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[name] = output if isinstance(output, Tensor) else output[0]

    return hook
