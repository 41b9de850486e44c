"""The trunk: attention, blocks, layers, cache."""
