"""Balance: rules pull the load towards their target, and their gradient reaches the router."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from zoo.laws.accumulation import gradients, records
from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import close, law, require
from zoo.moe.balance.base import BalanceContext, BalanceSpec, Counts
from zoo.moe.balance.bias import BiasSpec
from zoo.moe.balance.step import BalanceStep
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routing import Routing
from zoo.moe.stats import count_slots


def load_rules(case: LayerCase) -> list[BalanceSpec]:
    """The rules whose loss depends on the load."""
    return [rule for rule in case.spec.balance if rule.scope_counts and not rule.needs_bias]


def _has_load_rules(case: LayerCase) -> bool:
    return bool(load_rules(case)) and case.spec.pool.experts > 1


def _has_loss(case: LayerCase) -> bool:
    return any(not rule.needs_bias for rule in case.spec.balance)


def _has_bias(case: LayerCase) -> bool:
    return any(isinstance(rule, BiasSpec) for rule in case.spec.balance) and case.spec.pool.experts > 1


def _pressure(rule: BalanceSpec, pool: Pool, load: Tensor) -> Tensor:
    """[E] what the rule makes of a load [E]: each expert's or group's load over its target, times its weight."""
    weight = torch.ones(pool.experts, dtype=torch.float64)
    weight[pool.routed :] = getattr(rule, "null_weight", 1.0)
    if not isinstance(rule, SwitchSpec):
        return weight * load
    group, target = torch.tensor(rule.group_of(pool)), rule.targets(pool)
    return weight * (torch.zeros_like(target).index_add(0, group, load.double()) / target)[group]


def _price(rule: BalanceSpec, pool: Pool) -> Tensor:
    """[E] the rule's price of a load, over that of the first expert; its target load is proportional to the inverse."""
    price = _pressure(rule, pool, torch.ones(pool.experts, dtype=torch.float64))
    return price / price[0]


def _value(rule: BalanceSpec, layer: MoE, raw: Tensor, expert: Tensor) -> Tensor:
    """The rule's loss per token for a routing made by hand, in one sequence."""
    gate, shared = layer.router.weigh(raw, expert)
    mask = torch.ones(len(raw), dtype=torch.bool)
    scores = raw[:, : layer.pool.experts].detach()
    routing = Routing(expert=expert, gate=gate, raw=raw, scores=scores, mask=mask, shared=shared)
    value = rule.loss(routing, BalanceContext.of(routing, (1, len(raw)), None, Counts.of(routing), layer.pool))
    assert value is not None
    return value / len(raw)


