"""The description of the speech modality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modalities.base import Modality, ModalitySpec
from modalities.codecs.spec import CodecSpec, LogMelKeys, LogMelRVQSpec

if TYPE_CHECKING:
    from modalities.speech.module import Speech


@dataclass(frozen=True, kw_only=True)
class SpeechSpec(LogMelKeys, ModalitySpec):
    """Speech: transcribes recordings and speaks texts.

    rate          samples per second of the recordings it listens to
    hop           samples per input frame
    subsample     input frames per token, a power of two (one convolution of stride 2 per factor of two)
    codec         what spoken frames are made of, e.g. {type: log_mel_rvq}
    delays        frames by which each codebook runs behind, the first one 0 (null: 0, 1, 2 ...)
    transcribe    weight of the task recording to text when examples are batched
    speak         weight of the task text to recording
    speakers      most voices told apart, the most frequent first (0: none)
    drop_speaker  share of examples whose speaker is hidden, so that a text can be spoken without naming one
    drop_text     share of spoken examples whose text is hidden; guidance needs some
    level         every recording is brought to this root-mean-square level (1 is full scale)
    seconds       longest recording; a longer one is an error
    """

    hop: int = 80
    window: int = 256
    subsample: int = 4
    codec: CodecSpec = field(default_factory=LogMelRVQSpec)
    delays: tuple[int, ...] | None = None
    transcribe: float = 1.0
    speak: float = 1.0
    speakers: int = 8
    drop_speaker: float = 0.1
    drop_text: float = 0.1
    level: float = 0.1
    seconds: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsample < 1 or self.subsample & (self.subsample - 1):
            raise ValueError(f"subsample: got {self.subsample}, expected a power of two (1, 2, 4, 8)")
        if min(self.transcribe, self.speak) < 0 or self.transcribe + self.speak == 0:
            raise ValueError(
                f"transcribe: got {self.transcribe} beside speak {self.speak}, expected weights >= 0, not both 0"
            )
        if self.speakers < 0:
            raise ValueError(f"speakers: got {self.speakers}, expected 0 or more")
        for name in ("drop_speaker", "drop_text"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 <= {name} < 1")
        for name in ("level", "seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if self.delays is not None and (not self.delays or self.delays[0] != 0 or min(self.delays) < 0):
            raise ValueError(f"delays: got {list(self.delays)}, expected one number >= 0 per codebook, the first one 0")

    def build(self, dim: int, text: Modality | None = None) -> Speech:
        from modalities.speech.module import Speech

        return Speech(self, dim, text)

    def parameters(self, dim: int) -> int:
        from modalities.codecs.frames import CodecFrames
        from modalities.speech.features import Features

        frames = CodecFrames.parameters_of(dim, *self.codec.shape())
        return Features.parameters_of(self, dim) + frames + (self.speakers + 2) * dim + self.codec.parameters()
