"""LightningCLI over UnifiedModule and MixtureData: several --config compose, --print_config can be fed back."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from training.callbacks.checkpoint import LAST, last_checkpoint
from training.callbacks.predictions import Predictions
from training.checkpoint_io import AtomicCheckpointIO
from training.csv_log import CSVLog
from training.data import MixtureData
from training.module import UnifiedModule
from training.run import quiet
from training.tensorboard_log import TensorBoardLog
from zoo.hub.entries import EntryError

ALLOWED = ("training", "zoo", "modalities", "lightning", "torch")
CLASSES = ("accelerator", "strategy", "plugins", "callbacks", "logger", "profiler")  # a string may name a class here
CHECKS = ("training", "zoo", "modalities", "lightning")
MODE = "moezoo"


class ForbiddenClass(SystemExit):
    """A configuration names a class from elsewhere."""


def check_class_paths(value: Any, where: str = "") -> None:
    """Ends the program where a configuration names a class that is neither ours, Lightning's nor torch's: importing
    it would already run its code."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path" or key in CLASSES:
                for name in inner if isinstance(inner, list) else [inner]:
                    _check_name(name, f"{where}{key}")
            check_class_paths(inner, f"{where}{key}.")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            check_class_paths(inner, f"{where}{i}.")


def _check_name(name: Any, where: str) -> None:
    dotted = isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name)
    if dotted and name.split(".")[0] not in ALLOWED:
        raise ForbiddenClass(f"{where}: {name!r} is refused; classes come from {', '.join(ALLOWED)}")


def load(text: str) -> Any:
    """YAML to plain values, class paths checked before anything is imported."""
    value = get_loader("yaml")(text)
    check_class_paths(value)
    return value


class CLI(LightningCLI):
    """Checkpoints are atomic and hold no code; `--ckpt_path auto` goes on with the run of the trainer's folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Runs are bounded by steps, for the stream has no end; `predict` writes files."""
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.set_defaults({"trainer.max_epochs": -1, "trainer.use_distributed_sampler": False})

    def before_instantiate_classes(self) -> None:
        """Resolves `ckpt_path: auto`: the last.ckpt of the run's folder; for fit, none where the run is new. What
        predict writes to files is not kept in memory besides, unless asked for."""
        own = self.config[self.subcommand]
        own["weights_only"] = True
        if self.subcommand == "predict" and own.get("return_predictions") is None:
            own["return_predictions"] = False
        if own.get("ckpt_path") != "auto":
            return
        folder = own.trainer.default_root_dir or "."
        found = last_checkpoint(folder)
        if found is None and self.subcommand != "fit":
            raise FileNotFoundError(f"{folder}: no {LAST} there; train first, or name a checkpoint with --ckpt_path")
        own["ckpt_path"] = None if found is None else str(found)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, writing through AtomicCheckpointIO wherever its strategy lets one choose; logs go to its folder
        where they name no other."""
        trainer = super().instantiate_trainer(**kwargs)
        for logger in trainer.loggers:
            if isinstance(logger, (CSVLog, TensorBoardLog)):
                logger.place(Path(trainer.default_root_dir))
        if not isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def after_instantiate_classes(self) -> None:
        """Tells the trainer before setup what it will resume from, so that nothing is fitted or refused in vain."""
        own = self.config_init[self.subcommand]
        if self.subcommand == "fit" and own.get("ckpt_path") and Path(own["ckpt_path"]).exists():
            self.trainer.ckpt_path, own["ckpt_path"] = own["ckpt_path"], None


def run(argv: Sequence[str] | None) -> CLI:
    """One of Lightning's subcommands; None takes the program's own arguments."""
    set_loader(MODE, load, exceptions=(yaml.YAMLError,))
    return CLI(
        UnifiedModule,
        MixtureData,
        args=None if argv is None else list(argv),
        seed_everything_default=0,
        save_config_callback=None,
        parser_kwargs={"parser_mode": MODE},
    )


def main(argv: Sequence[str] | None) -> None:
    """As `run`, for the command line: what is expected to go wrong ends with one line and exit status 2."""
    try:
        with quiet():
            run(argv)
    except (ForbiddenClass, EntryError, MisconfigurationException, OSError, ValueError) as error:
        if isinstance(error, ValueError) and not considered(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def considered(error: BaseException) -> bool:
    """Whether an error was raised by a check of ours or Lightning's. A ValueError from elsewhere is nobody's message to
    the user, and keeps its traceback."""
    last = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return str(last.f_globals.get("__name__")).split(".")[0] in CHECKS
