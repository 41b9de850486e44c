"""SparseMixer: picks one after the other, each weighed against its near ties (GRIN, arXiv 2409.12136; PhiMoE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import GatedRouter, GatedRouterSpec
from zoo.moe.routers.near_tie import earlier_picks, near_tie
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class SparseMixerSpec(GatedRouterSpec):
    """Every token picks k experts one after the other. A pick weighs its softmax share among the experts that are left
    and nearly tie with the best of them, so k clear picks weigh 1 each and k in all.

    In training a pick is drawn from that softmax. One that is not the best then weighs a third of its share in three
    cases of four, while the gradient stays that of the share: Heun's third-order estimate of the gradient through the
    choice (equation 5 ff.). Without noise the best is picked and weighs its share.

    k         experts per token
    near_tie  relative gap below which two logits tie, divided by two (PhiMoE's router_jitter_noise)
    """

    k: int = 2
    near_tie: float = 0.01

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k: got {self.k}, expected 1 or more")
        if self.near_tie < 0:
            raise ValueError(f"near_tie: got {self.near_tie}, expected 0 or more")

    def properties(self, pool: Pool) -> Properties:
        return Properties(noise=True, task_gradient="estimator")

    def check(self, pool: Pool) -> None:
        if self.k > pool.experts:
            raise ValueError(f"k: got {self.k}, expected at most {pool.experts}, the number of routed and null experts")
        if pool.shared:
            raise ValueError("type: sparse_mixer cannot weigh shared experts; expected shared.gate: none or sigmoid")

    def mean_k(self, pool: Pool) -> float:
        return float(self.k)

    def build(self, dim: int, pool: Pool) -> SparseMixer:
        return SparseMixer(self, dim, pool)


class SparseMixer(GatedRouter):
    """See SparseMixerSpec."""

    def __init__(self, spec: SparseMixerSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.spec = spec

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        raw, logits, weighing, carry, update = self.gate(x, ctx)
        scores = self.eligible(logits, ctx)
        generator = ctx.generator if ctx.training else None
        expert = self._pick(scores.detach(), generator).masked_fill(~ctx.mask[:, None], self.pool.experts)
        gate, _ = self.weigh(weighing, expert)
        if generator is not None:
            factor = self._midpoint(weighing.detach(), expert, generator)
            gate = gate + (gate * (factor - 1)).detach()
        return Routing(expert=expert, gate=gate, raw=raw, scores=scores, mask=ctx.mask, carry=carry, update=update)

    def _pick(self, left: Tensor, generator: torch.Generator | None) -> Tensor:
        """scores [T, E] -> [T, k] ids, E where nothing is left: the best, or one drawn among its near ties."""
        picks = []
        for _ in range(self.spec.k):
            best, choice = left.max(-1, keepdim=True)
            if generator is not None:
                tied = near_tie(best, left, self.spec.near_tie)
                drawn = left.masked_fill(~tied, -torch.inf) - _draw(left.shape, generator, left).log().neg().log()
                choice = drawn.argmax(-1, keepdim=True)  # the Gumbel-max trick
            picks.append(choice.masked_fill(best == -torch.inf, self.pool.experts))
            left = left.scatter(1, choice, -torch.inf)
        return torch.cat(picks, dim=-1)

    def _midpoint(self, raw: Tensor, expert: Tensor, generator: torch.Generator) -> Tensor:
        """[T, k] 1 for a pick that is the best of what was left, else 1 in one case of four and 1/3 in the others."""
        _, rivals, index = self._rivals(raw, expert)
        best = raw.gather(1, index) >= rivals.amax(-1)
        return torch.where(best | (_draw(expert.shape, generator, raw) > 0.75), 1.0, 1 / 3)

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        """A slot's share among what the slots before it left; an expert that a policy put there counts as tied."""
        picks, rivals, index = self._rivals(raw, expert)
        tied = picks | near_tie(rivals.amax(-1, keepdim=True), rivals, self.spec.near_tie)
        share = torch.softmax(rivals.masked_fill(~tied, -torch.inf), dim=-1)
        gate = share.gather(-1, index[..., None])[..., 0]
        return torch.where(expert < self.pool.experts, gate, 0), None

    def _rivals(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, k, E] what a slot picked and the logits left to it (-inf where picked before); the ids clamped to E."""
        experts = self.pool.experts
        index = expert.clamp(max=experts - 1)
        picks, earlier = earlier_picks(index, expert < experts, experts)
        return picks, raw[:, None, :].masked_fill(earlier, -torch.inf), index


def _draw(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) in float32 at least."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return uniform.clamp(min=1e-12).to(like)
