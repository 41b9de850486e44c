"""Routers that learn from a trained model: a pre-gate from the gates of all its layers (Read-ME, arXiv 2410.19123)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training.guard import Micro
from training.weights import load_weights
from zoo.hub.entries import plain_spec
from zoo.models.unified import ModelSpec, Unified, UnifiedSpec
from zoo.moe.record import LayerRecord
from zoo.spec import override, parse


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """Distillation of routers; its keys are those of `distill` of the training module.

    spec       the teacher: an entry's name, a YAML file or the folder of a saved model
    overrides  values of its description to exchange, by dotted path
    weights    its weights: the folder of a saved model or a safetensors file
    weight     factor on the loss
    hard       share of the cross-entropy to the teacher's best expert; the rest goes to its softmax (0.75 in the
               released code)
    smoothing  label smoothing of the former (0.5 there)
    """

    spec: str
    weights: str
    overrides: dict[str, Any] | None = None
    weight: float = 1.0
    hard: float = 0.75
    smoothing: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight: got {self.weight}, expected 0 or more")
        for name in ("hard", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0..1")


def route_distillation(student: Tensor, teacher: Tensor, mask: Tensor, hard: float, smoothing: float) -> Tensor:
    """Logits [T, E] of both, mask [T] -> the sum over real tokens of hard * CE(best of the teacher, smoothed) +
    (1 - hard) * CE(softmax of the teacher), in nats. Its gradient reaches the student alone."""
    wide = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(wide), teacher.detach().to(wide)
    best = F.cross_entropy(student, teacher.argmax(-1), label_smoothing=smoothing, reduction="none")
    soft = F.cross_entropy(student, torch.softmax(teacher, dim=-1), reduction="none")
    return torch.where(mask, hard * best + (1 - hard) * soft, 0).sum()


class RouteTeacher:
    """A trained model whose layers' gates a model's routers follow. Its weights are read when they are first needed.

    Raises ValueError where its MoE layers are not as many, over as many experts, as the student's.
    """

    def __init__(self, settings: Mapping[str, Any], student: Unified) -> None:
        self.spec = parse(DistillSpec, settings, "distill")
        described = parse(ModelSpec, override(plain_spec(self.spec.spec), self.spec.overrides or {}, ModelSpec))
        if not isinstance(described, UnifiedSpec):
            raise ValueError(f"distill.spec: got a {type(described).__name__}, expected a model of type unified")
        self.described, self.model = described, cast("Unified | None", None)
        with torch.device("meta"):
            ours, theirs = ([m.pool.experts for m in model.moe_layers()] for model in (student, described.build()))
        if ours != theirs:
            raise ValueError(f"distill.spec: has MoE layers of {theirs} experts, the model of {ours}; expected equals")

    def losses(self, micro: Micro, records: Sequence[LayerRecord]) -> dict[str, Tensor]:
        """The weighted loss of a micro-batch, a sum over its real tokens and over layers, as the released code has."""
        name, batch = micro
        student = [record.routing for record in records]
        model = self._model(student[0].raw.device)
        with torch.no_grad():
            teachers = model.run(model.modality(name).encode(batch), name).records
        total = [
            route_distillation(own.logits, other.routing.logits, own.mask, self.spec.hard, self.spec.smoothing)
            for own, other in zip(student, teachers, strict=True)
        ]
        return {"distill": self.spec.weight * torch.stack(total).sum()}

    def _model(self, device: torch.device) -> Unified:
        if self.model is None:
            with torch.random.fork_rng(devices=[]):
                self.model = self.described.build()
            load_weights(self.model, Path(self.spec.weights), strict=True)
            self.model.eval().requires_grad_(False)
        return self.model.to(device)
