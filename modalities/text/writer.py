"""Ids to text while they are drawn: each id is decoded once, and stop texts are seen as they come."""

from __future__ import annotations

from collections.abc import Sequence

from modalities.text.tokenizer import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer shows the first bytes of a character
PATIENCE = 16  # ids that may wait for the rest of a character before they are shown as they are
CONTEXT = 4  # ids of the prompt that are decoded with the first new one


class Detokeniser:
    """Ids of one text to pieces of it.

    How an id reads may depend on the one before it (a space between words, bytes of one character), so a few ids are
    decoded again with each new one, never all. `before` are the ids in front of the text.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self.decode = tokenizer.decode
        self.ids = list(before)[-CONTEXT:]
        self.shown = self.decode(self.ids)
        self.old = len(self.ids)  # of self.ids, how many have been shown

    def push(self, token: int) -> str:
        """What an id adds, nothing where a character is not complete."""
        self.ids.append(token)
        whole = self.decode(self.ids)
        if whole.endswith(UNFINISHED) and len(self.ids) - self.old < PATIENCE:
            return ""
        piece = whole[len(self.shown) :]
        if piece:
            self.ids = self.ids[self.old :][-PATIENCE:]
            self.old, self.shown = len(self.ids), self.decode(self.ids)
        elif len(self.ids) > 4 * PATIENCE:
            self.ids.pop()  # special ids in great number: they show nothing, also later
        return piece

    def finish(self) -> str:
        """What has waited for its rest in vain."""
        return self.decode(self.ids)[len(self.shown) :]


class Writer:
    """The text of one row as it grows, up to the first of the `stop` texts.

    A piece that may be the beginning of a stop text waits until it is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.detokeniser = Detokeniser(tokenizer, before)
        self.stop = tuple(stop)
        self.stopped = False
        self._ready: list[str] = []
        self._held = ""

    def push(self, token: int) -> bool:
        """Takes an id; True once a stop text has come."""
        self._add(self.detokeniser.push(token))
        return self.stopped

    def take(self) -> str:
        """What has become certain since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def finish(self) -> str:
        """The rest, when no id follows."""
        if not self.stopped:
            self._add(self.detokeniser.finish())
        rest = self.take() + self._held
        self._held = ""
        return rest

    def _add(self, piece: str) -> None:
        held = self._held + piece
        ends = [at for at in map(held.find, self.stop) if at >= 0]
        self.stopped = bool(ends)
        safe = min(ends) if ends else len(held) - self._beginning(held)
        self._ready.append(held[:safe])
        self._held = "" if ends else held[safe:]

    def _beginning(self, held: str) -> int:
        """Length of the longest end of `held` that begins a stop text."""
        longest = min(max(map(len, self.stop), default=1) - 1, len(held))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(held[-n:]) for s in self.stop)), 0)
