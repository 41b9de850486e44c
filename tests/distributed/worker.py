"""One of two ranks: runs all distributed cases and writes what it found. Started by test_ddp.py, not by hand.

worker.py RANK PORT FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BALANCE = {
    "none": [],
    "sequence": [{"type": "switch", "scope": "sequence", "weight": 0.1}],
    "global_exact": [{"type": "switch", "scope": "global_exact", "weight": 0.1}, {"type": "bias", "weight": 0.01}],
}
# micro-batches per rank: (modality, rows); together they are the rows of WHOLE
WHOLE = [("text", [0, 1, 2, 3]), ("time_series", [0, 1, 2, 3])]
SPREAD = {
    "same": ([("text", [0]), ("time_series", [0, 1])], [("text", [1, 2, 3]), ("time_series", [2, 3])]),
    "different": ([("text", [0, 1]), ("text", [2, 3])], [("time_series", [0, 3]), ("time_series", [1, 2])]),
}


def helpers() -> Any:
    """tests/training/conftest.py as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("training_helpers", ROOT / "tests" / "training" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(h: Any, case: str, rank: int, folder: Path) -> Any:
    """The gradients and the selection bias after one step under DDP."""
    from lightning.pytorch.strategies import DDPStrategy

    balance, spread = case.split("-")
    module = h.build_module(h.tiny_spec(BALANCE[balance], bias=balance == "global_exact"), clip=None)
    kept: list[Any] = []
    step = h.build_steps(module, SPREAD[spread][rank])
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    h.train(
        module, [step], folder, [h.keep_gradients(kept)], devices=2, strategy=strategy, use_distributed_sampler=False
    )
    bias = module.model.moe_layers()[0].router.bias
    return {"gradients": kept[0], "bias": bias}


def skipped(h: Any, rank: int, folder: Path) -> Any:
    """A step whose gradient is not finite on rank 1 alone."""
    module = h.build_module()
    steps = [h.build_steps(module, WHOLE) for _ in range(2)]
    if rank == 1:
        steps[0][1][1]["future"][0, 0] = float("nan")
    h.train(module, steps, folder, devices=2, strategy="ddp_find_unused_parameters_true", use_distributed_sampler=False)
    return {"done": module.done, "skipped": module.skipped, "state": module.model.state_dict()}


def spiked(h: Any, rank: int, folder: Path) -> Any:
    """A step whose targets are random on rank 1 alone, in a run under SpikeGuard."""
    import torch

    from training.callbacks.spikes import SpikeGuard

    module, guard = h.build_module(), SpikeGuard(start=15, within=2, decay=0.5, deviations=3.0)
    good, bad = (h.build_steps(module, SPREAD["same"][rank]) for _ in range(2))
    if rank == 1:
        target = bad[0][1]["target"]
        wrong = torch.randint(0, 200, target.shape, generator=torch.Generator().manual_seed(0))
        bad[0] = ("text", {**bad[0][1], "target": torch.where(target >= 0, wrong, -100)})
    strategy = "ddp_find_unused_parameters_true"
    steps = [good] * 20 + [bad] + [good] * 2
    h.train(module, steps, folder, [guard], devices=2, strategy=strategy, use_distributed_sampler=False)
    figures = [guard.loss.mean, guard.norm.mean]
    return {"skipped": guard.skipped, "figures": figures, "waiting": len(guard.state_dict()["pending"]),
            "state": module.model.state_dict()}  # fmt: skip


def mixture(h: Any, strategy: Any, steps: int, folder: Path, **options: Any) -> Any:
    """A run from data, with validation and checkpoints."""
    from training.run import fit
    from training.sources import build_data

    module = h.build_module(h.tiny_spec(BALANCE["global_exact"], bias=True), seed=3)
    data = build_data({"sources": h.sources(), "micro_batches": 1, "eval_batches": 2})
    fit(
        module, data, max_steps=steps, folder=folder, devices=2, accelerator="cpu", strategy=strategy, log_every=1,
        save_every=2, progress=False, tensorboard=False, **options,
    )  # fmt: skip
    report = module.report
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in module.model.state_dict().items()}
    return {"done": module.done, "state": state, "scalars": None if report is None else dict(report.scalars)}


def main() -> None:
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({k: str(v) for k, v in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"})
    import torch

    from training.strategies.fsdp import Sharded

    torch.set_num_threads(1)
    h = helpers()
    found: dict[str, Any] = {}
    for case in [f"{b}-{s}" for b in BALANCE for s in SPREAD]:
        found[case] = gradients(h, case, rank, folder / "gradients")
    found["skipped"] = skipped(h, rank, folder / "skipped")
    found["spiked"] = spiked(h, rank, folder / "spiked")
    ddp = "ddp_find_unused_parameters_true"
    found["whole"] = mixture(h, ddp, 4, folder / "ddp", val_every=2)
    mixture(h, ddp, 2, folder / "resumed")
    found["resumed"] = mixture(h, ddp, 4, folder / "resumed")
    found["averaged"] = mixture(h, ddp, 3, folder / "averaged", ema=0.5)
    for steps in (2, 4):
        found["fsdp"] = mixture(h, Sharded(), steps, folder / "fsdp", val_every=2)
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
