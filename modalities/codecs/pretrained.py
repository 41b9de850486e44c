"""DAC, EnCodec and Mimi of transformers behind the codec interface: frozen, safetensors only, imported when used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.codecs.base import Codec
from modalities.codecs.spec import PretrainedCodecSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CLASSES = {
    "dac": ("DacConfig", "DacModel"),
    "encodec": ("EncodecConfig", "EncodecModel"),
    "mimi": ("MimiConfig", "MimiModel"),
}


def load(spec: PretrainedCodecSpec) -> Codec:
    """The codec with its weights. Raises ValueError where the folder or id holds another model, or no safetensors."""
    config = _config(spec)
    try:
        model: PreTrainedModel = _class(spec, 1).from_pretrained(
            spec.path, config=config, use_safetensors=True, **_revision(spec)
        )
    except OSError as error:
        raise ValueError(
            f"path: cannot load {spec.family} weights from {spec.path!r}; expected a folder or hub id with "
            f"model.safetensors (other weight files are not read): {error}"
        ) from error
    return PretrainedCodec(spec, model.eval().requires_grad_(False))


def shape(spec: PretrainedCodecSpec) -> tuple[int, int]:
    """(codebooks used, entries per codebook), from the configuration alone. Raises ValueError on too many codebooks."""
    config = _config(spec)
    total = {"dac": "n_codebooks", "encodec": "num_quantizers", "mimi": "num_quantizers"}[spec.family]
    held = int(getattr(config, total))
    used = held if spec.codebooks is None else spec.codebooks
    if used > held:
        raise ValueError(f"codebooks: got {used}, expected at most the {held} of {spec.path!r}")
    return used, int(config.codebook_size)


def parameters(spec: PretrainedCodecSpec) -> int:
    """Number of parameters, counted on a model without storage."""
    with torch.device("meta"):
        model = _class(spec, 1)(_config(spec))
    return sum(p.numel() for p in model.parameters())


class PretrainedCodec(Codec):
    """One of the three, brought to one interface. Waveforms are mono; silence fills up the last frame."""

    def __init__(self, spec: PretrainedCodecSpec, model: PreTrainedModel) -> None:
        config: Any = model.config
        codebooks, size = shape(spec)
        rate = int(config.sampling_rate)
        super().__init__(rate=rate, frame_rate=_frame_rate(spec, config), codebooks=codebooks, size=size, fitted=True)
        if spec.family == "encodec" and (config.audio_channels != 1 or config.chunk_length_s or config.normalize):
            raise ValueError(
                f"path: {spec.path!r} is a stereo, chunked or normalising EnCodec, expected a mono one (24 kHz)"
            )
        self.family = spec.family
        self.model = model

    def train(self, mode: bool = True) -> PretrainedCodec:
        """Stays in evaluation mode: it is never trained with the model around it."""
        return super().train(False)

    def _encode(self, audio: Tensor) -> Tensor:
        short = -audio.shape[1] % round(self.hop)
        wave = F.pad(audio, (0, short))[:, None]
        model: Any = self.model
        if self.family == "dac":
            codes = model.encode(wave, n_quantizers=self.codebooks).audio_codes
        elif self.family == "encodec":
            codes = model.encode(wave, bandwidth=max(model.config.target_bandwidths)).audio_codes[0]
        else:
            codes = model.encode(wave, num_quantizers=self.codebooks).audio_codes
        return codes[:, : self.codebooks].long()

    def _decode(self, codes: Tensor) -> Tensor:
        model: Any = self.model
        if self.family == "encodec":
            audio = model.decode(codes[None], [None]).audio_values
        else:
            audio = model.decode(audio_codes=codes).audio_values
        return audio.reshape(len(codes), -1).float()


def _frame_rate(spec: PretrainedCodecSpec, config: Any) -> float:
    """Frames per second: what the strides give, since a configuration may round its own figure."""
    if spec.family == "dac":
        return float(config.sampling_rate / math.prod(config.downsampling_ratios))
    if spec.family == "encodec":
        return float(config.sampling_rate / math.prod(config.upsampling_ratios))
    return float(config.frame_rate)


def _class(spec: PretrainedCodecSpec, which: int) -> Any:
    import transformers

    return getattr(transformers, CLASSES[spec.family][which])


def _revision(spec: PretrainedCodecSpec) -> dict[str, str]:
    return {} if spec.revision is None else {"revision": spec.revision}


def _config(spec: PretrainedCodecSpec) -> PreTrainedConfig:
    """The configuration; a folder or id of another family is an error, not a conversion."""
    from transformers import PreTrainedConfig

    try:
        found, _ = PreTrainedConfig.get_config_dict(spec.path, **_revision(spec))
    except OSError as error:
        raise ValueError(
            f"path: {spec.path!r} is neither a folder with config.json nor a hub id that can be reached: {error}"
        ) from error
    if found.get("model_type") != spec.family:
        raise ValueError(f"path: {spec.path!r} holds a {found.get('model_type')!r} model, expected {spec.family!r}")
    config: PreTrainedConfig = _class(spec, 0).from_dict(found)
    return config
