"""One of two ranks: steps of sharded models whose layers share a part of their routers. Started by test_sharing.py.

sharing_worker.py RANK PORT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RECURRENT = {"type": "recurrent", "state": 6, "init_std": 0.3}
GATES: dict[str, dict[str, Any]] = {
    "recurrent": RECURRENT,
    "warmed up": {"type": "warm_up", "steps": 3, "gate": RECURRENT},
    "pre-gated": {"type": "pre_gated", "vocab": 259, "init_std": 0.3},
}
CASES = [("recurrent", False), ("warmed up", True), ("pre-gated", False)]


def described(gate: str, recompute: bool) -> dict[str, Any]:
    router = {"type": "top_k", "k": 2, "gate": GATES[gate]}
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": router}
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "checkpoint": recompute, "layers": [{"repeat": 3, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 16}},
    }


def steps(gate: str, recompute: bool, rank: int | None, mesh: Any = None) -> list[dict[str, Any]]:
    """The gradients of two steps, on rows 0..1 (rank 0), 2..3 (rank 1) or all of a batch of four; a pass without
    gradient before each, as exact counting has."""
    import torch

    import zoo
    from training.strategies.fsdp import shard

    model: Any = zoo.create(described(gate, recompute), seed=0).train()
    if mesh is not None:
        shard(model, mesh)
    ids = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(1))
    ids = ids if rank is None else ids[2 * rank : 2 * rank + 2]
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool), "target": ids.roll(-1, 1)}
    found = []
    for _ in range(2):
        with torch.no_grad():
            model("text", batch)
        out = model("text", batch)
        (out.loss.total / out.loss.count).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({n: g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for n, g in gradients.items()})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
    return found


def main(rank: int, port: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = DeviceMesh("cpu", [0, 1])
    found = {f"{gate}, {recompute}": steps(gate, recompute, rank, mesh) for gate, recompute in CASES}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
