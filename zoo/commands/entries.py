"""The verbs about entries and parts: list, show, laws, claims."""

from __future__ import annotations

import fnmatch
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.commands.outputs import seed_option


def list_options(p: ArgumentParser) -> None:
    p.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as '*audio*'")
    p.add_argument("--modality", help="only entries with this modality")
    p.add_argument("--router", help="only entries with this router")
    p.add_argument("--pretrained", action="store_true", help="only entries with weights")
    says = "the families of public checkpoints (model_type in config.json) that can be loaded, in place of entries"
    p.add_argument("--families", action="store_true", help=says)


def run_list(a: Namespace) -> None:
    """`zoo list`: a name per line."""
    if a.families:
        if a.modality or a.router or a.pretrained:
            raise ValueError("--families: goes with a pattern alone")
        from zoo.hub.families import NAMES

        print("\n".join(fnmatch.filter(sorted(NAMES), a.pattern)))
        return
    from zoo.hub.entries import list_entries

    pretrained = True if a.pretrained else None
    for name in list_entries(a.pattern, modality=a.modality, router=a.router, pretrained=pretrained):
        print(name)


def show_options(p: ArgumentParser) -> None:
    ref = "an entry, a YAML file or a saved model's folder; with --schema a part"
    p.add_argument("name", metavar="NAME", nargs="?", help=ref)
    p.add_argument("--schema", action="store_true", help="the keys of a part (top_p, router.top_p) or kind (router)")
    p.add_argument("--all", action="store_true", help="all entries")
    p.add_argument("--markdown", action="store_true", help="as Markdown; with --all the page docs/systems.md")


def run_show(a: Namespace) -> None:
    """`zoo show`: a card, the keys of a part, or the page of all entries."""
    if a.all == (a.name is not None):
        raise ValueError("show: expected the name of an entry, or --all")
    if a.schema:
        if a.all:
            raise ValueError("show: --schema documents one part or kind; expected its name in place of --all")
        from zoo.schema import document

        print(document(a.name))
        return
    from zoo.hub.entries import card, list_entries

    cards = [card(name) for name in (list_entries() if a.all else [a.name])]
    if a.markdown:
        from zoo.hub.systems import page, section

        print(page(cards) if a.all else "\n".join(section(cards[0])), end="" if a.all else "\n")
        return
    print("\n\n".join(map(str, cards)))


def laws_options(p: ArgumentParser) -> None:
    p.add_argument("--part", metavar="NAME", help="only what concerns this part, such as top_p")
    p.add_argument("--list", action="store_true", help="say what the laws are and run none")


def run_laws(a: Namespace) -> int:
    """`zoo laws`: the report; status 1 where a law is broken."""
    from zoo import laws

    if a.list:
        print(laws.listing())
        return 0
    results = laws.run(a.part)
    print(laws.report(results))
    return int(any(r.outcome in ("broken", "error") for r in results))


def claims_options(p: ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME", help="an entry, or an entry's YAML file")
    p.add_argument("--claim", metavar="X", help="only this claim, slow or not")
    p.add_argument("--slow", action="store_true", help="check those that take long too")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--strict", action="store_true", help="exit status 1 where a claim does not hold")
    p.add_argument("--record", action="store_true", help="write what is found into the entry's file")
    seed_option(p)


def run_claims(a: Namespace) -> int:
    """`zoo claims`: figure against expectation; status 1 where a check crashed, with --strict where one fails."""
    from zoo import claims
    from zoo.hub.entries import find_entry, is_path, read_entry

    entry = read_entry(Path(a.name)) if is_path(a.name) else find_entry(a.name)
    results = []
    for result in claims.run(entry, only=a.claim, slow=a.slow, seed=a.seed, progress=not a.json):
        results.append(result)
        if not a.json:
            print("\n".join(result.lines()), flush=True)
        if a.record and result.finding is not None:
            from zoo.hub.recording import record

            record(entry.path, result.claim.name, claims.found(entry, result, a.seed))
    if a.json:
        print(json.dumps([result.plain() for result in results], indent=2))
    bad = ("error", "fails") if a.strict else ("error",)
    return int(any(result.outcome in bad for result in results))
