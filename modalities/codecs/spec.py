"""The descriptions of the codecs. Importing this file imports torch and nothing heavier."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import ClassVar, Literal

from modalities.codecs.base import Codec


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """The description of a codec. Its `type` key is looked up in the registry under the kind "codec"."""

    kind: ClassVar[str] = "codec"

    def build(self) -> Codec:
        """The codec: fitted where it comes with weights, otherwise to be fitted with `Codec.fit`."""
        raise NotImplementedError

    def shape(self) -> tuple[int, int]:
        """(codebooks, entries per codebook), without building: a model's tables and heads are sized by it."""
        raise NotImplementedError

    def parameters(self) -> int:
        """Number of (frozen) parameters of the built codec, buffers not counted."""
        return 0


@dataclass(frozen=True, kw_only=True)
class LogMelKeys:
    """How sound becomes log-mel frames; part of the descriptions of those that make them.

    rate    samples per second (8000 or 16000 are usual)
    hop     samples per frame
    window  samples per analysis window (a Hann window; also the size of the Fourier transform)
    mels    mel bands
    """

    rate: int = 8000
    hop: int = 128
    window: int = 400
    mels: int = 40

    def __post_init__(self) -> None:
        if self.rate < 1000:
            raise ValueError(f"rate: got {self.rate}, expected samples per second, at least 1000")
        if self.hop < 1:
            raise ValueError(f"hop: got {self.hop}, expected at least 1")
        if self.window < 2 * self.hop:
            raise ValueError(f"window: got {self.window}, expected at least 2 * hop = {2 * self.hop}")
        if not 2 <= self.mels <= self.window // 4:
            raise ValueError(f"mels: got {self.mels}, expected 2..{self.window // 4} (a quarter of the window)")


@dataclass(frozen=True, kw_only=True)
class LogMelRVQSpec(LogMelKeys, CodecSpec):
    """Log-mel frames, residual vector quantisation fitted by k-means, Griffin-Lim back to sound. Needs no download.

    group       consecutive mel frames quantised as one codec frame
    codebooks   stages of the residual quantiser, codes per frame
    size        entries per codebook
    iterations  rounds of k-means per codebook
    vectors     most mel frames used for fitting
    griffin     rounds of Griffin-Lim
    seed        seed of the fitting and of the first phases
    """

    group: int = 2
    codebooks: int = 4
    size: int = 128
    iterations: int = 12
    vectors: int = 40_000
    griffin: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "codebooks", "iterations", "griffin"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.size < 2:
            raise ValueError(f"size: got {self.size}, expected at least 2")
        if self.vectors < self.size:
            raise ValueError(f"vectors: got {self.vectors}, expected at least size = {self.size}")

    def build(self) -> Codec:
        from modalities.codecs.log_mel_rvq import LogMelRVQ

        return LogMelRVQ(self)

    def shape(self) -> tuple[int, int]:
        return self.codebooks, self.size


@dataclass(frozen=True, kw_only=True)
class PretrainedCodecSpec(CodecSpec):
    """A codec of transformers, loaded by id or folder (safetensors only) and frozen.

    family     dac, encodec or mimi
    path       a folder, or the id of a repository on the Hugging Face hub
    revision   revision on the hub
    codebooks  how many of its codebooks are used, the coarsest first (null: all)
    """

    family: ClassVar[Literal["dac", "encodec", "mimi"]]
    path: str
    revision: str | None = None
    codebooks: int | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: got an empty string, expected a folder or an id such as 'descript/dac_16khz'")
        if self.codebooks is not None and self.codebooks < 1:
            raise ValueError(f"codebooks: got {self.codebooks}, expected at least 1")

    def build(self) -> Codec:
        module = importlib.import_module("modalities.codecs.pretrained")
        codec: Codec = module.load(self)
        return codec

    def shape(self) -> tuple[int, int]:
        module = importlib.import_module("modalities.codecs.pretrained")
        shape: tuple[int, int] = module.shape(self)
        return shape

    def parameters(self) -> int:
        module = importlib.import_module("modalities.codecs.pretrained")
        count: int = module.parameters(self)
        return count


@dataclass(frozen=True, kw_only=True)
class DacSpec(PretrainedCodecSpec):
    """The Descript Audio Codec of transformers.

    path  a folder, or the id of a repository on the Hugging Face hub (descript/dac_16khz)
    """

    family: ClassVar[Literal["dac", "encodec", "mimi"]] = "dac"


@dataclass(frozen=True, kw_only=True)
class EncodecSpec(PretrainedCodecSpec):
    """EnCodec of transformers.

    path       a folder, or the id of a repository on the Hugging Face hub (facebook/encodec_24khz)
    codebooks  how many of its codebooks are used, the coarsest first (null: all of the largest bandwidth)
    """

    family: ClassVar[Literal["dac", "encodec", "mimi"]] = "encodec"


@dataclass(frozen=True, kw_only=True)
class MimiSpec(PretrainedCodecSpec):
    """Mimi of transformers.

    path  a folder, or the id of a repository on the Hugging Face hub (kyutai/mimi)
    """

    family: ClassVar[Literal["dac", "encodec", "mimi"]] = "mimi"
