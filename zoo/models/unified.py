"""The unified model: modalities around one trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, overload

from torch import Tensor, nn

from modalities.base import Batch, Loss, ModalitySpec, Tokens
from zoo.backbone.cache import Cache
from zoo.backbone.trunk import BackboneSpec
from zoo.models.language import Ids, LanguageOutput
from zoo.models.origin import Origin
from zoo.models.verbs import Verbs
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.registry import type_of
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The description of a whole model; `type` names it."""

    kind: ClassVar[str] = "model"

    def cost(self, length: float = 0) -> Cost:
        """Parameters, active parameters and operations per token that sees `length` keys."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """The model with random weights drawn from torch's global generator."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class UnifiedSpec(ModelSpec):
    """Any modalities on one trunk.

    backbone    the trunk
    modalities  name -> modality; names are free, `text` is shared with the others for prompts and transcripts
    """

    backbone: BackboneSpec
    modalities: dict[str, ModalitySpec]

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError("modalities: got none, expected at least one")
        axes = self.backbone.rope.axes
        for name, modality in self.modalities.items():
            if not name.isidentifier():
                raise ValueError(f"modalities: {name!r} is no name; expected letters, digits and underscores")
            if modality.axes not in (1, axes):
                raise ValueError(
                    f"backbone.rope.axes: got {axes}, expected {modality.axes}: tokens of modalities.{name} have "
                    f"{modality.axes} position axes"
                )
            try:
                modality.check(self.backbone.dim, self.backbone.cond)
            except ValueError as error:
                raise ValueError(f"modalities.{name}.{error}") from error

    def cost(self, length: float = 0) -> Cost:
        """Modalities are counted as held, and those parameters as inactive: which are used depends on the batch."""
        held = sum(m.parameters(self.backbone.dim) for m in self.modalities.values())
        return self.backbone.cost(length) + Cost(held, 0, 0)

    def build(self) -> Unified:
        return Unified(self)


@dataclass(frozen=True)
class ForwardOutput:
    """loss of a batch as a sum (None without a loss); final hidden tokens; a record per MoE layer."""

    loss: Loss
    tokens: Tokens
    records: tuple[LayerRecord, ...]


class Unified(Verbs):
    """See UnifiedSpec. What people call (`generate`, `forecast`, `speak`, ...) is in `zoo.models.verbs`."""

    origin: Origin | None = None  # what it remembers of the checkpoint it was read from

    def __init__(self, spec: UnifiedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = spec.backbone.build()
        self.modalities = build_modalities(spec)
        self.types = {name: type_of(part) for name, part in spec.modalities.items()}
        if spec.backbone.adapter is not None:
            spec.backbone.adapter.hold(self)

    def moe_layers(self) -> list[MoE]:
        """The MoE layers in the order of their records."""
        return self.backbone.moe_layers()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether training recomputes the blocks' activations in the backward pass instead of keeping them."""
        return self.spec.backbone.checkpoint

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes activations of blocks from now on: training takes less memory and longer, no number changes. It
        is the key `backbone.checkpoint` of the spec, so it is saved with the model."""
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, on: bool) -> None:
        self.spec = replace(self.spec, backbone=replace(self.spec.backbone, checkpoint=on))
        self.backbone.spec = self.spec.backbone

    @overload
    def forward(
        self, name: str, batch: Batch, *, step: Tensor | None = None, seed: int | None = None
    ) -> ForwardOutput: ...
    @overload
    def forward(
        self,
        name: Ids | None = None,
        batch: None = None,
        *,
        input_ids: Ids | None = None,
        attention_mask: Ids | None = None,
        labels: Ids | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> LanguageOutput: ...
    def forward(
        self,
        name: str | Ids | None = None,
        batch: Batch | None = None,
        *,
        step: Tensor | None = None,
        seed: int | None = None,
        input_ids: Ids | None = None,
        attention_mask: Ids | None = None,
        labels: Ids | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> ForwardOutput | LanguageOutput:
        """`model(name, batch)`: a prepared batch of one modality to its loss, hidden states and routing records.
        `model(input_ids, attention_mask=..., labels=...)`: ids to logits, as in `language`.
        """
        if isinstance(name, str) and batch is not None:
            modality = self.modality(name)
            out = self.run(modality.encode(batch), name, step=step, seed=seed)
            return ForwardOutput(modality.loss(out.tokens, batch), out.tokens, out.records)
        ids = input_ids if name is None else name
        if ids is None or isinstance(ids, str):
            raise TypeError("forward: expected the name of a modality and its batch, or input_ids")
        return self.language(ids, attention_mask, labels, cache, output_hidden_states)

    def batch_to(self, batch: Mapping[str, Tensor]) -> Batch:
        """A batch on the model's device."""
        device = next(self.parameters()).device
        return {key: value.to(device) for key, value in batch.items()}


def build_modalities(spec: UnifiedSpec) -> nn.ModuleDict:
    """The modalities of a model, text lent to the others."""
    dim = spec.backbone.dim
    modules = nn.ModuleDict()
    text = spec.modalities["text"].build(dim) if "text" in spec.modalities else None
    for name, part in spec.modalities.items():
        modules[name] = text if name == "text" and text is not None else part.build(dim, text)
    return modules
