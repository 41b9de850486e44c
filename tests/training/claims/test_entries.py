"""The quick claims of every packaged entry are checked; whether they hold is a result, that they can be is not."""

from __future__ import annotations

import pytest

import zoo
from zoo import claims
from zoo.hub.entries import find_entry

QUICK = [
    (name, claim.name)
    for name in zoo.list_entries()
    for claim in find_entry(name).content.claims
    if claim.check is not None and not claim.slow
]


@pytest.mark.parametrize(("name", "claim"), QUICK)
def test_a_quick_claim_is_checked(name: str, claim: str) -> None:
    (result,) = claims.run(find_entry(name), only=claim, progress=False)
    assert result.outcome in ("holds", "fails"), result.reason
    assert result.finding is not None and result.finding.expected
