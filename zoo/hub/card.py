"""Cards: what is known of a model, as fields a person writes and as the text people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.hub.claim import Claim


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a system was published.

    title   of the paper
    arxiv   its number, quoted ("2510.13344")
    year    of the first version
    """

    title: str
    arxiv: str | None = None
    year: int | None = None


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Under what terms it may be used.

    code      SPDX name of the code's licence
    weights   SPDX name of the weights' licence, null without weights
    """

    code: str = "Apache-2.0"
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measured figure.

    name       the metric
    value      what was measured
    unit       of value and baseline
    baseline   what it is compared with
    note       how it was measured
    """

    name: str
    value: float
    unit: str = ""
    baseline: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class CardFields:
    """What a person writes about a model.

    system       the published system it follows, in a few words
    summary      one sentence
    paper        where it was published
    licence      of code and weights
    modalities   what goes in and out; read from the spec where left out
    parts        the parts that make it what it is; read from the spec where left out
    results      measured figures
    """

    system: str = ""
    summary: str = ""
    paper: Paper | None = None
    licence: Licence = Licence()
    modalities: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model's card: its fields, its claims and what its spec costs.

    total    parameters held
    active   parameters used for one token (at the router's stated mean number of experts)
    flops    operations of the forward pass for one token, attention over its context left out
    """

    name: str
    fields: CardFields
    claims: tuple[Claim, ...] = ()
    modalities: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    total: int = 0
    active: float = 0
    flops: float = 0
    pretrained: bool = False

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) of everything but claims and results; what is not known is left out."""
        written, paper = self.fields, self.fields.paper
        licence = written.licence
        rows = [
            ("system", written.system),
            ("summary", written.summary),
            ("paper", "" if paper is None else _cite(paper)),
            ("licence", f"code {licence.code}, weights {licence.weights or 'not stated'}"),
            ("weights", "pretrained" if self.pretrained else "none (random on create)"),
            ("modalities", ", ".join(self.modalities)),
            ("parts", ", ".join(self.parts)),
            ("parameters", f"{count(self.total)} total, {count(self.active)} active per token"),
            ("forward pass", f"{count(self.flops)}FLOPs per token, without attention over the context"),
        ]
        return [row for row in rows if row[1]]

    def __str__(self) -> str:
        lines = [self.name, *(f"  {label + ':':<14}{text}" for label, text in self.rows())]
        lines += ["  claims:"] * bool(self.claims) + [f"    {c.line()}" for c in self.claims]
        lines += ["  results:"] * bool(self.fields.results) + [f"    {_figure(r)}" for r in self.fields.results]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The card as README.md of a saved model."""
        licence = self.fields.licence.weights  # nobody's weights get a licence that was not chosen
        head = [
            "library_name: moezoo",
            "tags: [mixture-of-experts]",
            *([f"license: {licence.lower()}"] if licence else []),
        ]
        lines = ["---", *head, "---", "", f"# {self.name}", ""]
        lines += [f"- {label}: {text}" for label, text in self.rows()]
        if self.claims:
            lines += ["", "## Claims", "", *(f"- {c.line()}" for c in self.claims)]
        if self.fields.results:
            lines += ["", "## Results", "", "| metric | value | baseline | unit | note |", "|" + " --- |" * 5]
            for r in self.fields.results:
                baseline = "" if r.baseline is None else f"{r.baseline:.4g}"
                lines.append(f"| {r.name} | {r.value:.4g} | {baseline} | {r.unit} | {r.note} |")
        lines += ["", "## Use", "", "```python", "import zoo", "", 'model = zoo.load("path/to/this/folder")', "```", ""]
        return "\n".join(lines)


def _cite(paper: Paper) -> str:
    details = [f"arXiv {paper.arxiv}" if paper.arxiv else "", str(paper.year or "")]
    return ", ".join([paper.title, *filter(None, details)])


def _figure(result: Result) -> str:
    baseline = "" if result.baseline is None else f" (baseline {result.baseline:.4g})"
    return f"{result.name}: {result.value:.4g} {result.unit}".rstrip() + baseline + f" {result.note}".rstrip()


def count(number: float) -> str:
    """A number in three digits with its unit: 1.23 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def parts_of(plain: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, type) of every mapping in a plain spec that has a `type`, outermost first."""
    if isinstance(plain, Mapping):
        if isinstance(plain.get("type"), str):
            yield key, plain["type"]
        for name, value in plain.items():
            yield from parts_of(value, str(name))
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            yield from parts_of(value, key)


def described_modalities(fields: CardFields, plain: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities a card names, or those of the spec."""
    if fields.modalities:
        return fields.modalities
    described = plain.get("modalities")
    kinds = described.values() if isinstance(described, Mapping) else ()
    return tuple(dict.fromkeys(str(m["type"]) for m in kinds if isinstance(m, Mapping) and "type" in m))


def described_parts(fields: CardFields, plain: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts a card names, or those of the trunk that the spec names: "router top_p", "expert swiglu"."""
    if fields.parts:
        return fields.parts
    shown = ("router", "policy", "expert", "balance", "ffn", "block")
    kinds = {name: kind for kind in shown for name in registry.names(kind)}
    found = [(key, name) for key, name in parts_of(plain.get("backbone", plain)) if key != "attention"]
    named = [(key if key == "gate" else kinds.get(name), name) for key, name in found]
    return tuple(dict.fromkeys(f"{kind} {name}" for kind, name in named if kind and (kind, name) != ("gate", "linear")))
