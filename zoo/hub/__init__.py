"""Weights in and out: safetensors, cards, conversions."""
