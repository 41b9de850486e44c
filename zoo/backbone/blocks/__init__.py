"""Blocks: how attention, feed-forward layers and residuals are wired."""
