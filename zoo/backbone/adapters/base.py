"""The contract of adapters, and the linear maps of a block that they can stand beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zoo.backbone.attention.base import Attention
from zoo.moe.feed_forward import Dense
from zoo.moe.routers.base import Router
from zoo.spec import Cost


@dataclass(frozen=True)
class Map:
    """A linear map of token states in a block.

    module  what computes it when called with the states first; it answers [..., total], the map's part being
            start..stop
    owner   the module that holds its weight [total, inputs] under the name `weight`
    """

    module: nn.Module
    owner: nn.Module
    weight: str
    start: int
    stop: int

    @property
    def inputs(self) -> int:
        """Width of what it reads."""
        return self.matrix.shape[1]

    @property
    def outputs(self) -> int:
        """Width of what it answers."""
        return self.stop - self.start

    @property
    def matrix(self) -> Tensor:
        """The whole weight [total, inputs]."""
        found = getattr(self.owner, self.weight)
        assert isinstance(found, Tensor)
        return found


def maps_of(block: nn.Module) -> dict[str, Map]:
    """The maps of a block that can be adapted, by name ("attention.q", "ffn.gate").

    They are all torch.nn.Linear that work on tokens, and gate, up and down of dense feed-forward networks. Not among
    them: routed and shared experts (their maps are stacked), routers, what reads the rows' conditioning, and maps whose
    module reads the weight without calling the map.
    """
    found: dict[str, Map] = {}
    barred: tuple[str, ...] = ("modulation",)
    for name, module in block.named_modules():
        if isinstance(module, Router):
            barred = (*barred, name)
        elif isinstance(module, Attention):
            barred = (*barred, *(f"{name}.{own}" for own in module.read_directly))
        elif isinstance(module, Dense):
            hidden, dim = module.down.shape[1], module.down.shape[0]
            found[f"{name}.gate"] = Map(module.into, module, "gate_up", 0, hidden)
            found[f"{name}.up"] = Map(module.into, module, "gate_up", hidden, 2 * hidden)
            found[f"{name}.down"] = Map(module.out_of, module, "down", 0, dim)
        elif isinstance(module, nn.Linear) and not any(f"{name}.".startswith(f"{b}.") for b in barred):
            found[name] = Map(module, module, "weight", 0, module.out_features)
    return found


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """The description of an adapter; `type` names it.

    freeze  the model's own weights get no gradient
    """

    kind: ClassVar[str] = "adapter"

    freeze: bool = True

    def check(self, maps: Sequence[Mapping[str, Map]]) -> None:
        """Raises ValueError("key: ...") where it does not fit blocks with these maps."""

    def cost(self, maps: Sequence[Mapping[str, Map]]) -> Cost:
        """What it adds to a trunk of blocks with these maps."""
        raise NotImplementedError

    def stands(self, maps: Mapping[str, Map], index: int, depth: int) -> list[str]:
        """The maps of block number `index` of `depth` that it stands beside."""
        raise NotImplementedError

    def attach(self, block: nn.Module, index: int, depth: int) -> None:
        """Stands beside the maps of block number `index` of `depth`, as its module `adapter`."""
        raise NotImplementedError

    def hold(self, model: nn.Module) -> None:
        """Freezes a model but for its adapters, where that is asked for."""
        if self.freeze:
            own = {id(p) for module in model.modules() if isinstance(module, Adapter) for p in module.parameters()}
            for parameter in model.parameters():
                if id(parameter) not in own:
                    parameter.requires_grad_(False)


class Adapter(nn.Module):
    """What stands beside the maps of one block."""
