"""Which parts FSDP2 shards on their own, and what keeps ranks together that use different parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from zoo.models.unified import ForwardOutput, Unified


class Sharded(ModelParallelStrategy):
    """FSDP2 over all devices. Checkpoints are folders with a part per rank, written beside and renamed."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        """
        Args:
            process_group_backend: nccl or gloo; by the devices where left out.
        """
        super().__init__(process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        """All ranks are data-parallel."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_processes * self.num_nodes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank writes its part of the new folder; then the old one makes way."""
        target = Path(self.broadcast(filepath))
        beside, old = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
        if self.global_rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, beside)
        self.barrier()
        if self.global_rank == 0:
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            beside.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain types only, whatever `weights_only` says."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def shard(model: Unified, mesh: DeviceMesh) -> None:
    """Shards a model over a mesh of data-parallel ranks, in place: each block on its own, the rest with the root.

    FSDP2 exchanges the gradients of the parameters a rank has used, so ranks whose micro-batches are of different
    modalities would wait for each other for ever: every parameter therefore takes part, with a zero gradient where it
    was not used. (AdamW's momentum and decay then move it; under DDP a parameter that no rank used stays.)
    Frozen parts of modalities (codecs, autoencoders) stay whole on every rank, since batches are prepared with them
    outside of the model's forward pass. Nothing happens to a model that is sharded already.
    What routers of several blocks share is sharded apart, and stays whole from its first use to the end of the backward
    pass, for it is used in every block.
    """
    if isinstance(model, FSDPModule):
        return
    for common in [layer.router.common for layer in model.moe_layers()]:
        if common is not None:
            fully_shard(common, mesh=mesh, reshard_after_forward=False)
    frozen = {p for p in model.modalities.parameters() if not p.requires_grad}
    for block in model.backbone.blocks:
        block.register_forward_hook(_join_block)
        fully_shard(block, mesh=mesh)
    model.register_forward_hook(_join_model)
    fully_shard(model, mesh=mesh, ignored_params=frozen)


def _nothing(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """Zero, as a function of all parameters that train."""
    if not torch.is_grad_enabled():
        return 0.0
    return 0.0 * sum(p.reshape(-1)[:1].sum() for p in parameters if p.requires_grad)


def _join_block(block: nn.Module, given: Any, out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return out[0] + _nothing(block.parameters()), out[1]


def _join_model(model: Unified, given: Any, out: ForwardOutput) -> ForwardOutput:
    rest = [*model.modalities.parameters(), *model.backbone.norm.parameters()]
    return replace(out, loss=replace(out.loss, total=out.loss.total + _nothing(rest)))
