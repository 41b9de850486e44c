"""The page of all entries, docs/systems.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zoo.hub.card import Card, count
from zoo.hub.claim import Claim

HEAD = """# Systems

The entries of the zoo, generated from `configs/zoo/` by `make systems`: what each is, its parts, what it costs, and
what its claims were last found to be. A claim that does not hold at this scale says so, with its figure. `zoo claims
NAME` checks the quick ones, `zoo claims NAME --slow` all of them; [entries](entries.md) says how they are written.
"""


def page(cards: Sequence[Card]) -> str:
    """docs/systems.md: a table of all entries, then a section each."""
    lines = [HEAD, "| entry | system | total | active | FLOPs per token | claims |", "|" + " --- |" * 6]
    for card in cards:
        link = f"[{card.name}](#{card.name})"
        costs = f"{count(card.total).strip()} | {count(card.active).strip()} | {count(card.flops).strip()}"
        lines.append(f"| {link} | {_cell(card.fields.system)} | {costs} | {_tally(card.claims)} |")
    for card in cards:
        lines += ["", *section(card)]
    return "\n".join(lines) + "\n"


def section(card: Card) -> list[str]:
    """One entry: its card and a table of its claims."""
    lines = [f"## {card.name}", "", *(f"- {label}: {text}" for label, text in card.rows())]
    if card.claims:
        lines += ["", "| claim | says | expected | found | |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(_claim(claim))} |" for claim in card.claims]
        notes = [f"- {c.name}: {c.found.note} ({_source(c)})" for c in card.claims if c.found is not None]
        lines += ["", *notes] * bool(notes)
    return lines


def _claim(claim: Claim) -> Iterator[str]:
    yield f"`{claim.name}`"
    yield _cell(claim.says)
    if claim.found is None:
        yield from ("", "", "stated only" if claim.check is None else "not measured yet")
        return
    yield _cell(claim.found.expected)
    yield f"{claim.found.figure:.4g}"
    yield "holds" if claim.found.holds else "**does not hold**"


def _source(claim: Claim) -> str:
    assert claim.found is not None
    parts = [f"`{claim.found.command}`" if claim.found.command else "", claim.found.commit]
    return ", ".join(filter(None, parts)) or "no command recorded"


def _tally(claims: Sequence[Claim]) -> str:
    found = [claim.found for claim in claims if claim.found is not None]
    held = sum(f.holds for f in found)
    return f"{held} of {len(found)} hold" if found else "not measured" if claims else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
