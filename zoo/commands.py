"""What each verb of the command `zoo` does; heavy imports stand inside."""

from __future__ import annotations

import csv
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoo.registry import nearest

if TYPE_CHECKING:
    from modalities.speech.spec import SpeechSpec
    from zoo.trace import Trace


# Settings of generation that are options; what is not given is the model's own.
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")


def run_list(a: Namespace) -> None:
    """`zoo list`: a name per line."""
    from zoo.hub.entries import list_entries

    pretrained = True if a.pretrained else None
    for name in list_entries(a.pattern, modality=a.modality, router=a.router, pretrained=pretrained):
        print(name)


def run_show(a: Namespace) -> None:
    """`zoo show`: a card, the keys of a part, or the page of all entries."""
    if a.all == (a.name is not None):
        raise ValueError("show: expected the name of an entry, or --all")
    if a.schema:
        if a.all:
            raise ValueError("show: --schema documents one part or kind; expected its name in place of --all")
        from zoo.schema import document

        print(document(a.name))
        return
    from zoo.hub.entries import card, list_entries

    cards = [card(name) for name in (list_entries() if a.all else [a.name])]
    if a.markdown:
        from zoo.hub.systems import page, section

        print(page(cards) if a.all else "\n".join(section(cards[0])), end="" if a.all else "\n")
        return
    print("\n\n".join(map(str, cards)))


def run_generate(a: Namespace) -> None:
    """`zoo generate`: the prompt and what follows; with --chat the answer alone."""
    if a.system is not None and not a.chat:
        raise ValueError("--system: goes with --chat")
    prompt = sys.stdin.read().removesuffix("\n") if a.prompt == "-" else a.prompt
    import torch

    from zoo.hub.weights import load

    model = load(a.ref, dtype=None if a.dtype is None else getattr(torch, a.dtype))
    given = {name: getattr(a, name) for name in SAMPLING}
    settings: Any = {name: value for name, value in given.items() if value is not None}
    if a.chat:
        from zoo.inference.conversation import Conversation

        pieces = Conversation(model, a.system).ask(prompt, seed=a.seed, **settings)
    else:
        pieces = cast("Iterator[str]", model.generate(prompt, stream=True, seed=a.seed, **settings))
        print(prompt, end="", flush=True)
    for piece in pieces if a.stream else ["".join(pieces)]:
        print(piece, end="", flush=True)
    print()


def run_forecast(a: Namespace) -> None:
    """`zoo forecast`: the next values, printed or to a CSV."""
    free(a.out, a.overwrite)
    series = _column(a.csv, a.column)
    from zoo.hub.weights import load

    values = load(a.ref).forecast(series, a.horizon).tolist()
    if a.out is None:
        for value in values:
            print(f"{value:.6g}")
        return
    print(write_csv(a.out, ["step", "forecast"], [(i, f"{v:.9g}") for i, v in enumerate(values, 1)]))


def _column(path: Path, column: str | None) -> list[float]:
    """The series of one column. Raises ValueError naming the columns there are."""
    from modalities.time_series.files import read_series

    found = dict(read_series(path))
    if column is None and len(found) == 1:
        return next(iter(found.values()))
    if column not in found:
        wanted = "name one with --column" if column is None else f"no column {column!r}{nearest(column, list(found))}"
        raise ValueError(f"{path}: {wanted}; columns of numbers are {', '.join(found)}")
    return found[column]


def run_speak(a: Namespace) -> None:
    """`zoo speak`: a WAV."""
    free(a.out, a.overwrite)
    from modalities.codecs.files import write_wav
    from zoo.hub.weights import load

    spoken = load(a.ref).speak(a.text, speaker=a.speaker, seed=a.seed)
    print(write_wav(a.out, spoken.audio, spoken.rate))


def run_transcribe(a: Namespace) -> None:
    """`zoo transcribe`: a line per recording, its name in front where there are several."""
    from modalities.codecs.files import read_audio
    from zoo.hub.weights import load

    model = load(a.ref)
    speech = cast("SpeechSpec", model.spec.modalities[model.find("speech")])
    for path in a.audio:
        text = model.transcribe(read_audio(path, speech.rate, speech.seconds), speech.rate)
        print(text if len(a.audio) == 1 else f"{path}: {text}")


