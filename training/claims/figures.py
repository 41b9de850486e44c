"""Figures of a trained system that claims speak of, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from training.claims.experts import cosine, information
from training.claims.lab import Outcome
from training.claims.measuring import Layer

Figure = Literal[
    "loss", "mean_k", "routed_k", "null_share", "dropped_share", "load_ratio", "dead", "entropy", "logit_spread",
    "information", "expert_cosine", "active_flops", "active", "total", "tokens_per_second", "training_load_ratio",
]  # fmt: skip


def mean(layers: tuple[Layer, ...], of: Callable[[Layer], float], over: Callable[[Layer], float]) -> float:
    """A ratio of sums over layers; not a number where there is no MoE layer."""
    below = sum(map(over, layers))
    return sum(map(of, layers)) / below if below else math.nan


OF: dict[str, Callable[[Outcome], float]] = {
    "loss": lambda o: o.measured.loss,
    "mean_k": lambda o: mean(o.measured.layers, lambda x: sum(x.load), lambda x: x.tokens),
    "routed_k": lambda o: mean(o.measured.layers, lambda x: sum(x.load[: x.routed]), lambda x: x.tokens),
    "null_share": lambda o: mean(o.measured.layers, lambda x: sum(x.load[x.routed :]), lambda x: sum(x.load)),
    "dropped_share": lambda o: mean(o.measured.layers, lambda x: sum(x.load) - x.kept, lambda x: sum(x.load)),
    "load_ratio": lambda o: max((x.ratio for x in o.measured.layers), default=math.nan),
    "dead": lambda o: float(sum(x.dead for x in o.measured.layers)),
    "entropy": lambda o: mean(o.measured.layers, lambda x: x.entropy * x.tokens, lambda x: x.tokens),
    "logit_spread": lambda o: float(o.measured.spread.mean()) if o.measured.spread.size else math.nan,
    "information": lambda o: information(o.measured.chosen),
    "expert_cosine": lambda o: cosine(o.model.moe_layers()),
    "active_flops": lambda o: o.active_flops,
    "active": lambda o: o.cost.active,
    "total": lambda o: float(o.cost.total),
    "tokens_per_second": lambda o: o.speed,
    "training_load_ratio": lambda o: sum(point.load_ratio for point in o.curve) / max(len(o.curve), 1),
}
MEANING = {
    "loss": "held-out loss, nats per byte",
    "mean_k": "experts that a token chose, null experts included",
    "routed_k": "routed experts that a token chose",
    "null_share": "share of the filled slots that chose a null expert",
    "dropped_share": "share of the filled slots that policies emptied",
    "load_ratio": "greatest over mean load of the routed experts, worst layer",
    "dead": "routed experts of all layers with less than 1 % of the even share",
    "entropy": "mean entropy of the router's softmax, nats",
    "logit_spread": "standard deviation of a token's routing logits over the experts, mean over tokens and layers",
    "information": "mutual information of the first choices of neighbouring layers, nats",
    "expert_cosine": "mean cosine between the weights of two routed experts of a layer",
    "active_flops": "operations of a forward pass per token, with the experts that were really used",
    "active": "parameters used for one token, as the description counts them",
    "total": "parameters held",
    "tokens_per_second": "tokens trained per second of CPU time of one thread",
    "training_load_ratio": "greatest over mean load of the routed experts while it trained, worst layer, mean",
}
assert set(OF) == set(MEANING) == set(get_args(Figure))


def figure(outcome: Outcome, name: Figure) -> float:
    """The figure of that name. Raises ValueError where the system has none, such as a null share without MoE layers."""
    value = OF[name](outcome)
    if math.isnan(value):
        reason = "is not defined for a model without MoE layers, or with layers that cannot be compared"
        raise ValueError(f"figure: {name} ({MEANING[name]}) {reason}")
    return value
