"""Figures: what they show, on which scale, and the numbers beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from zoo.plots import load_curve, loss_over_flops, routing_heatmap, save_figure

LOAD = {"text": np.array([[1, 1, 2, 4], [0, 0, 0, 0]]), "vision": np.array([[2, 2, 2, 2], [8, 0, 0, 0]])}


def test_panels_share_one_scale_around_the_even_share() -> None:
    figure = routing_heatmap(LOAD, null=1)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [p.get_title() for p in panels] == ["text", "vision"]
    norms = [p.images[0].norm for p in panels]
    assert norms[0] is norms[1]
    assert (norms[0].vmin, norms[0].vcenter, norms[0].vmax) == (0, 0.25, 1.0)
    shown = panels[0].images[0].get_array()
    assert shown[0].tolist() == [0.125, 0.125, 0.25, 0.5] and bool(np.ma.getmaskarray(shown)[1].all())
    assert [t.get_text() for t in panels[0].get_xticklabels()] == ["0", "1", "2", "n0"]


def test_numbers_stand_beside_the_figure(tmp_path: Path) -> None:
    path = save_figure(routing_heatmap(LOAD, null=1), tmp_path / "sub" / "load.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 16
    assert rows[3] == {"modality": "text", "layer": "0", "expert": "3", "null": "1", "slots": "4", "share": "0.5"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["load.csv", "load.png"]


def test_an_even_load_and_many_experts() -> None:
    assert routing_heatmap({"text": np.ones((2, 3))}).axes
    wide = routing_heatmap({"text": np.ones((30, 200))}, null=2)
    assert len(wide.axes[0].get_xticks()) < 30


def test_load_over_training(tmp_path: Path) -> None:
    path = save_figure(load_curve([0, 10, 20], np.array([[1, 1], [3, 1], [0, 4]]), null=1), tmp_path / "curve.svg")
    rows = path.with_suffix(".csv").read_text(encoding="utf-8").split()
    assert rows[:4] == ["step,expert,share", "0,0,0.5", "0,1,0.5", "10,0,0.75"]
    with pytest.raises(ValueError, match="steps: got 1, expected one for each of the 2 rows"):
        load_curve([0], np.ones((2, 2)))


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="got no modality"):
        routing_heatmap({})
    with pytest.raises(ValueError, match=r"load\['text'\]: got shape \[3\], expected \[layers, experts\]"):
        routing_heatmap({"text": np.ones(3)})


def test_losses_over_operations(tmp_path: Path) -> None:
    figure = loss_over_flops({"first": ([1e6, 2e6], [3.0, 2.0]), "second": ([1e6, 4e6], [3.0, 1.5])})
    axes, gaps = figure.axes
    assert axes.get_xscale() == "log" and [line.get_label() for line in axes.lines] == ["first", "second"]
    assert axes.lines[0].get_color() == "black" != axes.lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["second", "first"]  # the lowest loss first
    assert gaps.lines[0].get_ydata().tolist() == [0, 0] and gaps.lines[1].get_ydata().tolist() == [0]
    later = loss_over_flops({"first": ([1e6, 3e6], [3.0, 2.0]), "second": ([2e6, 4e6], [2.25, 1.5])}).axes[1]
    assert later.lines[1].get_ydata().tolist() == [-0.25]  # between the first one's points, not beyond them
    assert len(loss_over_flops({"alone": ([1e6], [3.0])}).axes) == 1
    with save_figure(figure, tmp_path / "loss.png").with_suffix(".csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[3] == {"system": "second", "flops": "4e+06", "loss": "1.5"}
    with pytest.raises(ValueError, match="curves: got none"):
        loss_over_flops({})