def run_compose(a: Namespace) -> None:
    """`zoo compose`: a WAV."""
    free(a.out, a.overwrite)
    from modalities.codecs.files import write_wav
    from zoo.hub.weights import load

    piece = load(a.ref).compose(seconds=a.seconds, temperature=a.temperature, seed=a.seed)
    print(write_wav(a.out, piece.audio, piece.rate))


def run_draw(a: Namespace) -> None:
    """`zoo draw`: a PNG with all images."""
    free(a.out, a.overwrite)
    from modalities.vision.files import grid, write_png
    from zoo.hub.weights import load

    images = load(a.ref).sample(a.label, prompts=a.prompt, steps=a.steps, guidance=a.guidance, seed=a.seed).numpy()
    print(write_png(a.out, grid(images, columns=min(len(images), 10))))


def run_trace(a: Namespace) -> None:
    """`zoo trace`: the load of each layer's experts as a table; every token's experts as CSV; a heat map."""
    free(a.out, a.overwrite)
    numbers = None if a.plot is None else a.plot.with_suffix(".csv")  # of the heat map
    if numbers is not None and a.out is not None and numbers.absolute() == a.out.absolute():
        raise ValueError(f"{a.out}: the heat map writes its numbers there; choose another name for --out or --plot")
    for path in (a.plot, numbers):
        free(path, a.overwrite)
    text = _text(a.text)
    from zoo.hub.weights import load
    from zoo.models.language import read_text
    from zoo.trace import trace

    model = load(a.ref)
    with trace(model) as found:
        read_text(model, text)
    _print_load(found)
    if a.out is not None:
        print(found.to_csv(a.out, overwrite=a.overwrite))
    if a.plot is not None:
        from zoo.plots import routing_heatmap, save_figure

        print(save_figure(routing_heatmap(found.load(), found.null), a.plot))


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
    if not text:
        raise ValueError(f"{path}: is empty, expected some text")
    return text


def _print_load(found: Trace) -> None:
    """Shares of each layer's slots in per cent, null experts marked."""
    for name, slots in found.load().items():
        experts = slots.shape[1]
        heads = [f"n{e - experts + found.null}" if e >= experts - found.null else str(e) for e in range(experts)]
        print(f"{name}: share of slots per expert, %")
        print("layer " + " ".join(f"{h:>5}" for h in heads))
        for i, row in enumerate(slots):
            print(f"{i:>5} " + " ".join(f"{100 * n / max(row.sum(), 1):5.1f}" for n in row))


def run_laws(a: Namespace) -> int:
    """`zoo laws`: the report; status 1 where a law is broken."""
    from zoo import laws

    if a.list:
        print(laws.listing())
        return 0
    results = laws.run(a.part)
    print(laws.report(results))
    return int(any(r.outcome in ("broken", "error") for r in results))


def run_claims(a: Namespace) -> int:
    """`zoo claims`: figure against expectation; status 1 where a check crashed, with --strict where one fails."""
    from zoo import claims
    from zoo.hub.entries import find_entry, is_path, read_entry

    entry = read_entry(Path(a.name)) if is_path(a.name) else find_entry(a.name)
    results = []
    for result in claims.run(entry, only=a.claim, slow=a.slow, seed=a.seed, progress=not a.json):
        results.append(result)
        if not a.json:
            print("\n".join(result.lines()), flush=True)
        if a.record and result.finding is not None:
            from zoo.hub.recording import record

            record(entry.path, result.claim.name, claims.found(entry, result, a.seed))
    if a.json:
        print(json.dumps([result.plain() for result in results], indent=2))
    bad = ("error", "fails") if a.strict else ("error",)
    return int(any(result.outcome in bad for result in results))


def run_convert(a: Namespace) -> None:
    """`zoo convert`: the folder."""
    from zoo.hub.convert import convert

    print(convert(a.checkpoint, a.folder, overwrite=a.overwrite))


def free(path: Path | None, overwrite: bool) -> None:
    """Raises FileExistsError where an output is there already and may not be replaced."""
    if path is not None and path.exists() and not overwrite:
        raise FileExistsError(f"{path}: already exists; choose another file, or give --overwrite")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            writer.writerows(rows)
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
