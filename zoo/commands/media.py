"""The verbs of sound, pictures and series: forecast, speak, transcribe, compose, draw."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zoo.commands.outputs import REF, free, seed_option, target_options, write_csv
from zoo.registry import nearest

if TYPE_CHECKING:
    from modalities.speech.spec import SpeechSpec


def forecast_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="a column of numbers per series, oldest first"
    )
    p.add_argument("--column", metavar="X", help="which column; may be left out where there is one")
    p.add_argument("--horizon", type=int, required=True, metavar="N", help="how many values to forecast")
    target_options(p, "a CSV for the forecast (printed where left out)", required=False)


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


def speak_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--text", required=True)
    p.add_argument("--speaker", help="a voice the model knows")
    target_options(p, "a WAV file")
    seed_option(p)


def run_speak(a: Namespace) -> None:
    """`zoo speak`: a WAV."""
    free(a.out, a.overwrite)
    from modalities.codecs.files import write_wav
    from zoo.hub.weights import load

    spoken = load(a.ref).speak(a.text, speaker=a.speaker, seed=a.seed)
    print(write_wav(a.out, spoken.audio, spoken.rate))


def transcribe_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("audio", type=Path, nargs="+", metavar="FILE", help="recordings (WAV, FLAC, OGG)")


def run_transcribe(a: Namespace) -> None:
    """`zoo transcribe`: a line per recording, its name in front where there are several."""
    from modalities.codecs.files import read_audio
    from zoo.hub.weights import load

    model = load(a.ref)
    speech = cast("SpeechSpec", model.spec.modalities[model.find("speech")])
    for path in a.audio:
        text = model.transcribe(read_audio(path, speech.rate, speech.seconds), speech.rate)
        print(text if len(a.audio) == 1 else f"{path}: {text}")


def compose_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--seconds", type=float, default=16.0, help="length of the piece (16)")
    p.add_argument("--temperature", type=float, default=1.0)
    target_options(p, "a WAV file")
    seed_option(p)


def run_compose(a: Namespace) -> None:
    """`zoo compose`: a WAV."""
    free(a.out, a.overwrite)
    from modalities.codecs.files import write_wav
    from zoo.hub.weights import load

    piece = load(a.ref).compose(seconds=a.seconds, temperature=a.temperature, seed=a.seed)
    print(write_wav(a.out, piece.audio, piece.rate))


def draw_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--label", type=int, nargs="+", metavar="N", help="class numbers, an image each")
    p.add_argument("--prompt", nargs="+", metavar="TEXT", help="prompts, an image each")
    p.add_argument("--steps", type=int, help="predictions per image")
    p.add_argument("--guidance", type=float, help="weight of classifier-free guidance")
    target_options(p, "a PNG file with all images")
    seed_option(p)


def run_draw(a: Namespace) -> None:
    """`zoo draw`: a PNG with all images."""
    free(a.out, a.overwrite)
    from modalities.vision.files import grid, write_png
    from zoo.hub.weights import load

    images = load(a.ref).sample(a.label, prompts=a.prompt, steps=a.steps, guidance=a.guidance, seed=a.seed).numpy()
    print(write_png(a.out, grid(images, columns=min(len(images), 10))))


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
