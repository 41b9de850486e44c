"""What AdamW remembers of each parameter, by name: read from a run's checkpoint, given to the optimiser of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from training import optimiser
from training.checkpoint_io import AtomicCheckpointIO

if TYPE_CHECKING:
    from training.module import UnifiedModule

Moments = dict[str, dict[str, Tensor]]
"""Kind (exp_avg, exp_avg_sq, step) -> name of the parameter -> moment."""


def read(checkpoint: Path, module: UnifiedModule) -> Moments:
    """The moments in the last checkpoint of a run of `module`.

    Raises ValueError where it is sharded over ranks, or not of this model.
    """
    if checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: is sharded over ranks; expected one file to carry an optimiser's moments from")
    states = AtomicCheckpointIO().load_checkpoint(checkpoint)["optimizer_states"][0]["state"]
    h, model = module.hparams, module.model
    width = optimiser.width_factor(model.spec.backbone.dim, h["tuned_width"])
    order = _names(optimiser.groups(model, h["weight_decay"], h["decay_embeddings"], width), model)
    if any(index >= len(order) for index in states):
        raise ValueError(f"{checkpoint}: remembers other parameters than the {len(order)} that this model trains")
    found: Moments = {}
    for index, state in states.items():
        for kind, value in state.items():
            found.setdefault(kind, {})[order[index]] = value
    return found


def _names(groups: Iterable[Mapping[str, Any]], model: nn.Module) -> list[str]:
    """Names of the parameters of an optimiser's groups, in their order."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for group in groups for parameter in group["params"]]


class Remember(L.Callback):
    """Gives the optimiser moments before its first step; a run that goes on has its own."""

    def __init__(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """
        Args:
            moments: Kind -> name of the parameter -> moment; parameters that are left out begin anew.
        """
        super().__init__()
        self.moments = moments

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError where ranks hold parts of parameters: the moments are whole."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "optimiser: moments cannot be carried into a stage that ModelParallelStrategy shards; expected "
                "optimiser: reset there"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the optimiser's state, on the parameters' device."""
        if trainer.ckpt_path is not None:
            return
        assert isinstance(pl_module.model, nn.Module)
        adam, parameters = trainer.optimizers[0], dict(pl_module.model.named_parameters())
        for name in _names(adam.param_groups, pl_module.model):
            given = {kind: by_name[name] for kind, by_name in self.moments.items() if name in by_name}
            if given:
                adam.state[parameters[name]] = {k: v.to(parameters[name].device) for k, v in given.items()}
