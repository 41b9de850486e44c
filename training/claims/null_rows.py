"""What the rows that null experts take over are worth at a given size, beside what their number promises.

One MoE layer, as an entry describes it, at another width; a selection bias on its null experts puts as many slots on
them as the balance loss aims at, so nothing is trained. Beside it the vanilla layer: the same networks under the same
router with a linear gate and no null experts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modalities.base import Tokens
from training.claims.lab import one_thread
from zoo.claims import ClaimSpec, Finding
from zoo.hub.entries import Entry
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import Plain, override, parse

Work = Literal["forward", "train"]
HALVINGS = 24  # of the interval in which the bias is looked for


@dataclass(frozen=True)
class Side:
    """A layer and what it is given besides x; rows [R] slots that each of its routed experts serves."""

    layer: MoE
    ctx: RoutingContext
    rows: tuple[int, ...]

    def seconds(self, x: Tensor, work: Work) -> float:
        """Thread CPU time of one forward pass without gradients, or of one forward and backward pass."""
        if work == "forward":
            with torch.inference_mode():
                return timed(lambda: self.layer(x, self.ctx))
        given = x.clone().requires_grad_()
        spent = timed(lambda: torch.autograd.backward(self.layer(given, self.ctx).y, x))
        self.layer.zero_grad(set_to_none=True)
        return spent


def timed(call: Callable[[], object]) -> float:
    """Seconds of this thread's CPU time."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def layer_of(entry: Entry) -> Plain:
    """The description of the MoE layer in the entry's first block. Raises ValueError where none has null experts."""
    ffn = entry.spec["backbone"]["layers"][0]["block"].get("ffn", {})
    if not ffn.get("null_experts"):
        raise ValueError("null_rows: the entry's first block has no MoE layer with null experts")
    return dict(ffn)


def sides(ffn: Plain, dim: int, hidden: int, x: Tensor, shares: Sequence[float]) -> list[Side]:
    """The vanilla layer, then for each share the described layer with that share of the slots of x [1, T, D] on routed
    experts; all with the same networks."""
    plain = override(ffn, {"experts.hidden": hidden, "balance": []})
    plain["router"]["bias"] = True
    bare = {**plain, "router": {key: value for key, value in plain["router"].items() if key != "gate"}}
    del bare["null_experts"]
    first, vanilla = _layer(plain, dim), _layer(bare, dim)
    ctx = RoutingContext.of(Tokens(embedding=x))
    found = [_side(vanilla, x, ctx)]
    with torch.no_grad():
        ctx = ctx.replace(carry=first.route(x[0], ctx).carry)  # what a layer in the middle of a model is handed
    for share in shares:
        layer = _layer(plain, dim)
        layer.experts.load_state_dict(vanilla.experts.state_dict(), assign=True)
        layer.router.link([first.router])
        _settle(layer, x, ctx, share)
        found.append(_side(layer, x, ctx))
    return found


def _layer(plain: Plain, dim: int) -> MoE:
    return MoE(parse(MoESpec, plain), dim).eval()


def _load(layer: MoE, x: Tensor, ctx: RoutingContext) -> Tensor:
    """[R] slots that each routed expert serves."""
    with torch.inference_mode():
        return layer(x, ctx).stats.load[: layer.pool.routed]


def _side(layer: MoE, x: Tensor, ctx: RoutingContext) -> Side:
    return Side(layer, ctx, tuple(_load(layer, x, ctx).tolist()))


def _settle(layer: MoE, x: Tensor, ctx: RoutingContext, share: float) -> None:
    """Sets the selection bias of null experts so that routed ones serve `share` of the slots."""
    bias = layer.router.bias
    assert bias is not None
    wanted = share * x.shape[1] * layer.spec.router.mean_k(layer.pool)
    low, high = -2.0, 2.0  # scores lie in 0..1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        bias[layer.pool.routed :] = middle
        with torch.inference_mode():
            routed = int((layer.route(x[0], ctx).expert < layer.pool.routed).sum())
        low, high = (middle, high) if routed > wanted else (low, middle)


@dataclass(frozen=True)
class Gain:
    """Of a side over the first: `found` the median over rounds of the ratio of their times, `promised` the ratio of
    their routed rows, `seconds` the side's own median time."""

    found: float
    promised: float
    seconds: float


def gains(compared: Sequence[Side], x: Tensor, work: Work, rounds: int) -> list[Gain]:
    """The sides in turns, each beside the first of its round."""
    turns = [[side.seconds(x, work) for side in compared] for _ in range(rounds + 1)][1:]  # the first loads kernels
    base, total = [turn[0] for turn in turns], sum(compared[0].rows)
    found = []
    for side, own in zip(compared, zip(*turns, strict=True), strict=True):
        ratio = statistics.median(before / after for before, after in zip(base, own, strict=True))
        found.append(Gain(ratio, total / max(sum(side.rows), 1), statistics.median(own)))
    return found


@dataclass(frozen=True, kw_only=True)
class NullRowsPaySpec(ClaimSpec):
    """The MoE layer of the entry's first block, at another size, is faster than the vanilla one by what the rows it
    skips promise: the ratio of routed rows. Thread CPU time, in turns; the median of the ratios.

    tau         load of a routed expert over that of a null expert, which the balance loss aims at (MoE++ equation 7)
    dim         width of the layer
    hidden      width of an expert
    tokens      tokens in the batch
    work        train (a forward and a backward pass) or forward (without gradients)
    of_promise  least gain as a part of what is promised
    rounds      turns
    """

    tau: float
    dim: int = 768
    hidden: int = 2048
    tokens: int = 8192
    work: Work = "train"
    of_promise: float = 1.0
    rounds: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau: got {self.tau}, expected more than 0 and at most 1")
        for name in ("dim", "hidden", "tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")

    def check(self, entry: Entry, *, seed: int = 0, progress: bool = True) -> Finding:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            x = torch.randn(1, self.tokens, self.dim)
            ffn = layer_of(entry)
            pair = sides(ffn, self.dim, self.hidden, x, [routed_share(ffn, self.tau)])
            gain = gains(pair, x, self.work, self.rounds)[1]
        needed = self.of_promise * gain.promised
        note = f"the routed rows promise {gain.promised:.3f}, of which {gain.found / gain.promised:.2f} was found; "
        note += (
            f"{self.work}, own layer {1e3 * gain.seconds:.0f} ms; D {self.dim}, F {self.hidden}, {self.tokens} tokens"
        )
        return Finding(gain.found, f"at least {needed:.3f} times as fast", gain.found >= needed, note)


def routed_share(ffn: Plain, tau: float) -> float:
    """The share of slots on routed experts where the loads of a routed and a null expert are as tau : 1."""
    weight = tau * ffn["routed"]
    return float(weight / (weight + sum(ffn["null_experts"].values())))
