"""Feeding new tokens step by step, where positions may come to turn otherwise on the way."""

from __future__ import annotations

from collections.abc import Callable

from modalities.base import Tokens, cat_tokens
from zoo.backbone.cache import Cache
from zoo.backbone.rope import longest


class Restarting:
    """A step for rotary positions that jump once a row is longer than `limit` (longrope, arXiv 2402.13753).

    Tokens are kept until then, and all computed anew in the step that goes beyond, as transformers does for the Phi
    models: keys turned by the short divisors would not fit queries turned by the long ones. From then on, and in rows
    that begin beyond, the cache alone is kept.
    """

    def __init__(self, run: Callable[[Tokens, Cache], Tokens], new_cache: Callable[[], Cache], limit: int) -> None:
        self.run, self.new_cache, self.limit = run, new_cache, limit
        self.cache, self.kept, self.beyond = new_cache(), list[Tokens](), False

    def __call__(self, tokens: Tokens) -> Tokens:
        """The states of the new tokens."""
        if self.beyond:
            return self.run(tokens, self.cache)
        self.beyond = self._goes_beyond(tokens)
        if not self.beyond:
            self.kept.append(tokens)
            return self.run(tokens, self.cache)
        whole = cat_tokens([*self.kept, tokens]) if self.kept else tokens
        self.cache = self.new_cache()
        self.kept.clear()
        state = self.run(whole, self.cache).embedding
        return tokens.replace(embedding=state[:, -tokens.shape[1] :])

    def _goes_beyond(self, tokens: Tokens) -> bool:
        if tokens.position is None:
            return self.cache.length + tokens.shape[1] > self.limit
        return int(longest(tokens.position, tokens.mask)) > self.limit
