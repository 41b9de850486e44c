"""The description of the music modality and of its two representations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from modalities.base import Modality, ModalitySpec
from modalities.codecs.spec import CodecSpec, LogMelRVQSpec

if TYPE_CHECKING:
    from modalities.music.modality import Music


@dataclass(frozen=True, kw_only=True)
class MusicRepresentationSpec:
    """How music becomes tokens. Its `type` key is looked up in the registry under the kind "music_representation"."""

    kind: ClassVar[str] = "music_representation"

    def build(self, dim: int, text: Modality | None = None) -> Music:
        """The music modality of this representation for a trunk of width `dim`."""
        raise NotImplementedError

    def parameters(self, dim: int) -> int:
        """Number of parameters of what `build` gives with a text modality lent to it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NotesSpec(MusicRepresentationSpec):
    """Symbolic music: four voices as MIDI pitches, one token per sixteenth note.

    length      steps of a training row (16 are a bar); longer pieces are cropped at random
    transpose   training rows are moved to a key drawn within this many semitones up or down (0: never)
    """

    length: int = 64
    transpose: int = 3

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: got {self.length}, expected at least 2 steps")
        if not 0 <= self.transpose <= 12:
            raise ValueError(f"transpose: got {self.transpose}, expected 0..12 semitones")

    def build(self, dim: int, text: Modality | None = None) -> Music:
        """`text` is not used: notes take no caption."""
        from modalities.music.notes import NoteMusic

        return NoteMusic(dim, self.length, self.transpose)

    def parameters(self, dim: int) -> int:
        """Tables of pitch, change, age and beat, and the head."""
        from modalities.music.notes import NoteMusic

        return NoteMusic.parameters_of(dim)


@dataclass(frozen=True, kw_only=True)
class CodecMusicSpec(MusicRepresentationSpec):
    """Music as sound: a codec's frames under the delay pattern of UniMoE-Audio, after an optional caption.

    codec    the codec (`{type: log_mel_rvq}` is built in)
    lead     frames by which the first codebook leads the second; each later one follows one frame behind (the paper: 8)
    length   frames of a training row; longer recordings are cropped at random
    drop     share of training rows whose caption is left out, so that guidance can be used
    """

    codec: CodecSpec = field(default_factory=LogMelRVQSpec)
    lead: int = 1
    length: int = 96
    drop: float = 0.1

    def __post_init__(self) -> None:
        if self.lead < 0:
            raise ValueError(f"lead: got {self.lead}, expected 0 frames or more")
        if self.length < 2:
            raise ValueError(f"length: got {self.length}, expected at least 2 frames")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop: got {self.drop}, expected a share 0..1")

    def build(self, dim: int, text: Modality | None = None) -> Music:
        """Captions use the tokenizer and the embedding of `text`; without one the module brings its own."""
        from modalities.music.codec import CodecMusic

        codec = self.codec.build()
        delays = [0, *range(self.lead, self.lead + codec.codebooks - 1)]
        return CodecMusic(dim, codec, delays, self.length, self.drop, text)

    def parameters(self, dim: int) -> int:
        """Tables and head of the codes; the codec is frozen and not counted."""
        from modalities.codecs.frames import CodecFrames

        return CodecFrames.parameters_of(dim, *self.codec.shape())


@dataclass(frozen=True, kw_only=True)
class MusicSpec(ModalitySpec):
    """Music.

    representation   `{type: notes}` (symbolic, four voices) or `{type: codec}` (sound)
    """

    representation: MusicRepresentationSpec = field(default_factory=NotesSpec)

    def build(self, dim: int, text: Modality | None = None) -> Music:
        """The music modality of the chosen representation."""
        return self.representation.build(dim, text)

    def parameters(self, dim: int) -> int:
        """Number of parameters of the built module, the text modality's excluded."""
        return self.representation.parameters(dim)
