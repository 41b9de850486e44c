"""The unified model as a LightningModule: one training step is one whole optimiser step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from modalities.base import Batch
from training import optimiser
from training.held_out import Sums
from training.meter import Meter, Report
from training.ranks import gather, reduce
from training.schedule import Kind, Schedule
from training.seeds import derive, generator
from training.totals import Divide, Totals, Units
from training.weights import load_weights
from zoo.hub.entries import plain_spec
from zoo.models.unified import ForwardOutput, ModelSpec, Unified, UnifiedSpec
from zoo.moe.balance.step import BalanceStep, needs_exact_counts
from zoo.registry import nearest
from zoo.spec import dump, override, parse

Micro = tuple[str, Batch]  # the name of a modality in the model, and a batch of it
PATIENCE = 20  # steps in a row whose gradient is not finite before training gives up


class UnifiedModule(L.LightningModule):
    """Trains a unified model on steps [(modality, batch), ...] by manual optimisation.

    Every sum is divided by what the whole step holds, over its micro-batches and all ranks, before it is
    differentiated: how rows are cut into micro-batches or spread over ranks changes no gradient.
    """

    def __init__(
        self,
        spec: str | dict[str, Any],
        overrides: dict[str, Any] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay_embeddings: bool = False,
        schedule: Kind = "cosine",
        warmup: int = 0,
        decay: int = 0,
        floor: float = 0.1,
        steps: int | None = None,
        clip: float | None = 1.0,
        loss_weights: dict[str, float] | None = None,
        divide: Divide = "step",
        trainable: list[str] | None = None,
        init_from: str | None = None,
        init_strict: bool = True,
        seed: int = 0,
    ) -> None:
        """
        Args:
            spec: The model: an entry's name, a YAML file, the folder of a saved model, or the description itself.
            overrides: Values of the description to exchange, by dotted path, such as backbone.dim.
            lr: Peak learning rate of AdamW.
            betas: Decay rates of AdamW's moments.
            eps: Epsilon of AdamW.
            weight_decay: Weight decay; norms, biases, routers, gates and null experts have none.
            decay_embeddings: Whether embedding tables are decayed too.
            schedule: Learning-rate schedule: constant, cosine, or wsd (warm-up, stable, decay).
            warmup: Steps of linear warm-up.
            decay: Steps of the linear decay that ends schedule wsd.
            floor: The schedule's last value, as a factor on lr.
            steps: Length of the schedule in steps; the trainer's max_steps where left out.
            clip: Greatest gradient norm of a step, over all parameters; null for no clipping.
            loss_weights: Factor on the loss of a modality; 1 where left out.
            divide: What loss sums are divided by: step (all target units of the step) or modality (its own target
                units, then the mean over the modalities in the step).
            trainable: Regular expressions over parameter names; what none of them matches is frozen.
            init_from: Weights to start from: the folder of a saved model or a safetensors file.
            init_strict: Whether init_from must hold exactly the model's tensors.
            seed: Source of the initial weights and of everything drawn in training.
        """
        super().__init__()
        self.automatic_optimization = False
        parsed = parse(ModelSpec, override(plain_spec(spec), overrides or {}))
        if not isinstance(parsed, UnifiedSpec):
            raise ValueError(f"spec: got a {type(parsed).__name__}, expected a model of type unified")
        self.save_hyperparameters(
            {
                "spec": dump(parsed), "lr": lr, "betas": list(betas), "eps": eps, "weight_decay": weight_decay,
                "decay_embeddings": decay_embeddings, "schedule": schedule, "warmup": warmup, "decay": decay,
                "floor": floor, "steps": steps, "clip": clip, "loss_weights": dict(loss_weights or {}),
                "divide": divide, "trainable": None if trainable is None else list(trainable), "seed": seed,
            }
        )  # fmt: skip
        self.seed, self.clip, self.divide, self.length = seed, clip, divide, steps
        self.schedule = Schedule(kind=schedule, warmup=warmup, decay=decay, floor=floor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            self.model: Unified = parsed.build()
        self.names = list(self.model.modalities)
        self.loss_weights = _weights(loss_weights or {}, self.names)
        self.fitted: set[str] = set()
        if init_from is not None:
            self._load(init_from, init_strict)
        if trainable is not None:
            optimiser.freeze(self.model, trainable)
        self.exact = needs_exact_counts(self.model.moe_layers())
        self.meter, self.sums = Meter(self.model.moe_layers()), Sums()
        self.report: Report | None = None
        self.done = self.skipped = self.bad_in_a_row = 0
        self._checked: set[str] = set()

    def _load(self, path: str, strict: bool) -> None:
        loaded = load_weights(self.model, path, strict=strict)
        for name in self.names:
            prefix = f"modalities.{name}."
            if all(key in loaded for key in self.model.state_dict() if key.startswith(prefix)):
                self.mark_fitted(name)

    def mark_fitted(self, *names: str) -> None:
        """Says that what these modalities (all where none is named) fit before training has come with the weights."""
        self.fitted |= set(names or self.names)

    @property
    def length_in_steps(self) -> int:
        """Length of the learning-rate schedule."""
        return self.trainer.max_steps if self.length is None else self.length

    def configure_model(self) -> None:
        """Shards the model under ModelParallelStrategy (FSDP2); nothing under other strategies."""
        if self.device_mesh is not None:
            from training.strategies.fsdp import shard

            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without decay where it does harm; its learning rate is set anew before each step."""
        self.schedule.check(self.length_in_steps)
        h = self.hparams
        return optimiser.build(
            self.model, lr=h["lr"], betas=tuple(h["betas"]), eps=h["eps"], weight_decay=h["weight_decay"],
            embeddings=h["decay_embeddings"],
        )  # fmt: skip

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
        micros = self.prepared(batch, "prepare", self.done)
        balance = BalanceStep(self.model.moe_layers(), reduce, exact=self.exact)
        if self.exact:
            self._count_ahead(micros, balance)
        totals = self._totals(micros) if len(micros) > 1 else None
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with self._gradient_sync(last):
                out = self.run(micro, i)
                if not self.exact:
                    balance.add(out.records)
                if totals is None:
                    totals = Totals.of([(micro[0], out.loss.count, out.tokens.real)], self.names, reduce)
                self.manual_backward(self._loss(micro, out, balance, totals))
        self._update(balance)
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

    def _loss(self, micro: Micro, out: ForwardOutput, balance: BalanceStep, totals: Totals) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks because gradients are averaged over them."""
        name = micro[0]
        self._check_units(micro, out)
        terms = balance.losses(out.records, self.done)
        self.meter.add(name, out, terms)
        loss = self.loss_weights[name] * out.loss.total.float() / totals.divisor(name, self.divide)
        for term in terms.values():
            loss = loss + term / totals.balance_divisor()
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

    def _update(self, balance: BalanceStep) -> None:
        """Clips and steps; a step whose gradient is not finite on some rank is left out on all of them."""
        optimizer: Any = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.norm = float(norm)
        if self.norm < float("inf"):  # False for NaN too
            if self.clip is not None and self.norm > self.clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            self.rate = self.hparams["lr"] * self.schedule.factor(self.done, self.length_in_steps)
            for group in optimizer.param_groups:
                group["lr"] = self.rate
            optimizer.step()
            balance.finish(self.done)
            self.bad_in_a_row = 0
        else:
            self._skip()
        optimizer.zero_grad()

    def _skip(self) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= PATIENCE:
            raise RuntimeError(
                f"the gradients of {PATIENCE} steps in a row were not finite (the last was step {self.done}); "
                "lower lr, set clip, or look for bad values in the data"
            )

    def _report(self) -> Report:
        extra = {"lr": getattr(self, "rate", 0.0), "grad_norm": self.norm, "skipped_steps": float(self.skipped)}
        return self.meter.report(self.done, gather, extra)

    def on_train_start(self) -> None:
        """The meter's clock starts here."""
        self.meter.reset(self.done)

    def _evaluate(self, batch: Sequence[Micro], index: int) -> None:
        for name, values in self.prepared(batch, "evaluate", index):
            out = self.model(name, values)
            self.sums.add(name, out.loss)

    def _log_means(self, prefix: str) -> None:
        """The means are those of all ranks already; syncing them again only tells Lightning so."""
        self.log_dict(self.sums.means(prefix, gather), sync_dist=self.trainer.world_size > 1)

    def validation_step(self, batch: Sequence[Micro], batch_idx: int) -> None:
        """Adds the losses of held-out batches."""
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: Sequence[Micro], batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs val/<modality>/loss and metrics, and val/loss, their mean over modalities."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Logs test/<modality>/loss and metrics, and test/loss."""
        self._log_means("test")

    def predict_step(self, batch: Sequence[Micro], batch_idx: int) -> list[tuple[str, Tensor]]:
        """(modality, its decoded outputs on the CPU) of each micro-batch."""
        results = []
        for name, values in self.prepared(batch, "predict", batch_idx):
            out = self.model(name, values)
            results.append((name, self.model.modality(name).decode(out.tokens).cpu()))
        return results

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters that everything drawn is derived from."""
        checkpoint["training"] = {"done": self.done, "skipped": self.skipped, "fitted": sorted(self.fitted)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counters up again."""
        state = checkpoint["training"]
        self.done, self.skipped = int(state["done"]), int(state["skipped"])
        self.mark_fitted(*state["fitted"]) if state["fitted"] else None


def _weights(given: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    for name in given:
        if name not in names:
            raise ValueError(
                f"loss_weights: no modality {name!r}{nearest(name, list(names))}; the model has {', '.join(names)}"
            )
    return {name: float(given.get(name, 1.0)) for name in names}
