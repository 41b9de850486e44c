"""The unified model as a LightningModule, made from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training import optimiser
from training.distill import RouteTeacher
from training.guard import Micro
from training.held_out import Sums
from training.ranks import gather
from training.schedule import Kind, Schedule
from training.seeds import derive, generator
from training.stepping import WholeSteps
from training.totals import Divide
from training.weights import load_weights
from zoo.hub.entries import plain_spec
from zoo.models.unified import ModelSpec, UnifiedSpec
from zoo.registry import nearest
from zoo.spec import dump, override, parse


class UnifiedModule(WholeSteps):
    """Trains, validates, tests and predicts with a unified model; made from plain values only."""

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
        hidden_z: dict[str, float] | None = None,
        distill: dict[str, Any] | None = None,
        tuned_width: int | None = None,
        init_std: float | None = None,
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
            eps: Epsilon of AdamW (1e-16 in LongCat-Flash, whose gradients are small).
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
            hidden_z: Weight of the hidden z-loss by the name of a module, such as backbone.blocks.3 (the last block and
                1e-7 in LongCat-Flash).
            distill: A teacher whose gates the routers follow, for routers that the task loss does not reach: spec,
                weights and the other keys of DistillSpec.
            tuned_width: Width of the model that lr was tuned on: at s times this width the trunk's matrices and the
                maps that read its states train at lr / s.
            init_std: Standard deviation of the initial embedding tables, and divided by the root of s of those matrices
                (s is 1 without tuned_width); every part's own where left out.
            init_from: Weights to start from: the folder of a saved model or of a public checkpoint, or a safetensors
                file.
            init_strict: Whether init_from must hold exactly the model's tensors.
            seed: Source of the initial weights and of everything drawn in training.
        """
        parsed = parse(ModelSpec, override(plain_spec(spec), overrides or {}, ModelSpec))
        if not isinstance(parsed, UnifiedSpec):
            raise ValueError(f"spec: got a {type(parsed).__name__}, expected a model of type unified")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            model = parsed.build()
        scale = optimiser.width_factor(parsed.backbone.dim, tuned_width)
        if init_std is not None:
            optimiser.initialise(model, init_std, scale, generator(seed, "weights", "std"))
        super().__init__(
            model, schedule=Schedule(kind=schedule, warmup=warmup, decay=decay, floor=floor), lr=lr, steps=steps,
            clip=clip, divide=divide, loss_weights=_weights(loss_weights or {}, list(parsed.modalities)), seed=seed,
            hidden_z=hidden_z, teacher=None if distill is None else RouteTeacher(distill, model),
        )  # fmt: skip
        self.save_hyperparameters(
            {
                "spec": dump(parsed), "lr": lr, "betas": list(betas), "eps": eps, "weight_decay": weight_decay,
                "decay_embeddings": decay_embeddings, "schedule": schedule, "warmup": warmup, "decay": decay,
                "floor": floor, "steps": steps, "clip": clip, "loss_weights": dict(loss_weights or {}),
                "divide": divide, "trainable": None if trainable is None else list(trainable), "seed": seed,
                "hidden_z": dict(hidden_z or {}), "tuned_width": tuned_width, "init_std": init_std,
                "distill": None if distill is None else dict(distill),
            }
        )  # fmt: skip
        self.sums = Sums()
        self.fitted: set[str] = set()
        if init_from is not None:
            self._load(init_from, init_strict)
        if trainable is not None:
            optimiser.freeze(self.model, trainable)

    def _load(self, path: str, strict: bool) -> None:
        loaded = load_weights(self.model, path, strict=strict)
        for name in self.names:
            prefix = f"modalities.{name}."
            if all(key in loaded for key in self.model.state_dict() if key.startswith(prefix)):
                self.mark_fitted(name)

    def mark_fitted(self, *names: str) -> None:
        """Says that what these modalities (all where none is named) fit before training has come with the weights."""
        self.fitted |= set(names or self.names)

    def configure_model(self) -> None:
        """Shards the model under ModelParallelStrategy (FSDP2); nothing under other strategies."""
        if self.device_mesh is not None:
            from training.strategies.fsdp import shard

            if self.device_mesh["tensor_parallel"].size() > 1:  # what Lightning's strategy takes by default
                raise ValueError(
                    "strategy: tensor-parallel ranks would each train a model of their own, nothing being split over "
                    "them; take training.strategies.fsdp.Sharded (configs/trainer/fsdp.yaml)"
                )
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without decay where it does harm; its learning rate is set anew before each step."""
        self.schedule.check(self.length)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError("precision: scaled float16 gradients cannot be summed exactly; take bf16-mixed or 32-true")
        h = self.hparams
        return optimiser.build(
            self.model, lr=h["lr"], betas=tuple(h["betas"]), eps=h["eps"], weight_decay=h["weight_decay"],
            embeddings=h["decay_embeddings"],
            width=optimiser.width_factor(self.model.spec.backbone.dim, h["tuned_width"]),
        )  # fmt: skip

    def _evaluate(self, batch: Sequence[Micro], index: int) -> None:
        for name, values in self.prepared(batch, "evaluate", index):
            out = self.model(name, values)
            self.sums.add(name, out.loss)

    def _log_means(self, prefix: str) -> None:
        """The means are those of all ranks already; syncing them again only tells Lightning so."""
        means = self.sums.means(prefix, gather)
        if self.trainer.state.fn == "fit":
            means["step"] = float(self.done)  # else Lightning counts one less than the other logs
        self.log_dict(means, sync_dist=self.trainer.world_size > 1)

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
        """Adds the counters that everything drawn is derived from, and of which public checkpoint the model is."""
        if self.model.origin is not None:
            checkpoint["origin"] = self.model.origin.plain()
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
