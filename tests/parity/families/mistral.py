"""Mistral: a sliding window in every layer."""

BASE: dict = {"sliding_window": 7}
VARIANTS = {"window": {}, "whole": {"sliding_window": None, "head_dim": 16}, "tied": {"tie_word_embeddings": True}}
