"""What people call on a model: generate, forecast, speak, compose, sample, classify, transcribe."""

from __future__ import annotations


class Verbs:
    """Mixed into models that hold modalities."""
