"""The command `zoo`: `zoo --help` lists its verbs. Torch is imported only by verbs that need it.

Errors are one line that names the thing and the fix, with exit status 2; nothing that exists is overwritten unless
`--overwrite` is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from zoo.commands import checkpoints, entries, media, tracing, writing
from zoo.registry import nearest


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
    for name, (says, module) in VERBS.items():
        made[name] = verbs.add_parser(name, help=says, description=says, allow_abbrev=False)
        function = name.replace("-", "_")
        getattr(module, f"{function}_options")(made[name])
        made[name].set_defaults(run=getattr(module, f"run_{function}"))
    return top, made


# What each verb is for, and where its NAME_options and run_NAME are.
VERBS: dict[str, tuple[str, ModuleType]] = {
    "list": ("names of the entries, or of the public families", entries),
    "show": ("the card of an entry, or the keys of a part", entries),
    "generate": ("write text", writing),
    "forecast": ("continue a time series", media),
    "speak": ("say a text", media),
    "transcribe": ("write down recordings", media),
    "compose": ("write a piece of music", media),
    "draw": ("draw images for classes or prompts", media),
    "trace": ("which experts serve a text", tracing),
    "laws": ("check what parts promise", entries),
    "claims": ("check what a system promises", entries),
    "load-check": ("what a folder of weights is, and whether all of it fits", checkpoints),
    "convert": ("a model to the layout of a public family, or to ours", checkpoints),
    "average": ("one model of the weights that a training kept on its way", checkpoints),
    "prefetch": ("fetch a model from the hub into its cache", checkpoints),
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
