"""One training step is one whole optimiser step: micro-batches, ranks, clipping, bias updates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from training.distill import RouteTeacher
from training.guard import Guard, Listener, Micro
from training.hidden_z import HiddenZ, States
from training.meter import Meter, Report
from training.ranks import gather, reduce
from training.schedule import Schedule
from training.seeds import derive, generator
from training.totals import Divide, Totals, Units
from zoo.models.unified import ForwardOutput, Unified
from zoo.moe.balance.step import BalanceStep, needs_exact_counts

PATIENCE = 20  # steps in a row whose gradient is not finite before training gives up


class DivergedError(RuntimeError):
    """Gradients stayed other than finite."""


class WholeSteps(L.LightningModule):
    """Manual optimisation of a unified model on steps [(modality, batch), ...].

    Every sum is divided by what the whole step holds, over its micro-batches and all ranks, before it is
    differentiated: how rows are cut into micro-batches or spread over ranks changes no gradient.
    """

    def __init__(
        self,
        model: Unified,
        *,
        lr: float,
        schedule: Schedule,
        steps: int | None,
        clip: float | None,
        divide: Divide,
        loss_weights: dict[str, float],
        seed: int,
        hidden_z: dict[str, float] | None = None,
        teacher: RouteTeacher | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.schedule, self.seed = model, schedule, seed
        self.lr, self.steps, self.clip, self.divide, self.loss_weights = lr, steps, clip, divide, loss_weights
        self.names = list(model.modalities)
        self.hidden, self.teacher = HiddenZ(model, hidden_z or {}), teacher
        self.exact = needs_exact_counts(model.moe_layers())
        self.meter = Meter(model.moe_layers())
        self.report: Report | None = None
        self.done = self.skipped = self.bad_in_a_row = 0
        self.norm = self.rate = 0.0
        self.loss = torch.zeros(())
        self._checked: set[str] = set()

    @property
    def length(self) -> int:
        """Length of the learning-rate schedule in steps."""
        return self.trainer.max_steps if self.steps is None else self.steps

    def prepared(self, step: Sequence[Micro], *place: int | str) -> list[Micro]:
        """Micro-batches with what is drawn anew each time, drawn for this place and rank."""
        rank = self.global_rank
        return [
            (name, self.model.modality(name).prepare(batch, generator(self.seed, *place, i, rank)))
            for i, (name, batch) in enumerate(step)
        ]

    def run(self, micro: Micro, index: int) -> ForwardOutput:
        """The forward pass of one micro-batch of the step under way; every draw follows from its place."""
        seed = derive(self.seed, "noise", self.done, index, self.global_rank)
        torch.manual_seed(seed)  # for dropout inside third-party towers; our own parts never draw from it
        return self.model(*micro, step=torch.tensor(self.done), seed=seed)

    def training_step(self, batch: Sequence[Micro], batch_idx: int) -> None:
        """One optimiser step over all micro-batches and ranks."""
        for guard in self.guards:
            batch = guard.amend(self.done, batch)
        self.loss = torch.zeros((), device=self.device)
        micros = self.prepared(batch, "prepare", self.done)
        balance = BalanceStep(self.model.moe_layers(), reduce, exact=self.exact)
        if self.exact:
            self._count_ahead(micros, balance)
        totals = self._totals(micros) if len(micros) > 1 else None
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with self._gradient_sync(last):
                with self.hidden.watch() as seen:
                    out = self.run(micro, i)
                if not self.exact:
                    balance.add(out.records)
                if totals is None:
                    totals = Totals.of([(micro[0], out.loss.count, out.tokens.real)], self.names, reduce)
                self.manual_backward(self._loss(micro, out, balance, totals, seen))
        self._update(balance, batch)
        self.done += 1
        every = int(getattr(self.trainer, "log_every_n_steps", 0))
        self.report = self._report() if every and self.done % every == 0 else None

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged between ranks after the last micro-batch only."""
        strategy = self.trainer.strategy
        return nullcontext() if wanted or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    @torch.no_grad()
    def _count_ahead(self, micros: Sequence[Micro], balance: BalanceStep) -> None:
        """Adds the counts of all micro-batches before the first loss, with the noise the losses will see."""
        for i, micro in enumerate(micros):
            balance.add(self.run(micro, i).records)
        torch.clear_autocast_cache()  # weights cast without gradient must not be used with it

    def _totals(self, micros: Sequence[Micro]) -> Totals:
        parts: list[Units] = [(name, *self.model.modality(name).units(batch)) for name, batch in micros]
        return Totals.of(parts, self.names, reduce)

    def _loss(self, micro: Micro, out: ForwardOutput, balance: BalanceStep, totals: Totals, seen: States) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks because gradients are averaged over them."""
        name = micro[0]
        self._check_units(micro, out)
        terms = {**balance.losses(out.records, self.done), **self.hidden.losses(seen, out.tokens)}
        if self.teacher is not None:
            terms |= self.teacher.losses(micro, out.records)
        self.meter.add(name, out, terms)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Listener):
                callback.hear(self.done, out.records, balance, totals.balance_divisor())
        loss = self.loss_weights[name] * out.loss.total.float() / totals.divisor(name, self.divide)
        for term in terms.values():
            loss = loss + term / totals.balance_divisor()
        self.loss = self.loss + loss.detach()
        return loss * self.trainer.world_size

    def _check_units(self, micro: Micro, out: ForwardOutput) -> None:
        """Once per modality and run: what was counted ahead must be what the loss says."""
        name, batch = micro
        if name in self._checked:
            return
        self._checked.add(name)
        counted, said = self.model.modality(name).units(batch), (out.loss.count, out.tokens.real)
        if [round(float(v), 3) for v in counted] != [round(float(v), 3) for v in said]:
            raise RuntimeError(f"{name}: units() counts {counted}, but the loss and its tokens say {said}")

    def _update(self, balance: BalanceStep, batch: Sequence[Micro]) -> None:
        """Clips and steps; a step whose gradient is not finite on some rank, or to which a guard objects, is left out
        on all of them. A step left out is none for the schedule of the learning rate either."""
        optimizer: Any = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.norm = float(norm)
        finite = self.norm < float("inf")  # False for NaN too
        factor = self._allowed(batch, norm) if finite else 0.0
        if factor > 0:
            if self.clip is not None and self.norm > self.clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            self.rate = factor * self.lr * self.schedule.factor(self.done - self.skipped, self.length)
            for group in optimizer.param_groups:
                group["lr"] = self.rate * group.get("scale", 1.0)
            optimizer.step()
            balance.finish(self.done)
            self.bad_in_a_row = 0
        else:
            self._skip(finite)
        optimizer.zero_grad()

    @property
    def guards(self) -> list[Guard]:
        """The trainer's callbacks that have a say in steps."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, Guard)]  # type: ignore[attr-defined]

    def _allowed(self, batch: Sequence[Micro], norm: Tensor) -> float:
        """The factor of the strictest guard, from figures that are the same bits on all ranks; 1 without guards."""
        guards = self.guards
        if not guards:
            return 1.0
        figures = torch.stack([self.loss.double(), norm.double() / self.trainer.world_size])
        loss, size = reduce(figures).tolist()
        return min(guard.allow(self.done, loss, size, batch) for guard in guards)

    def _skip(self, finite: bool) -> None:
        self.skipped += 1
        if finite:
            return
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= PATIENCE:
            raise DivergedError(
                f"the gradients of {PATIENCE} steps in a row were not finite (the last was step {self.done}); "
                "lower lr, set clip, or look for bad values in the data"
            )

    def _report(self) -> Report:
        extra = {"lr": self.rate, "grad_norm": self.norm, "skipped_steps": float(self.skipped)}
        return self.meter.report(self.done, gather, extra)

    def on_train_start(self) -> None:
        """The meter's clock starts here."""
        self.meter.reset(self.done)
