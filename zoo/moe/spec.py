"""The description of the MoE layer; it checks its parts against each other and counts what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.moe.balance.base import BalanceSpec
from zoo.moe.dispatch.base import DispatchSpec
from zoo.moe.dispatch.local import LocalSpec
from zoo.moe.experts.base import Backend, ExpertSpec
from zoo.moe.experts.null import null_cost
from zoo.moe.experts.shared import SharedSpec
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.policies.base import PolicySpec
from zoo.moe.pool import NullSpec, Pool, Properties, weakest
from zoo.moe.routers.base import GatedRouterSpec, RouterSpec
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class MoESpec(FeedForwardSpec):
    """A feed-forward layer of routed, shared and null experts.

    routed        number of routed experts
    experts       what one routed expert is
    router        how tokens choose
    null_experts  null experts in the pool, by kind
    shared        experts every token uses, or null for none
    input_scale   factor on what routed and null experts read; the router and shared experts read the input itself (the
                  released code of MoE++: k)
    out_bias      whether the layer's sum of routed and null experts has a bias, the same for every token (JetMoE)
    policy        edits of the routing before dispatch, in order
    balance       losses and bias updates that keep experts in use
    dispatch      how rows reach their experts
    backend       fused (one kernel for gather, experts and combine where there is one for the device, else as grouped),
                  grouped (sorted rows, grouped products), reference (readable, slow) or triton (fused kernels for GPUs
                  of Hopper's size, so far checked in Triton's interpreter alone)
    recompute     keep no expert activations for the backward pass, compute them again
    allow_future  permits parts whose result for a token depends on later tokens in a causal model
    """

    routed: int
    experts: ExpertSpec
    router: RouterSpec
    null_experts: NullSpec = NullSpec()
    shared: SharedSpec | None = None
    input_scale: float = 1.0
    out_bias: bool = False
    policy: tuple[PolicySpec, ...] = ()
    balance: tuple[BalanceSpec, ...] = ()
    dispatch: DispatchSpec = LocalSpec()
    backend: Backend = "fused"
    recompute: bool = False
    allow_future: bool = False

    def __post_init__(self) -> None:
        if self.routed < 1:
            raise ValueError(f"routed: got {self.routed}, expected 1 or more (null experts alone compute nothing)")
        try:
            self.experts.check(self.routed)
        except ValueError as error:
            raise ValueError(f"experts.{error}") from error
        parts = [("router", self.router)]
        parts += [(f"policy[{i}]", p) for i, p in enumerate(self.policy)]  # type: ignore[misc]
        parts += [(f"balance[{i}]", b) for i, b in enumerate(self.balance)]  # type: ignore[misc]
        for path, part in parts:
            _check(path, part, self.pool)
        for i, rule in enumerate(self.balance):
            if rule.needs_bias and not getattr(self.router, "bias", False):
                raise ValueError(f"router.bias: must be true, balance[{i}] updates the selection bias")
        for path, part in parts[: 1 + len(self.policy)]:
            if not part.properties(self.pool).causal and not self.allow_future:
                raise ValueError(f"{path}: lets later tokens matter; set allow_future: true, or choose a causal part")

    def check(self, dim: int) -> None:
        try:
            self.experts.check_width(dim, self.routed)
        except ValueError as error:
            raise ValueError(f"experts.{error}") from error

    @property
    def pool(self) -> Pool:
        """The experts the router chooses from."""
        return Pool(routed=self.routed, null=self.null_experts, shared=self.shared.columns if self.shared else 0)

    def properties(self) -> Properties:
        """What the layer as a whole promises: the weakest promise of router, policies and experts."""
        policies = [policy.properties(self.pool) for policy in self.policy]
        gate = Properties(scope=self.router.gate.core.scope if isinstance(self.router, GatedRouterSpec) else "token")
        return weakest(self.router.properties(self.pool), gate, *policies, Properties(noise=self.experts.noise))

    def cost(self, dim: int) -> Cost:
        """Null experts take their share of a token's slots: at even load a token uses
        mean k * R / E routed experts."""
        pool = self.pool
        routed = self.experts.layer_cost(dim, self.routed, self.router.mean_k(pool) * self.routed / pool.experts)
        shared = self.shared.cost(dim) if self.shared else Cost()
        bias = dim if self.out_bias else 0
        return self.router.cost(dim, pool) + routed + shared + null_cost(dim, pool) + Cost(bias, bias, 0)

    def build(self, dim: int) -> nn.Module:
        """The layer."""
        from zoo.moe.layer import MoE

        return MoE(self, dim)


def _check(path: str, part: RouterSpec | PolicySpec | BalanceSpec, pool: Pool) -> None:
    try:
        part.check(pool)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error
