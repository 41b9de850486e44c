"""A multimodal zoo of Mixture-of-Experts models: the public verbs.

Importing this imports neither torch nor anything heavier; each verb brings what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.create import create
from zoo.hub.entries import card, list_entries
from zoo.trace import trace

if TYPE_CHECKING:
    from zoo.hub.conversion.export import export
    from zoo.hub.processor import processor
    from zoo.hub.weights import load, save

    __version__: str

__all__ = ["__version__", "card", "create", "export", "list_entries", "load", "processor", "save", "trace"]

_LAZY = {
    "load": "zoo.hub.weights",
    "save": "zoo.hub.weights",
    "export": "zoo.hub.conversion.export",
    "processor": "zoo.hub.processor",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("moezoo")
    if name not in _LAZY:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
