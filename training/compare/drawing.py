"""The plots of a comparison: loss over training operations, and a heat map of each system's load."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.compare.cells import Measurement
from training.compare.plan import Plan
from zoo.plots import loss_over_flops, routing_heatmap, save_figure


def draw(plan: Plan) -> list[Path]:
    """loss.png (means over seeds, the reference first) and routing-SYSTEM.png (first seed), numbers beside as CSV."""
    found = {system.name: plan.found(system) for system in plan.systems}
    found = {name: cells for name, cells in found.items() if cells}
    order = sorted(found, key=lambda name: name != plan.spec.reference)
    paths = []
    if order:
        figure = loss_over_flops({name: curve(found[name]) for name in order})
        paths.append(save_figure(figure, plan.folder / "loss.png"))
    for name, cells in found.items():
        if cells[0].layers:
            load, null = heat(cells[0])
            paths.append(save_figure(routing_heatmap({name: load}, null), plan.folder / f"routing-{name}.png"))
    return paths


def curve(cells: list[Measurement]) -> tuple[list[float], list[float]]:
    """(training operations, loss), means over seeds at each point."""
    points = np.asarray([[(spent, loss) for _, loss, spent in cell.curve] for cell in cells]).mean(axis=0)
    return points[:, 0].tolist(), points[:, 1].tolist()


def heat(cell: Measurement) -> tuple[np.ndarray, int]:
    """Slots [layers, E] on held-out text and the number of null experts at their end. Layers with fewer routed experts
    than the widest have zeros between theirs and the null ones."""
    routed = max(layer.routed for layer in cell.layers)
    null = max(len(layer.load) - layer.routed for layer in cell.layers)
    load = np.zeros((len(cell.layers), routed + null), dtype=np.int64)
    for row, layer in zip(load, cell.layers, strict=True):
        row[: layer.routed] = layer.load[: layer.routed]
        row[routed : routed + len(layer.load) - layer.routed] = layer.load[layer.routed :]
    return load, null
