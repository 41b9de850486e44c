"""The verb generate."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any, cast

from zoo.commands.outputs import PRECISIONS, REF, REMOTE, seed_option

# Settings of generation that are options; what is not given is the model's own.
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")


def generate_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--prompt", default="", help="the beginning of the text, or the question; - reads standard input")
    p.add_argument("--chat", action="store_true", help="ask through the model's chat template; prints the answer alone")
    p.add_argument("--system", metavar="TEXT", help="what the chat tells the model first")
    p.add_argument("--stream", action="store_true", help="print as it is written")
    p.add_argument("--dtype", choices=PRECISIONS, help="precision (that of the file)")
    p.add_argument(
        "--pack", action="store_true", help="store weights in the order that a CPU reads fastest; pays for long texts"
    )
    p.add_argument("--ignore-remote-code", action="store_true", help=REMOTE)
    seed_option(p)
    more = p.add_argument_group("how to write; what is left out is as generation_config.json of the model says")
    more.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens to add (256)")
    more.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token (0.8)")
    more.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    more.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens that make up P together")
    more.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as probable as the likeliest")
    more.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 shuns what was said already")
    more.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")


def run_generate(a: Namespace) -> None:
    """`zoo generate`: the prompt and what follows; with --chat the answer alone."""
    if a.system is not None and not a.chat:
        raise ValueError("--system: goes with --chat")
    prompt = sys.stdin.read().removesuffix("\n") if a.prompt == "-" else a.prompt
    import torch

    from zoo.hub.weights import load

    dtype = None if a.dtype is None else getattr(torch, a.dtype)
    model = load(a.ref, dtype=dtype, pack=a.pack, ignore_remote_code=a.ignore_remote_code)
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
