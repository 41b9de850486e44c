"""Parts of several systems together: named crossings, and layers and trunks drawn at random, the same at every call."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from zoo import registry
from zoo.laws.cases import Case, layer_case, trunk_case
from zoo.laws.examples import BASE, variants
from zoo.moe.kernels import triton
from zoo.spec import Plain

SOCKETS = {"router": "router", "policy": "policy", "expert": "experts", "balance": "balance", "dispatch": "dispatch"}
LISTS = {"policy", "balance"}

NULLS: list[tuple[str, Plain]] = [
    ("without null experts", {}),
    ("zero experts", {"null_experts": {"zero": 2}}),
    ("a copy expert", {"null_experts": {"copy": 1}}),
    ("constant experts", {"null_experts": {"constant": 2}}),
    ("null experts of every kind", {"null_experts": {"zero": 1, "copy": 1, "constant": 2}}),
]
SHARED: list[tuple[str, Plain]] = [
    ("", {}),
    ("shared none", {"shared": {"count": 2, "hidden": 4, "gate": "none"}}),
    ("shared sigmoid", {"shared": {"count": 2, "hidden": 4, "gate": "sigmoid"}}),
    ("shared router", {"shared": {"count": 2, "hidden": 4, "gate": "router"}}),
]

CROSSINGS: dict[str, tuple[str, Plain]] = {
    "recurrent, grouped, null experts, global balance": (
        "sequential",
        {
            "router": {"type": "top_k", "groups": 2, "top_groups": 1, "gate": {"type": "recurrent", "state": 3}},
            "null_experts": {"zero": 2, "copy": 1, "constant": 1},
            "balance": [{"type": "switch", "scope": "global", "null_weight": 0.75}, {"type": "z_loss"}],
        },
    ),
    "residual, top-p, rerouted, union, weighed shared experts, exact global balance": (
        "shortcut",
        {
            "router": {"type": "top_p", "p": 0.5, "gate": {"type": "residual", "gate": {"type": "mlp", "hidden": 5}}},
            "experts": {"type": "union", "hidden": 6},
            "policy": [{"type": "reroute", "factor": 0.6}],
            "shared": {"count": 1, "hidden": 4, "gate": "router"},
            "balance": [{"type": "switch", "scope": "global_exact"}, {"type": "entropy"}],
        },
    ),
    "warmed-up recurrence, equal groups, latent, steered by bias": (
        "double_gating",
        {
            "router": {
                "type": "top_k",
                "groups": 2,
                "equal_groups": True,
                "bias": True,
                "gate": {"type": "warm_up", "gate": {"type": "recurrent", "state": 3}},
            },
            "experts": {"type": "latent", "hidden": 6, "latent": 4},
            "balance": [{"type": "bias", "centered": True}],
        },
    ),
    "temperature, dense to sparse, LoRA experts, capacity by kind": (
        "attention_experts",
        {
            "router": {"type": "dense_to_sparse", "temperature": {"start": 0.4}, "gate": {"type": "activation"}},
            "experts": {"type": "lora", "rank": 2},
            "policy": [{"type": "capacity", "factor": 0.6, "null_too": True, "tau": 0.5}],
            "null_experts": {"zero": 1, "copy": 1},
            "balance": [{"type": "switch", "scope": "global"}],
        },
    ),
    "drawn choices, compute budget, two policies": (
        "adaln",
        {
            "router": {
                "type": "top_k",
                "score": "sigmoid",
                "bias": True,
                "normalize": "none",
                "gate": {"type": "gumbel"},
            },
            "null_experts": {"copy": 2},
            "policy": [{"type": "reroute", "factor": 0.8}, {"type": "capacity", "factor": 0.6, "priority": "last"}],
            "balance": [{"type": "bias", "routed_share": 0.5, "target": "routed"}],
        },
    ),
    "one decision for all layers, device groups": (
        "sequential",
        {
            "router": {"type": "top_k", "gate": {"type": "pre_gated", "vocab": 64}},
            "balance": [{"type": "switch", "groups": 2, "once": True, "scope": "sequence"}],
        },
    ),
}
"""Block and keys of the layer: pairs of systems that a reader would try, none of which a spec may refuse."""


def described(kind: str, name: str) -> list[tuple[str, Plain]]:
    """The variants of a part that can run here, none where it cannot be imported or described."""
    here = triton.available(torch.device("cpu"))  # laws run on the CPU
    try:
        return [(label, part) for label, part in variants(kind, name) if here or part.get("backend") != "triton"]
    except (ValueError, ImportError, AttributeError):
        return []


class Deck:
    """Deals (label, description): each pile once, in random order, before any comes again, and one of it at random."""

    def __init__(self, lots: random.Random, piles: list[list[tuple[str, Plain]]]) -> None:
        self.lots, self.piles = lots, piles
        self.left: list[list[tuple[str, Plain]]] = []

    @classmethod
    def of(cls, lots: random.Random, kind: str) -> Deck:
        """A pile for each part of a kind, its variants."""
        return cls(lots, [pile for name in registry.names(kind) if (pile := described(kind, name))])

    def deal(self) -> tuple[str, Plain]:
        """The next one."""
        if not self.left:
            self.left = self.lots.sample(self.piles, len(self.piles))
        label, plain = self.lots.choice(self.left.pop())
        return label, dict(plain)


class Decks:
    """Draws descriptions of layers and blocks; `about` and `labels` tell of the last one what it is made of."""

    def __init__(self, seed: int) -> None:
        self.lots = random.Random(seed)
        kinds = (*SOCKETS, "gate", "attention", "block")
        self.parts = {kind: Deck.of(self.lots, kind) for kind in kinds}
        self.nulls, self.shared = (Deck(self.lots, [[one] for one in found]) for found in (NULLS, SHARED))
        self.about: set[str] = set()
        self.labels: list[str] = []

    def part(self, kind: str) -> Plain:
        """A part of a kind."""
        label, plain = self.parts[kind].deal()
        self.about.add(plain["type"])
        self.labels.append(label)
        return plain

    def layer(self) -> Plain:
        """The keys of an MoE layer; a router that a rule of balance steers has the bias it needs."""
        self.about, self.labels = set(), []
        plain: Plain = {"routed": self.lots.choice([2, 4, 6]), "backend": self.lots.choice(["grouped", "reference"])}
        for kind, socket in SOCKETS.items():
            if kind in LISTS:
                plain[socket] = [self.part(kind)] if self.lots.random() < 0.6 else []
            else:
                plain[socket] = self.part(kind)
        if "gate" not in plain["router"]:
            plain["router"]["gate"] = self.part("gate")
        if any(registry.get("balance", rule["type"]).needs_bias for rule in plain["balance"]):
            plain["router"]["bias"] = True
        for deck in (self.nulls, self.shared):
            label, more = deck.deal()
            self.labels.append(label)
            plain |= more
        return plain

    def block(self) -> tuple[Plain, Plain]:
        """A block, where it takes any attention with one of all kinds, and the keys of its layer."""
        layer, block = self.layer(), self.part("block")
        if block["attention"].get("type") in registry.names("attention"):
            block["attention"] = self.part("attention")
        return block, layer

    def name(self, kind: str, number: int) -> str:
        """The name of a case of the last one."""
        return f"random {kind} {number}: {', '.join(filter(None, self.labels))}"


def crossings() -> Iterator[Case]:
    """Each of CROSSINGS as a layer and as a trunk of two blocks."""
    for name, (block, keys) in CROSSINGS.items():
        about = {keys[socket]["type"] for socket in ("router", "experts") if socket in keys}
        about |= {keys["router"]["gate"]["type"], *(part["type"] for key in LISTS for part in keys.get(key, []))}
        yield layer_case(f"crossing: {name}", keys, about)
        yield _trunk(f"crossing in a trunk: {name}", described("block", block)[0][1], keys, about | {block})


def random_layers(count: int) -> Iterator[Case]:
    """Layers with a part of every kind."""
    decks = Decks(20)
    for seed in range(count):
        plain = decks.layer()
        yield layer_case(decks.name("layer", seed), plain, decks.about, seed)


def random_trunks(count: int) -> Iterator[Case]:
    """Two equal blocks with such layers, so that gates which look back have something to look back at."""
    decks = Decks(21)
    for number in range(count):
        block, layer = decks.block()
        yield _trunk(decks.name("trunk", number), block, layer, decks.about)


def _trunk(name: str, block: Plain, layer: Plain, about: set[str]) -> Case:
    """Two blocks with such an MoE layer."""
    moe = {**BASE["ffn"], **layer}
    block = block | {key: moe for key in ("ffn", "moe") if key in block}
    cond = 3 if registry.get("block", block["type"]).conditioned else 0
    return trunk_case(name, {"cond": cond, "layers": [{"repeat": 2, "block": block}]}, about)
