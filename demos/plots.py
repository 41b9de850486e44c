"""Figures of routing, as the demos show them; drawn in `zoo.plots`, which training uses too."""

from zoo.plots import load_curve, routing_heatmap, save_figure

__all__ = ["load_curve", "routing_heatmap", "save_figure"]
