"""The command `zoo`: `zoo --help` lists its verbs. Torch is imported only by verbs that need it.

Errors are one line that names the thing and the fix, with exit status 2; nothing that exists is overwritten unless
`--overwrite` is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from zoo import commands
from zoo.registry import nearest

REF = "an entry that has weights, a saved model's folder, or hf:org/name@revision"


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and leave the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each verb."""
    top = Parser(prog="zoo", description="A zoo of Mixture-of-Experts models.", allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    made: dict[str, Parser] = {}
    for name, (says, arguments) in VERBS.items():
        made[name] = verbs.add_parser(name, help=says, description=says, allow_abbrev=False)
        arguments(made[name])
        made[name].set_defaults(run=getattr(commands, f"run_{name}"))
    return top, made


def _list(p: Parser) -> None:
    p.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as '*audio*'")
    p.add_argument("--modality", help="only entries with this modality")
    p.add_argument("--router", help="only entries with this router")
    p.add_argument("--pretrained", action="store_true", help="only entries with weights")


def _show(p: Parser) -> None:
    ref = "an entry, a YAML file or a saved model's folder; with --schema a part"
    p.add_argument("name", metavar="NAME", nargs="?", help=ref)
    p.add_argument("--schema", action="store_true", help="the keys of a part (top_p, router.top_p) or kind (router)")
    p.add_argument("--all", action="store_true", help="all entries")
    p.add_argument("--markdown", action="store_true", help="as Markdown; with --all the page docs/systems.md")


def _seed(p: Parser) -> None:
    p.add_argument("--seed", type=int, default=0, help="draws everything that is random (0)")


def _target(p: Parser, name: str, required: bool = True) -> None:
    p.add_argument("--out", type=Path, required=required, metavar="FILE", help=name)
    p.add_argument("--overwrite", action="store_true", help="replace what is there")


def _generate(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--prompt", default="", help="the beginning of the text, or the question; - reads standard input")
    p.add_argument("--chat", action="store_true", help="ask through the model's chat template; prints the answer alone")
    p.add_argument("--system", metavar="TEXT", help="what the chat tells the model first")
    p.add_argument("--stream", action="store_true", help="print as it is written")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision (that of the file)")
    _seed(p)
    more = p.add_argument_group("how to write; what is left out is as generation_config.json of the model says")
    more.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens to add (256)")
    more.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token (0.8)")
    more.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    more.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens that make up P together")
    more.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as probable as the likeliest")
    more.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 shuns what was said already")
    more.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")


def _forecast(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="a column of numbers per series, oldest first"
    )
    p.add_argument("--column", metavar="X", help="which column; may be left out where there is one")
    p.add_argument("--horizon", type=int, required=True, metavar="N", help="how many values to forecast")
    _target(p, "a CSV for the forecast (printed where left out)", required=False)


def _trace(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--text", type=Path, required=True, metavar="FILE", help="the text to read")
    p.add_argument("--plot", type=Path, metavar="PNG", help="a heat map of the load")
    _target(p, "a CSV with every token's experts", required=False)


def _laws(p: Parser) -> None:
    p.add_argument("--part", metavar="NAME", help="only what concerns this part, such as top_p")
    p.add_argument("--list", action="store_true", help="say what the laws are and run none")


def _claims(p: Parser) -> None:
    p.add_argument("name", metavar="NAME", help="an entry, or an entry's YAML file")
    p.add_argument("--claim", metavar="X", help="only this claim, slow or not")
    p.add_argument("--slow", action="store_true", help="check those that take long too")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--strict", action="store_true", help="exit status 1 where a claim does not hold")
    p.add_argument("--record", action="store_true", help="write what is found into the entry's file")
    _seed(p)


def _convert(p: Parser) -> None:
    p.add_argument("checkpoint", type=Path, metavar="CKPT", help="a checkpoint of our training, such as last.ckpt")
    p.add_argument("folder", type=Path, metavar="DIR", help="the folder to write")
    p.add_argument("--overwrite", action="store_true", help="replace a saved model that is there")


def _speak(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--text", required=True)
    p.add_argument("--speaker", help="a voice the model knows")
    _target(p, "a WAV file")
    _seed(p)


def _transcribe(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("audio", type=Path, nargs="+", metavar="FILE", help="recordings (WAV, FLAC, OGG)")


def _compose(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--seconds", type=float, default=16.0, help="length of the piece (16)")
    p.add_argument("--temperature", type=float, default=1.0)
    _target(p, "a WAV file")
    _seed(p)


def _draw(p: Parser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--label", type=int, nargs="+", metavar="N", help="class numbers, an image each")
    p.add_argument("--prompt", nargs="+", metavar="TEXT", help="prompts, an image each")
    p.add_argument("--steps", type=int, help="predictions per image")
    p.add_argument("--guidance", type=float, help="weight of classifier-free guidance")
    _target(p, "a PNG file with all images")
    _seed(p)


VERBS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "list": ("names of the entries", _list),
    "show": ("the card of an entry, or the keys of a part", _show),
    "generate": ("write text", _generate),
    "forecast": ("continue a time series", _forecast),
    "speak": ("say a text", _speak),
    "transcribe": ("write down recordings", _transcribe),
    "compose": ("write a piece of music", _compose),
    "draw": ("draw images for classes or prompts", _draw),
    "trace": ("which experts serve a text", _trace),
    "laws": ("check what parts promise", _laws),
    "claims": ("check what a system promises", _claims),
    "convert": ("make a saved model of a training checkpoint", _convert),
}


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as settings. Raises UsageError with the near miss of a mistyped verb or option."""
    top, verbs = parser()
    if argv and not argv[0].startswith("-"):
        if argv[0] not in verbs:
            raise UsageError(f"no verb {argv[0]!r}{nearest(argv[0], list(verbs))}; there are {', '.join(verbs)}")
        known = [option for action in verbs[argv[0]]._actions for option in action.option_strings]
        for word in argv[1:]:
            option = word.partition("=")[0]
            if option.startswith("--") and len(option) > 2 and option not in known:
                raise UsageError(
                    f"no option {option!r} of {argv[0]}{nearest(option, known)}; there are {', '.join(known)}"
                )
    return top.parse_args(list(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit status: 0; 1 where checks fail; 2 on an error; 130 if interrupted."""
    try:
        settings = read(sys.argv[1:] if argv is None else argv)
        return int(settings.run(settings) or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader went away, as in `zoo list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, LookupError, OSError, ImportError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"zoo: error: {said}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
