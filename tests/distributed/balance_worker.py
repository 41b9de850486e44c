"""One of two ranks: losses, router gradients and bias updates of every layer case. Started by test_balance_ranks.py.

balance_worker.py RANK PORT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def part(case: Any, rank: int | None) -> Any:
    """Rows 0 (rank 0) or 1..3 (rank 1) of a batch of four, the last half padding; all of them for one process."""
    import torch

    from zoo.laws.probe import take

    tokens = case.tokens(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[3, 3:] = False
    rows = {None: slice(0, 4), 0: slice(0, 1), 1: slice(1, 4)}[rank]
    return take(tokens.replace(mask=mask), rows)


def optimiser_step(case: Any, rank: int | None) -> dict[str, Any]:
    """Loss, gradients and bias of one optimiser step, summed over ranks where there are any."""
    import torch
    import torch.distributed as dist

    from zoo.laws.cases import context, flat
    from zoo.laws.probe import backward, record_of, target
    from zoo.moe.balance.step import BalanceStep

    def reduce(values: torch.Tensor) -> torch.Tensor:
        if rank is not None:
            values = values.clone()
            dist.all_reduce(values)
        return values

    layer, tokens = case.layer(), part(case, rank)
    ctx, x = context(tokens), flat(tokens).requires_grad_()
    out = layer(x, ctx)
    record = record_of(out.routing, out.stats, ctx)
    step = BalanceStep([layer], reduce)
    step.add([record])
    task = target(out.y, x, ctx.mask)
    total = task + sum(step.losses([record], 0).values(), torch.zeros(()))
    gradients, _ = backward(layer, total, x)
    step.finish(0)
    found = {name: reduce(gradient) for name, gradient in gradients.items()}
    return {"loss": reduce(total.detach()), "gradients": found, "bias": layer.router.bias}


def accumulated(rank: int | None) -> dict[str, Any]:
    """scope: global over two micro-batches: the counts that the last one sees and its loss, summed over ranks. One
    process counts all rows and has the loss of the last micro-batches' ones."""
    import torch
    import torch.distributed as dist

    from zoo.laws.cases import context, flat
    from zoo.laws.probe import record_of, take
    from zoo.moe.balance.step import BalanceStep

    def reduce(values: torch.Tensor) -> torch.Tensor:
        if rank is not None:
            values = values.clone()
            dist.all_reduce(values)
        return values

    case = next(case for case in cases() if any(getattr(r, "scope", "") == "global" for r in case.spec.balance))
    layer, tokens = case.layer(), case.tokens(6, 6)
    every, late = slice(0, 6), slice(3, 6)  # both ranks' last micro-batches are rows 3 and 4, 5
    micros = {None: [every, late], 0: [slice(0, 1), slice(3, 4)], 1: [slice(1, 3), slice(4, 6)]}[rank]
    step, record = BalanceStep([layer], reduce), None
    for rows in micros:
        part = take(tokens, rows)
        ctx = context(part)
        out = layer(flat(part), ctx)
        record = record_of(out.routing, out.stats, ctx)
        if rank is not None or rows == every:  # one process counts the whole batch at once
            step.add([record])
    assert record is not None
    loss = sum(step.losses([record], 0).values(), torch.zeros(()))
    return {"counts": step.counts[0].pack(), "loss": reduce(loss.detach())}


def cases() -> list[Any]:
    """Layers whose promise reaches beyond one micro-batch: no batch-wide part, no rule of scope micro."""
    from zoo.laws.cases import LayerCase
    from zoo.laws.catalogue import all_cases

    def wide(case: Any) -> bool:
        rules = [rule for rule in case.spec.balance if getattr(rule, "scope", None) == "micro"]
        return case.properties.scope != "batch" and not rules

    return [case for case in all_cases() if isinstance(case, LayerCase) and wide(case)]


def main(rank: int, port: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {case.name: optimiser_step(case, rank) for case in cases()}
    found["accumulated"] = accumulated(rank)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
