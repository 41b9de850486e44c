"""Key/value cache: one slot per attention module, and what the attention rule needs to know of past tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalities.base import Tokens


class Growing:
    """A tensor that grows along one axis in doubling steps, so that appending copies only what is new."""

    def __init__(self, axis: int) -> None:
        self.axis, self.length = axis, 0
        self.buffer: Tensor | None = None

    def append(self, new: Tensor) -> Tensor:
        """All values so far, the new ones last (a view)."""
        start, count = self.length, new.shape[self.axis]
        self.length = end = start + count
        if self.buffer is None or end > self.buffer.shape[self.axis]:
            shape = list(new.shape)
            shape[self.axis] = max(2 * end, 16)
            grown = new.new_empty(shape)
            if self.buffer is not None:
                grown.narrow(self.axis, 0, start).copy_(self.buffer.narrow(self.axis, 0, start))
            self.buffer = grown
        self.buffer.narrow(self.axis, start, count).copy_(new)
        return self.buffer.narrow(self.axis, 0, end)

    def reorder(self, rows: Tensor) -> None:
        """Keeps the batch rows `rows`, in that order."""
        if self.buffer is not None:
            self.buffer = self.buffer.index_select(0, rows)


class Sliding(Growing):
    """Keeps the last `window` - 1 values, all that later ones can see; moves them when twice as many have come."""

    def __init__(self, axis: int, window: int) -> None:
        super().__init__(axis)
        self.window = window

    def append(self, new: Tensor) -> Tensor:
        """The last window - 1 values before the new ones (a view or a copy), and the new ones."""
        kept, count = min(self.length, self.window - 1), new.shape[self.axis]
        if self.length > kept and self._full(count):
            assert self.buffer is not None
            last = self.buffer.narrow(self.axis, self.length - kept, kept).clone()
            self.length = 0
            super().append(last)
        whole = super().append(new)
        seen = whole.narrow(self.axis, self.length - kept - count, kept + count)
        if count > self.window:  # a long prompt: later tokens see its end alone
            tail = new.narrow(self.axis, count - self.window + 1, self.window - 1)
            self.buffer, self.length = None, 0
            super().append(tail)
        return seen

    def _full(self, count: int) -> bool:
        return self.buffer is not None and self.length + count > self.buffer.shape[self.axis]


class Cache:
    """What attention modules keep of past tokens, one window (or None) per module; and the tokens' own fields.

    length  tokens seen so far
    rows    of how many rows, None before the first
    slots   tensors [B, H, L, d] of each module, as many as it keeps (keys and values, or latents)
    tokens  mask, document, span and bidirectional [B, L] of past tokens, those that some token gave
    states  by module index: what attention with a state instead of keys carries on, batch first
    routes  what a router must remember between decoding steps, batch first
    inner   by name: caches of trunks inside routers

    Inference only: nothing in it carries a gradient.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.windows, self.length = tuple(windows), 0
        self.rows: int | None = None
        self.slots: list[list[Growing]] = [[] for _ in windows]
        self.tokens: dict[str, Growing] = {}
        self.states: dict[int, tuple[Tensor, ...]] = {}
        self.routes: dict[str, Tensor] = {}
        self.inner: dict[str, Cache] = {}

    def extend(self, tokens: Tokens, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Appends this step's tokens and their fields [B, S]; returns the fields of all tokens so far.

        A field that was never given is left out; one that comes later has its plain meaning for the past.
        Raises ValueError where there are more or fewer rows than before.
        """
        rows, new = tokens.shape
        if self.rows not in (None, rows):  # one row would be copied into all places in silence
            raise ValueError(f"cache: holds {self.rows} rows, got tokens of {rows}")
        self.rows = rows
        for name, value in fields.items():
            if name not in self.tokens:
                self.tokens[name] = Growing(1)
                self.tokens[name].append(_plain(name, value, rows, self.length))
        self.length += new
        return {
            name: kept.append(fields[name] if name in fields else _plain(name, kept.buffer, rows, new))
            for name, kept in self.tokens.items()
        }

    def update(self, module: int, *new: Tensor) -> list[Tensor]:
        """Appends tensors [B, H, S, d] of one attention module; returns each with all that the new tokens may see."""
        slot, window = self.slots[module], self.windows[module]
        if not slot:
            slot.extend(Growing(2) if window is None else Sliding(2, window) for _ in new)
        values = (value.detach() if value.requires_grad else value for value in new)
        return [kept.append(value) for kept, value in zip(slot, values, strict=True)]

    def real(self) -> Tensor | int:
        """Past tokens that are not padding: [B, 1], or their number where no row has any padding."""
        if "mask" not in self.tokens:
            return self.length
        kept = self.tokens["mask"]
        assert kept.buffer is not None
        return kept.buffer[:, : kept.length].sum(1, keepdim=True)

    def reorder(self, rows: Tensor) -> None:
        """Keeps the batch rows `rows` (int64), in that order."""
        self.rows = None if self.rows is None else len(rows)
        for growing in (*(kept for slot in self.slots for kept in slot), *self.tokens.values()):
            growing.reorder(rows)
        self.states = {i: tuple(t.index_select(0, rows) for t in state) for i, state in self.states.items()}
        self.routes = {name: value.index_select(0, rows) for name, value in self.routes.items()}
        for inner in self.inner.values():
            inner.reorder(rows)


def _plain(name: str, like: Tensor | None, rows: int, count: int) -> Tensor:
    """A token field with its plain meaning: real, one document, causal."""
    assert like is not None
    return torch.full((rows, count), int(name == "mask"), dtype=like.dtype, device=like.device)
