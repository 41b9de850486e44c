"""`python -m training fit | validate | test | predict | curriculum | compare`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), "training.lightning_cli"),
    "curriculum": "training.curriculum",
    "compare": "training.compare.command",
}
USAGE = """usage: python -m training COMMAND [options]

  fit         trains:     --config configs/train/unimoe-tiny.yaml [--config MORE.yaml] [--trainer.max_steps 500] ...
  validate    losses on validation data (--ckpt_path auto: of the run's last checkpoint)
  test        losses on test data
  predict     outputs for test data
  curriculum  stages given as data: --config configs/stages/quickstart.yaml
  compare     systems beside each other: --config configs/compare/routers-small.yaml [--seeds 3] [--dry_run]

COMMAND --help explains its options; fit --print_config prints the configuration as it was resolved.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand; only what it needs is imported."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if given[0] not in COMMANDS:
        from zoo.registry import nearest

        raise SystemExit(f"no command {given[0]!r}{nearest(given[0], list(COMMANDS))}; there are {', '.join(COMMANDS)}")
    given = packaged(given)
    module = importlib.import_module(COMMANDS[given[0]])
    if COMMANDS[given[0]] == "training.lightning_cli":
        if argv is None:  # Lightning reads sys.argv itself
            sys.argv[1:] = given
        module.main(None if argv is None else given)
    else:
        raise SystemExit(module.main(given[1:]))


def packaged(argv: Sequence[str]) -> list[str]:
    """The command line with `--config configs/...` as a file of the package, where the current folder has none."""
    from zoo.hub.entries import config_file

    words = list(argv)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            words[i] = f"{option}={config_file(value)}"
        elif i and words[i - 1] in ("--config", "-c"):
            words[i] = str(config_file(word))
    return words
