"""Balance without a loss: the selection bias follows the load.

Loss-free balancing and DeepSeek-V3 (arXiv 2408.15664, 2412.19437), LongCat-Flash's compute budget (2509.01322 eq. 2),
Ling 2.0's update of mean zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoo.moe.balance.base import BalanceSpec, check_routed_share, target_load
from zoo.moe.pool import Pool


@dataclass(frozen=True, kw_only=True)
class BiasSpec(BalanceSpec):
    """Adds weight * u(target - load) to the bias once per optimiser step; `weight` is the rate.

    step    sign (u = sign, DeepSeek-V3) or proportional (u = identity, on shares of the slots)
    target  routed | all: even load over the routed experts alone (null experts keep their bias, so they are the
            fixed reference of a compute budget) or over all experts
    routed_share  share of all slots that the routed experts together should get (LongCat-Flash's K_e / K), None for
                  what an even load gives
    centered  subtracts the mean of the changes, so that the sum of the biases stays where it is (Ling 2.0)
    """

    scope_counts: ClassVar[bool] = True
    needs_bias: ClassVar[bool] = True

    weight: float = 0.001
    step: Literal["sign", "proportional"] = "sign"
    target: Literal["routed", "all"] = "all"
    routed_share: float | None = None
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_routed_share(self.routed_share)

    def check(self, pool: Pool) -> None:
        if self.routed_share is not None and self.routed_share < 1 and not pool.null.count:
            raise ValueError("routed_share: without null experts the routed ones get all slots")

    def targets(self, pool: Pool) -> Tensor:
        """[E] the share of slots each expert should get."""
        return target_load(pool, self.routed_share).float()

    def delta(self, counts: Tensor, pool: Pool, step: int = 0) -> Tensor:
        """[E], zero where nothing was counted."""
        total = counts.sum()
        share = counts / total.clamp(min=torch.finfo(torch.float32).tiny)
        error = self.targets(pool).to(counts.device) - share.float()
        change = error.sign() if self.step == "sign" else error
        free = pool.routed if self.target == "routed" else pool.experts
        change[free:] = 0
        if self.centered:
            change[:free] -= change[:free].mean()
        return torch.where(total > 0, self.weight_at(step) * change, 0).float()
