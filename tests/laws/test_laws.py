"""Every law over every case of the registry it applies to."""

from __future__ import annotations

import pytest

from zoo import registry
from zoo.laws import LAWS, Law
from zoo.laws.cases import Case, LayerCase, Refused, layer_case
from zoo.laws.catalogue import all_cases
from zoo.laws.draws import CROSSINGS, NULLS, SOCKETS, crossings, random_layers, random_trunks

CASES = all_cases()
PAIRS = [
    pytest.param(law, case, id=f"{law.name}-{case.name}")
    for case in CASES
    if not isinstance(case, Refused)
    for law in LAWS
    if law.applies(case)
]


@pytest.mark.parametrize(("law", "case"), PAIRS)
def test_law(law: Law, case: Case) -> None:
    law(case)


def test_every_law_has_a_case() -> None:
    assert {pair.values[0].name for pair in PAIRS} == {law.name for law in LAWS}


def test_names_are_unique() -> None:
    assert len({law.name for law in LAWS}) == len(LAWS)
    assert len({case.name for case in CASES}) == len(CASES)


def test_only_impossible_combinations_are_refused() -> None:
    reasons = [case.reason for case in CASES if isinstance(case, Refused)]
    known = (
        "no unnormalised form", "never reaches the router", "get all slots", "equal routed groups", "hold fewer",
        "updates the selection bias", "cannot weigh shared experts", "with one sub-layer", "needs qk_norm",
        "expected at most", "which has no map", "choose alike",
        "do not depend on the logits", "two states choose", "its kind leaves in the MoE layer before",
    )  # fmt: skip
    strange = [r for r in reasons if not any(k in r for k in known)]
    assert not strange
    assert len(reasons) < len(CASES) / 8


def test_crossings_of_systems_are_refused_nowhere() -> None:
    found = list(crossings())
    assert len(found) == 2 * len(CROSSINGS)
    assert not [case for case in found if isinstance(case, Refused)]


def test_random_draws_hold_every_part_and_most_of_them_stand() -> None:
    layers, trunks = list(random_layers(24)), list(random_trunks(16))
    for kind in (*SOCKETS, "gate"):
        assert set(registry.names(kind)) <= set().union(*(case.about for case in layers))
    for kind in ("router", "gate", "policy", "expert", "block", "attention"):
        assert set(registry.names(kind)) <= set().union(*(case.about for case in trunks))
    for cases in (layers, trunks):
        for label, _ in NULLS:
            assert any(label in case.name and not isinstance(case, Refused) for case in cases)
        assert sum(isinstance(case, Refused) for case in cases) < len(cases) / 2
    assert [case.name for case in random_trunks(16)] == [case.name for case in trunks]


def test_k_of_one_is_refused_where_its_weight_is_constant() -> None:
    case = layer_case("one", {"router": {"type": "top_k", "k": 1}}, set())
    assert isinstance(case, Refused) and "never reaches the router" in case.reason
    assert isinstance(layer_case("all", {"router": {"type": "top_k", "k": 1, "normalize": "all"}}, set()), LayerCase)
