"""Which parts FSDP2 shards on their own."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from zoo.models.unified import Unified


def shard(model: Unified, mesh: DeviceMesh) -> None:
    """Shards a model over a mesh of data-parallel ranks, in place: each block on its own, the rest with the root.

    Frozen parts of modalities (codecs, autoencoders) stay whole on every rank, since batches are prepared with them
    outside of the model's forward pass. Nothing happens to a model that is sharded already.
    """
    if isinstance(model, FSDPModule):
        return
    frozen = {p for p in model.modalities.parameters() if not p.requires_grad}
    for block in model.backbone.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=frozen)
