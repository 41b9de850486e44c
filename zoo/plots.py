"""Figures of what a model does. Each function returns a matplotlib figure and remembers the numbers it shows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[list[str], list[Sequence[Any]]]  # header and rows
WIDEST = 9.0  # inches of a heat map, however many experts there are
# Okabe and Ito's colours, which colour-blind readers can tell, then the same in other strokes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STROKES = ("-", "--", ":", "-.")
_NUMBERS: WeakKeyDictionary[Any, Table] = WeakKeyDictionary()  # what each figure shows, for save_figure


def routing_heatmap(load: Mapping[str, np.ndarray], null: int = 0) -> Figure:
    """A panel per modality: layer x expert, the share of the layer's slots that each expert got.

    load is slots [layers, E], as `Trace.load()` gives it. Colours diverge around the even share 1 / E (orange above,
    purple below, which colour-blind readers can tell) and mean the same in all panels. The last `null` experts are null
    experts, marked "n" and set apart by a line. Layers without tokens are grey.
    Raises ValueError where there is nothing to show.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    shares = {name: _share(name, np.asarray(slots)) for name, slots in load.items()}
    if not shares:
        raise ValueError("load: got no modality, expected slots [layers, E] for at least one")
    width = max(table.shape[1] for table in shares.values())
    highest = max(float(np.nanmax(table, initial=0)) for table in shares.values())
    top = max(highest, 1.5 / width)
    norm = TwoSlopeNorm(1 / width, vmin=0, vmax=top)
    rows = max(table.shape[0] for table in shares.values())
    size = (1.4 + len(shares) * min(max(2.2, 0.34 * width), WIDEST), 1.3 + max(1.2, 0.34 * rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    for panel, (name, table) in zip(panels, shares.items(), strict=True):
        _panel(panel, name, table, null, norm)
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(panels[-1].images[0], ax=list(panels), label="share of the layer's slots")
    bar.set_ticks([0, 1 / width, top], labels=["0", f"1/{width}", f"{top:.2g}"])
    header = ["modality", "layer", "expert", "null", "slots", "share"]
    _NUMBERS[figure] = (header, [row for name in shares for row in _rows(name, load[name], shares[name], null)])
    return figure


def _share(name: str, slots: np.ndarray) -> np.ndarray:
    if slots.ndim != 2 or not slots.size:
        raise ValueError(f"load[{name!r}]: got shape {list(slots.shape)}, expected [layers, experts]")
    total = slots.sum(axis=1, keepdims=True)
    return np.where(total > 0, slots / np.maximum(total, 1e-12), np.nan)


def _panel(panel: Any, name: str, table: np.ndarray, null: int, norm: Any) -> None:
    from matplotlib import colormaps

    colours = colormaps["PuOr_r"].with_extremes(bad="0.8")
    panel.imshow(np.ma.masked_invalid(table), cmap=colours, norm=norm, aspect="auto")
    layers, experts = table.shape
    routed = experts - null
    step = max(1, experts // 16)
    ticks = [*range(0, routed, step), *range(routed, experts)]
    labels = [f"n{e - routed}" if e >= routed else str(e) for e in ticks]
    panel.set_xticks(ticks, labels=labels)
    panel.set_yticks(range(0, layers, max(1, layers // 12)))
    panel.set(title=name, xlabel="expert" + (" (n: null)" if null else ""))
    if 0 < null < experts:
        panel.axvline(routed - 0.5, color="black", linewidth=1)


def _rows(name: str, slots: np.ndarray, share: np.ndarray, null: int) -> list[Sequence[Any]]:
    layers, experts = share.shape
    return [
        (name, i, e, int(e >= experts - null), slots[i, e], f"{share[i, e]:.6g}")
        for i in range(layers)
        for e in range(experts)
    ]


def load_curve(steps: Sequence[int], load: np.ndarray, null: int = 0) -> Figure:
    """One layer's load over training: the share of slots [n, E] per expert at each of the steps [n], null experts
    dashed, with the even share as a line."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    share = _share("load", np.asarray(load))
    if len(steps) != len(share):
        raise ValueError(f"steps: got {len(steps)}, expected one for each of the {len(share)} rows of load")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    experts = share.shape[1]
    for e in range(experts):
        dashed = e >= experts - null
        colour = colormaps["cividis"](e / max(experts - 1, 1))
        label = f"n{e - experts + null}" if dashed else str(e)
        axes.plot(steps, share[:, e], color=colour, linestyle="--" if dashed else "-", label=label)
    axes.axhline(1 / experts, color="0.5", linewidth=1)
    axes.set(xlabel="step", ylabel="share of slots", ylim=(0, None))
    axes.legend(title="expert", ncols=max(1, experts // 8), fontsize="small", loc="upper right")
    rows = [(steps[i], e, f"{share[i, e]:.6g}") for i in range(len(share)) for e in range(experts)]
    _NUMBERS[figure] = (["step", "expert", "share"], list(rows))
    return figure


def loss_over_flops(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """A line per system: name -> (training operations so far, loss there), the first in black.

    On the left the losses, operations on a logarithmic axis. On the right, where there are several, each loss minus the
    first system's after as many operations, which is read between its points. The legend names the lowest last loss
    first. Raises ValueError where there is nothing to show.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("curves: got none, expected at least one system")
    several = len(curves) > 1
    figure = Figure(figsize=(13 if several else 7.5, 5), layout="constrained")
    panels = figure.subplots(1, 1 + several, squeeze=False)[0]
    for i, (name, (flops, losses)) in enumerate(curves.items()):
        style = _style(i)
        panels[0].plot(flops, losses, label=name, **style)
        if several:
            panels[1].plot(*_gaps((flops, losses), next(iter(curves.values()))), **style)
    panels[0].set(xscale="log", xlabel="training operations (FLOPs)", ylabel="training loss")
    if several:
        _frame_gaps(panels[1], next(iter(curves)))
    lines, names = panels[0].get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: curves[names[i]][1][-1])
    figure.legend([lines[i] for i in order], [names[i] for i in order], loc="outside right upper", fontsize="small")
    rows = [(n, f"{x:.6g}", f"{y:.6g}") for n, (xs, ys) in curves.items() for x, y in zip(xs, ys, strict=True)]
    _NUMBERS[figure] = (["system", "flops", "loss"], list(rows))
    return figure


def _style(i: int) -> dict[str, Any]:
    """Colour and stroke of the i-th system."""
    if i == 0:
        return {"color": "black", "linewidth": 2.0, "zorder": 3}
    turn, colour = divmod(i - 1, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": STROKES[turn % len(STROKES)], "linewidth": 1.3}


def _gaps(
    own: tuple[Sequence[float], Sequence[float]], first: tuple[Sequence[float], Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Operations and losses minus the first system's there, as far as it was trained that far."""
    flops, losses = np.asarray(own[0], float), np.asarray(own[1], float)
    known = (flops >= min(first[0])) & (flops <= max(first[0]))
    return flops[known], losses[known] - np.interp(flops[known], first[0], first[1])


def _frame_gaps(panel: Any, first: str) -> None:
    """Limits by the second half of the lines: the first points differ by far more than the last ones."""
    ends = np.concatenate([np.asarray(line.get_ydata())[-max(len(line.get_ydata()) // 2, 1) :] for line in panel.lines])
    reach = max(1.1 * float(np.abs(ends).max(initial=0)), 1e-3)
    panel.set(xlabel="training operations (FLOPs)", ylabel=f"training loss minus that of {first}", ylim=(-reach, reach))
    panel.set_title("below 0: better after as many operations", fontsize="small")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure (the suffix names the format), and the numbers it shows as CSV beside it, each written under
    another name first. Returns the figure's path."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(beside, format=path.suffix.lstrip(".") or "png", dpi=120)
        beside.replace(path)
        if figure in _NUMBERS:
            header, rows = _NUMBERS[figure]
            with beside.open("w", newline="", encoding="utf-8") as handle:
                writer = csv.writer(handle)
                writer.writerow(header)
                writer.writerows(rows)
            beside.replace(path.with_suffix(".csv"))
    finally:
        beside.unlink(missing_ok=True)
    return path
