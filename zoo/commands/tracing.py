"""The verb trace."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.commands.outputs import REF, REMOTE, free

if TYPE_CHECKING:
    from torch import nn

    from zoo.trace import Trace

ROUTING, PICTURE = "routing.csv", "load.png"
FILES = (ROUTING, PICTURE, "load.csv")  # the picture's numbers stand beside it
TRUNK = "backbone.blocks."


def trace_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--text", type=Path, required=True, metavar="FILE", help="the text to read")
    p.add_argument("--rows", type=int, metavar="N", help="read the first N rows only, each of the model's length")
    says = f"a folder for {ROUTING} (every token's experts), {PICTURE} (a heat map) and its numbers"
    p.add_argument("--out", type=Path, metavar="DIR", help=says)
    p.add_argument("--ignore-remote-code", action="store_true", help=REMOTE)
    p.add_argument("--overwrite", action="store_true", help="replace what is there")


def run_trace(a: Namespace) -> None:
    """`zoo trace`: the load of each layer's experts as a table; every token's experts as CSV; a heat map."""
    if a.rows is not None and a.rows < 1:
        raise ValueError(f"--rows: got {a.rows}, expected 1 or more")
    if a.out is not None and a.out.is_file():
        raise FileExistsError(f"{a.out}: is a file, expected a folder for {', '.join(FILES)}")
    for name in FILES if a.out is not None else ():
        free(a.out / name, a.overwrite)
    text = _text(a.text)
    from zoo.hub.weights import load
    from zoo.models.language import read_text
    from zoo.trace import trace

    model = load(a.ref, ignore_remote_code=a.ignore_remote_code)
    places = _places(model)
    if not places:
        raise ValueError(f"{a.ref}: a dense model; no block has experts, so there is no routing to trace")
    with trace(model) as found:
        read_text(model, text, most=a.rows)
    _print_load(found, places)
    if a.out is not None:
        from zoo.plots import routing_heatmap, save_figure

        print(found.to_csv(a.out / ROUTING, overwrite=a.overwrite))
        print(save_figure(routing_heatmap(found.load(), found.null), a.out / PICTURE))


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
    if not text:
        raise ValueError(f"{path}: is empty, expected some text")
    return text


def _places(model: nn.Module) -> list[str]:
    """What each MoE layer is called: its number, with its place in the block where some are not the feed-forward
    layer."""
    from zoo.backbone.trunk import Backbone

    names = {id(module): name for name, module in model.named_modules()}
    trunks = [module for module in model.modules() if isinstance(module, Backbone)]
    places = [names[id(layer)].removeprefix(TRUNK).partition(".") for trunk in trunks for layer in trunk.moe_layers()]
    plain = all(place == "ffn" for _, _, place in places)
    return [str(i) if plain else f"{i} ({block}.{place})" for i, (block, _, place) in enumerate(places)]


def _print_load(found: Trace, places: Sequence[str]) -> None:
    """Shares of each layer's slots in per cent, null experts marked, and the slots that a token fills."""
    wide = max(5, *map(len, places))
    mean_k = found.mean_k()
    for name, slots in found.load().items():
        experts = slots.shape[1]
        heads = [f"n{e - experts + found.null}" if e >= experts - found.null else str(e) for e in range(experts)]
        print(f"{name}: share of slots per expert, %")
        print(f"{'layer':{wide}} " + " ".join(f"{h:>5}" for h in heads) + " | mean k")
        for place, row, k in zip(places, slots, mean_k[name], strict=True):
            shares = " ".join(f"{100 * n / max(row.sum(), 1):5.1f}" for n in row)
            print(f"{place:>{wide}} {shares} | {k:6.2f}")
