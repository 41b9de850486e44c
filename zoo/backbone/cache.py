"""Key/value cache: one slot per attention module, and what the attention rule needs to know of past tokens."""

from __future__ import annotations

from torch import Tensor


class Growing:
    """A tensor that grows along one axis in doubling steps, so that appending copies only what is new."""

    def __init__(self, axis: int) -> None:
        self.axis, self.length = axis, 0
        self.buffer: Tensor | None = None

    def append(self, new: Tensor) -> Tensor:
        """All values so far, the new ones last (a view)."""
        end = self.length + new.shape[self.axis]
        if self.buffer is None or end > self.buffer.shape[self.axis]:
            shape = list(new.shape)
            shape[self.axis] = max(2 * end, 16)
            grown = new.new_empty(shape)
            if self.buffer is not None:
                grown.narrow(self.axis, 0, self.length).copy_(self.buffer.narrow(self.axis, 0, self.length))
            self.buffer = grown
        self.buffer.narrow(self.axis, self.length, new.shape[self.axis]).copy_(new)
        self.length = end
        return self.buffer.narrow(self.axis, 0, end)

    def reorder(self, rows: Tensor) -> None:
        """Keeps the batch rows `rows`, in that order."""
        if self.buffer is not None:
            self.buffer = self.buffer.index_select(0, rows)


class Cache:
    """Keys and values of `modules` attention modules, with mask, document, span and bidirectional of past tokens.

    Inference only: nothing in it carries a gradient.
    """

    def __init__(self, modules: int) -> None:
        self.keys = [Growing(2) for _ in range(modules)]
        self.values = [Growing(2) for _ in range(modules)]
        self.tokens = {name: Growing(1) for name in ("mask", "document", "span", "bidirectional")}
        self.routes: dict[str, Tensor] = {}  # what a router must remember between decoding steps

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.tokens["mask"].length

    def extend(self, **fields: Tensor) -> dict[str, Tensor]:
        """Appends the token fields [B, S] of this step; returns them for all tokens so far."""
        return {name: self.tokens[name].append(value) for name, value in fields.items()}

    def update(self, module: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends [B, H, S, d] of one attention module; returns keys and values of all tokens so far."""
        return self.keys[module].append(key.detach()), self.values[module].append(value.detach())

    def reorder(self, rows: Tensor) -> None:
        """Keeps the batch rows `rows` (int64), in that order."""
        for growing in (*self.keys, *self.values, *self.tokens.values()):
            growing.reorder(rows)
        self.routes = {name: value.index_select(0, rows) for name, value in self.routes.items()}