def _decided(pool: Pool, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Logits and choices of tokens that are all but certain of one expert each, so that P equals f."""
    expert = torch.arange(pool.experts).repeat_interleave(torch.tensor(counts))
    raw = torch.full((len(expert), pool.columns), -25.0, dtype=torch.float64)
    return raw.scatter(1, expert[:, None], 25.0), expert[:, None]


@law("where f and P agree, the loss is at least its value at the declared target load", LayerCase, _has_load_rules)
def bound(case: LayerCase) -> None:
    layer, generator = case.layer(), torch.Generator().manual_seed(5)
    for rule in load_rules(case):
        price = [Fraction(p).limit_denominator(20) for p in _price(rule, layer.pool).tolist()]
        unit = 1
        for p in price:
            unit *= p.numerator
        target = [int(unit * 4 / p) for p in price]
        least = float(_value(rule, layer, *_decided(layer.pool, target)))
        for _ in range(5):
            counts = torch.randint(1, 12, (layer.pool.experts,), generator=generator)
            value = float(_value(rule, layer, *_decided(layer.pool, counts.tolist())))
            require(value >= least * (1 - 1e-9), f"loss {value:.9g} at load {counts.tolist()} < {least:.9g} at target")


@law("dL/dP_i grows with f_i", LayerCase, _has_load_rules)
def slope(case: LayerCase) -> None:
    layer = case.layer()
    experts = layer.pool.experts
    for rule in load_rules(case):
        if getattr(rule, "probability", "full") != "full" or getattr(rule, "count", "slots") == "best":
            continue  # P over the chosen alone has no slope at one choice per token; f of the best sees no such choice
        counts = torch.arange(1, experts + 1)
        expert = torch.arange(experts).repeat_interleave(counts)[:, None]
        raw = torch.zeros(len(expert), layer.pool.columns, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(_value(rule, layer, raw, expert), raw)
        slope = gradient.sum(0)[:experts]
        load = _pressure(rule, layer.pool, counts.double())
        ordered = slope[load.argsort(stable=True)]
        require(bool((ordered.diff() >= -1e-12).all()), f"slopes {_list(slope)} do not grow with loads {_list(load)}")
        require(ordered[-1] > 0 > ordered[0], f"slopes {_list(slope)}: expected both signs")


def _list(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values]


@law("one gradient step on a skewed router, not too long, lowers the greatest load", LayerCase, _has_load_rules)
def step(case: LayerCase) -> None:
    for rule in load_rules(case):
        before = _greatest(rule, case.layer(), case)
        if _even(rule, case, before) or not _reads_states(case):
            continue
        after = []
        for length in (0.05, 0.1, 0.2):
            after.append(_after_step(rule, case, length))
            if after[-1] < before:
                break
        require(min(after) < before, f"greatest load {before:.4g} became {min(after):.4g} at best")


def _even(rule: BalanceSpec, case: LayerCase, greatest: float) -> bool:
    """Whether the load cannot be skewed, as when every expert is chosen always."""
    even = torch.full((case.spec.pool.experts,), 1 / case.spec.pool.experts, dtype=torch.float64)
    return greatest <= float(_pressure(rule, case.spec.pool, even).max())


def _reads_states(case: LayerCase) -> bool:
    """Whether what skews the tokens reaches the logits at all: those of a pre-gate follow from ids alone."""
    layer = case.layer()
    tokens = case.tokens(*_shape(case)).replace(document=None)
    return not torch.equal(layer.router(flat(tokens), context(tokens)).raw, _skewed(layer, case).raw)


def _after_step(rule: BalanceSpec, case: LayerCase, length: float) -> float:
    """The greatest load after one step down the gradient, `length` times as long as the router's weights."""
    layer = case.layer()
    found = gradients(layer, _loss(rule, layer, case))
    size = sum(float(g.square().sum()) for g in found.values()) ** 0.5
    require(size > 0, "the gradient of the router is zero on a skewed load")
    weights = sum(float(p.detach().square().sum()) for p in layer.router.parameters()) ** 0.5
    with torch.no_grad():
        for name, parameter in layer.router.named_parameters():
            parameter.sub_(found[name], alpha=length * weights / size)
    return _greatest(rule, layer, case)


def _shape(case: LayerCase) -> tuple[int, int]:
    """One sequence of 256 tokens, or 64 of them where a sequence chooses as one."""
    return (64, 4) if case.spec.router.properties(case.spec.pool).scope == "sequence" else (1, 256)


def _skewed(layer: MoE, case: LayerCase) -> Routing:
    """Tokens with a common part, so that a random router prefers some experts."""
    tokens = case.tokens(*_shape(case))
    common = torch.ones(tokens.embedding.shape[-1], dtype=torch.float64)
    tokens = tokens.replace(embedding=tokens.embedding + common, document=None)
    return layer.router(flat(tokens), context(tokens))


def _loss(rule: BalanceSpec, layer: MoE, case: LayerCase) -> Tensor:
    routing = _skewed(layer, case)
    value = rule.loss(routing, BalanceContext.of(routing, _shape(case), None, Counts.of(routing), layer.pool))
    assert value is not None
    return value


def _greatest(rule: BalanceSpec, layer: MoE, case: LayerCase) -> float:
    """The greatest share of what the rule counts, over its target."""
    chosen = _skewed(layer, case).selected
    slots = chosen[:, :1] if getattr(rule, "count", "slots") == "first" else chosen
    counts = count_slots(slots, layer.pool.experts).double()
    return float(_pressure(rule, layer.pool, counts / counts.sum()).max())


@law("finite differences in float64 reach the router", LayerCase, _has_loss)
def differences(case: LayerCase) -> None:
    layer = case.layer()

    def total() -> Tensor:
        piece = records(layer, case, [])
        balance = BalanceStep([layer])
        balance.add(piece)
        return sum(balance.losses(piece, 0).values(), torch.zeros((), dtype=torch.float64))

    found = gradients(layer, total())
    generator = torch.Generator().manual_seed(6)
    for name, parameter in layer.router.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-5)
            up = total()
            parameter.sub_(direction, alpha=2e-5)
            down = total()
            parameter.add_(direction, alpha=1e-5)
        close((found[name] * direction).sum(), (up - down) / 2e-5, f"derivative along {name}", 1e-6)
    moved = any(bool(gradient.any()) for gradient in found.values())
    require(moved or case.spec.pool.experts == 1, "every gradient of the router is zero")


@law("bias updates move towards the target", LayerCase, _has_bias)
def bias(case: LayerCase) -> None:
    layer = case.layer()
    rule = next(rule for rule in case.spec.balance if isinstance(rule, BiasSpec))
    goal = rule.targets(layer.pool)
    free = layer.pool.routed if rule.target == "routed" else layer.pool.experts

    def error() -> Tensor:
        counts = count_slots(_skewed(layer, case).selected, layer.pool.experts)
        return (goal - counts / counts.sum())[:free]

    assert layer.router.bias is not None
    first = error()
    counts = count_slots(_skewed(layer, case).selected, layer.pool.experts)
    change = rule.delta(counts, layer.pool)
    if rule.centered:
        require((change[:free] * first).sum() > 0, f"change {_list(change)} against error {_list(first)}")
        close(change.sum(), torch.zeros(()), "sum of the changes", 1e-7)
    else:
        require(torch.equal(change[:free].sign(), first.sign()), f"change {_list(change)} against error {_list(first)}")
    require(not bool(change[free:].any()), f"change {_list(change)}: null experts move under target routed")
    rate = 0.01 / rule.weight if rule.step == "sign" else 0.5 / rule.weight
    for _ in range(60):
        counts = count_slots(_skewed(layer, case).selected, layer.pool.experts)
        layer.router.bias += rate * rule.delta(counts, layer.pool)
    before, after = float(first.abs().max()), float(error().abs().max())
    require(after < before, f"greatest distance from the target: {before:.4g}, after 60 updates {after:.4g}")
