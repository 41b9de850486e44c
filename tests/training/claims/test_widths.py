"""Widths are found that make active operations equal, or the system is refused with the nearest there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from training.claims import widths
from training.claims.counting import flops
from training.claims.lab import unified
from zoo.spec import SpecError

Language = Callable[..., dict[str, Any]]
KEYS = ("experts.hidden", "ffn.hidden")


@pytest.mark.parametrize(
    "ffn", [{}, {"routed": 16}, {"router": {"type": "top_k", "k": 4}}, {"null_experts": {"zero": 4}}]
)
@pytest.mark.parametrize("target", [15e3, 60e3, 600e3])
def test_operations_meet_the_target(language: Language, ffn: dict[str, Any], target: float) -> None:
    found = widths.solve(language(**ffn), KEYS, target, tolerance=0.02)
    assert flops(unified(found.plain)) == found.flops == pytest.approx(target, rel=0.02)
    ((path, (before, after)),) = found.widths.items()
    assert path == "backbone.layers.0.block.ffn.experts.hidden" and before == 8
    assert found.said() == f"experts.hidden 8 -> {after}"


def test_round_widths_are_preferred(language: Language) -> None:
    target = 600e3
    wide = widths.solve(language(), KEYS, target, tolerance=0.05)
    ((_, (_, width)),) = wide.widths.items()
    assert width % 16 == 0
    exact = widths.solve(language(), KEYS, target, tolerance=1e-3)
    ((_, (_, width)),) = exact.widths.items()
    assert width % 16 and abs(exact.flops / target - 1) <= 1e-3


def test_several_widths_keep_their_proportion(language: Language) -> None:
    plain = language(shared={"count": 1, "hidden": 16})
    found = widths.solve(plain, ["experts.hidden", "shared.hidden"], 200e3, tolerance=0.02)
    (_, routed), (_, shared) = found.widths.values()
    assert shared == 2 * routed
    alone = widths.solve(plain, ["experts.hidden"], 200e3, tolerance=0.02)
    assert alone.plain["backbone"]["layers"][0]["block"]["ffn"]["shared"]["hidden"] == 16


def test_what_tokens_really_use_can_be_said(language: Language) -> None:
    plain = language(router={"type": "top_p", "p": 0.9})
    assert widths.count(plain) == widths.count(plain, 4.0), "the router's own count is at even scores"
    target = widths.count(language())
    (_, counted), (_, stated) = (
        next(iter(widths.solve(plain, KEYS, target, tolerance=0.02, active_k=k).widths.values())) for k in (None, 2.0)
    )
    assert counted < stated == 8


@pytest.mark.parametrize(
    ("keys", "target", "tolerance", "message"),
    [
        (["experts.width"], 6e4, 0.02, r"solve: no key ends in experts.width; name others"),
        (KEYS, 1e3, 0.02, r"solve: experts.hidden 8 -> 1 comes nearest .* in place of 0.001 \(\+\d+"),
        (KEYS, 15e3, 1e-9, r"comes nearest to the reference"),
    ],
)
def test_what_cannot_be_met_is_refused(
    language: Language, keys: list[str], target: float, tolerance: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        widths.solve(language(), keys, target, tolerance=tolerance)


def test_a_wrong_description_is_refused_with_its_path(language: Language) -> None:
    with pytest.raises(SpecError, match=r"spec.backbone.layers\[0\].block.ffn: unknown key 'rooted'"):
        widths.solve(language(rooted=3), KEYS, 6e4, tolerance=0.02)


def test_other_windows_are_refused(language: Language) -> None:
    shorter = language()
    shorter["modalities"]["text"]["length"] = 16
    systems = {"first": unified(language()), "second": unified(shorter)}
    with pytest.raises(ValueError, match=r"systems.second: reads windows of 16 with Bytes.* first reads 32"):
        widths.same_text(systems, "first")
