"""The side of a model that turns raw data into batches, and messages into prompts, without its trunk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import torch
from torch import nn

from modalities.base import Batch, Modality, Raw
from modalities.text.chat import ChatKeys, ChatTemplate, Message
from zoo import registry
from zoo.hub import config, skeleton, tensors
from zoo.hub.conversion import checkpoint
from zoo.hub.entries import find_entry, has_entry, is_path, plain_spec
from zoo.hub.weights import locate
from zoo.spec import SpecError, parse

if TYPE_CHECKING:
    from modalities.text.module import Text
    from modalities.text.tokenizer import Tokenizer
    from zoo.models.unified import UnifiedSpec


class Processor:
    """Tokenizer, features and codecs of a model. Trained weights are left out: its modules make batches, not tokens.

    modalities   name -> modality, of which `example`, `collate` and the codec can be used
    """

    def __init__(self, modalities: nn.ModuleDict, types: Mapping[str, str]) -> None:
        self.modalities = modalities
        self.types = dict(types)

    @property
    def tokenizer(self) -> Tokenizer:
        """The text modality's tokenizer. Raises ValueError where the model has none."""
        return self._text("tokenizer").tokenizer

    def chat(self, messages: Sequence[Message], **keys: Unpack[ChatKeys]) -> str:
        """Messages as the text that the model continues with its answer, special tokens included: give it to
        `model.generate(..., special=False)`. The settings are those of ChatTemplate.render.

        Raises ValueError where the model has no chat template, or it refuses the messages.
        """
        folder = self._text("chat template").folder
        if folder is None:
            raise ValueError("no chat template: the model has no folder of its own; expected one with such a file")
        return ChatTemplate(folder).render(messages, **keys)

    def __call__(self, name: str, raw: Raw | Sequence[Raw], seed: int = 0) -> Batch:
        """Raw examples of a modality (as its data yields them) to one batch, as training collates it; `seed` draws the
        crops. Raises ValueError for an unknown name and for what the modality refuses."""
        if name not in self.modalities:
            near = registry.nearest(name, list(self.types))
            raise ValueError(f"no modality {name!r}{near}; there are {', '.join(self.types)}")
        modality = cast(Modality, self.modalities[name])
        raws = [raw] if isinstance(raw, Mapping) else list(raw)
        return modality.collate([modality.example(r) for r in raws], torch.Generator().manual_seed(seed))

    def _text(self, wanted: str) -> Text:
        name = next((name for name, kind in self.types.items() if kind == "text"), None)
        if name is None:
            raise ValueError(f"no text modality, so no {wanted}; it has {', '.join(self.types)}")
        return cast("Text", self.modalities[name])


def processor(ref: str | os.PathLike[str] | Mapping[str, Any], *, ignore_remote_code: bool = False) -> Processor:
    """The processor of an entry, a saved model, a public checkpoint of a supported family, or a spec. What was fitted
    (codebooks, feature statistics) is read from the weights where there are any, and tokenizer and chat template from
    the files beside them, when they are first used. ignore_remote_code is that of zoo.load.

    Raises as zoo.load does; SpecError where the model is not made of modalities.
    """
    folder = _weights(ref)
    spec = _spec(ref, folder, ignore_remote_code)
    with torch.random.fork_rng(devices=[]):
        modules = _build(spec)
    if folder is not None:
        _read_fitted(modules, folder)
        _attach(modules, folder)
    _drop_trained(modules)
    return Processor(modules.eval(), {name: registry.type_of(part) for name, part in spec.modalities.items()})


def _spec(
    ref: str | os.PathLike[str] | Mapping[str, Any], folder: Path | None, ignore_remote_code: bool
) -> UnifiedSpec:
    from zoo.models.unified import ModelSpec, UnifiedSpec

    if folder is not None:
        content = config.content(folder / "config.json", ignore_remote_code=ignore_remote_code)
        if config.is_foreign(content):
            return checkpoint.describe(content, folder / "config.json")[1]
    plain = plain_spec(ref if folder is None else folder)
    spec = parse(ModelSpec, plain)
    if not isinstance(spec, UnifiedSpec):
        raise SpecError(f"type: a {plain.get('type')!r} model has no modalities, so no processor")
    return spec


def _build(spec: UnifiedSpec) -> nn.ModuleDict:
    """The modalities; for text alone, whose embedding may be large, no weight is drawn or held."""
    from zoo.models.unified import build_modalities

    if all(registry.type_of(part) == "text" for part in spec.modalities.values()):
        return cast(nn.ModuleDict, skeleton.build(lambda: build_modalities(spec)))
    return build_modalities(spec)


def _attach(modules: nn.ModuleDict, folder: Path) -> None:
    from modalities.text.module import Text

    for module in modules.values():
        if isinstance(module, Text):
            module.attach(folder)


def _weights(ref: str | os.PathLike[str] | Mapping[str, Any]) -> Path | None:
    """The folder of the weights behind a reference, None where it has none."""
    if isinstance(ref, Mapping):
        return None
    if not is_path(ref) and has_entry(os.fspath(ref)):
        return locate(ref) if find_entry(os.fspath(ref)).weights is not None else None
    hub = isinstance(ref, str) and ref.startswith("hf:")
    return locate(ref) if hub or Path(ref).expanduser().is_dir() else None


def _read_fitted(modules: nn.ModuleDict, folder: Path) -> None:
    """Buffers and frozen parameters of the modalities, from a saved model."""
    trained = {name for name, p in modules.named_parameters() if p.requires_grad}
    expected = {f"modalities.{name}": v for name, v in modules.state_dict().items() if name not in trained}
    if not expected:
        return
    stored = {name: s for name, s in tensors.contents(folder).items() if name in expected}
    tensors.check(stored, expected, folder)
    values = {name.removeprefix("modalities."): value for name, value in tensors.read(stored).items()}
    modules.load_state_dict(values, strict=False, assign=True)


def _drop_trained(modules: nn.Module) -> None:
    """Trained parameters to the meta device: they take no memory, and using one is an error, not a wrong answer."""
    for module in modules.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.detach().to("meta")))
