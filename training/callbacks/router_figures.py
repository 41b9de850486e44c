"""What tells whether routers are well: how alike their experts' rows are, and whether balance drowns the task (the
diagnostics of LongCat-Flash, arXiv 2509.01322)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from training.ranks import reduce
from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import Routing


class RouterFigures(L.Callback):
    """Logs two figures of every MoE layer at the steps that are logged.

    router/layer<i>/similarity      mean cosine of the gate's rows of two routed experts (gates with such rows): near 1
                                    it can no longer tell them apart
    router/layer<i>/gradient_ratio  norm over experts of the gradient of the weighted balance losses by P, the batch's
                                    mean probabilities, over that of the other losses; below 0.1 as published, else
                                    balance decides what experts learn. The others do not read P: theirs is the sum over
                                    tokens of the gradient by the token's probability, to which the weight of a chosen
                                    expert is taken to be proportional (as top_k with normalize: all has it)

    gradient_ratio is of one optimiser step, over its micro-batches and ranks; losses through the router's logits other
    than balance over P (a z-loss) are in neither norm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, float] = {}
        self.task: list[Tensor] = []
        self.balance: list[Tensor] = []
        self._clear()

    def _clear(self) -> None:
        self.task, self.balance = [], []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learns which steps are logged."""
        self.every = int(getattr(trainer, "log_every_n_steps", 0))

    def hear(self, step: int, records: Sequence[LayerRecord], balance: BalanceStep, tokens: Tensor) -> None:
        """Adds a micro-batch of a step that will be logged."""
        if not records or not self.every or (step + 1) % self.every:
            return
        if not self.task:
            self.task = [torch.zeros(r.routing.experts, device=r.routing.raw.device) for r in records]
            self.balance = [torch.zeros_like(each) for each in self.task]
        for total, slope in zip(self.balance, balance.slopes(records, step), strict=True):
            total += slope / tokens
        for total, record in zip(self.task, records, strict=True):
            if record.routing.gate.requires_grad:
                record.routing.gate.register_hook(_adds(total, record.routing))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the figures of the step that was heard."""
        if not self.task:
            return
        flat = reduce(torch.cat([*self.task, *self.balance]).double())
        parts = flat.split([len(each) for each in [*self.task, *self.balance]])
        task, balance = parts[: len(self.task)], parts[len(self.task) :]
        self._clear()
        self.scalars = {}
        for i, (layer, a, b) in enumerate(zip(pl_module.model.moe_layers(), balance, task, strict=True)):  # type: ignore[union-attr,operator]
            alike = similarity(layer)
            self.scalars |= {} if alike is None else {f"router/layer{i}/similarity": alike}
            reached = layer.spec.router.properties(layer.pool).task_gradient != "none"
            if reached and b.any():  # nothing is seen of weights that are joined into one record of several maps
                self.scalars[f"router/layer{i}/gradient_ratio"] = float(a.norm() * trainer.world_size / b.norm())
        for logger in trainer.loggers:
            logger.log_metrics(self.scalars, step=int(cast(Any, pl_module).done))


def _adds(total: Tensor, routing: Routing) -> Callable[[Tensor], None]:
    """A hook on the weights [T, K] that adds, for each expert, dL/dweight * weight / probability over tokens."""
    experts = routing.experts
    with torch.no_grad():
        share = torch.softmax(routing.raw, dim=-1)[:, :experts]
        chosen = F.pad(share, (0, 1), value=1.0).gather(1, routing.expert)
        slope = routing.gate.detach() / chosen.clamp(min=torch.finfo(chosen.dtype).tiny)

    def add(gradient: Tensor) -> None:
        each = (gradient.detach() * slope).flatten().to(total.dtype)
        total.add_(total.new_zeros(experts + 1).index_add(0, routing.expert.flatten(), each)[:experts])

    return add


@torch.no_grad()
def similarity(layer: MoE) -> float | None:
    """The mean cosine between the rows [E, D] of a layer's gate of two routed experts; None where it has no such rows,
    or only one."""
    core = getattr(getattr(layer.router, "gate", None), "core", None)
    rows, count = getattr(core, "weight", None), layer.pool.routed
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) < count or count < 2:
        return None
    unit = F.normalize(rows[:count].double(), dim=-1)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))
