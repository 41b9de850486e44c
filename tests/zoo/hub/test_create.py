"""Models from descriptions: seeds, overrides, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.spec import SpecError, dump, parse


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator(plain: dict[str, Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = zoo.create(plain), zoo.create(plain, seed=0), zoo.create(plain, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.modalities["text"].embedding.weight, c.modalities["text"].embedding.weight)


@pytest.mark.parametrize(
    ("seed", "error"), [("x", TypeError), (1.5, TypeError), (None, TypeError), (2**64, ValueError)]
)
def test_a_seed_is_a_whole_number(plain: dict[str, Any], seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^seed: got .*, expected a whole number"):
        zoo.create(plain, seed=seed)


def test_overrides_by_dots_and_double_underscores(plain: dict[str, Any]) -> None:
    assert zoo.create(plain, backbone__dim=8).spec.backbone.dim == 8
    built = zoo.create(plain, **{"backbone.dim": 8, "backbone.layers.0.repeat": 1})
    assert (built.spec.backbone.dim, built.spec.backbone.depth) == (8, 1)
    assert plain["backbone"]["dim"] == 16


def test_a_description_survives_the_way_round(plain: dict[str, Any]) -> None:
    spec = zoo.create(plain).spec
    assert parse(type(spec), dump(spec)) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.dims": 8}, r"unknown key 'dims' \(did you mean 'dim'\?\)"),
        ({"backbone.layer.0.repeat": 8}, r"no key 'layer' \(did you mean 'layers'\?\)"),
        ({"backbone.layers.0.block.ffn.router.k": 9}, r"router.k: got 9"),
        (
            {"backbone.layers.0.block.ffn.router": {"type": "top_p", "p": 1.5}},
            r"router.p: got 1.5, expected 0 < p <= 1",
        ),
        ({"backbone.layers.0.block.ffn.routed": 0}, r"routed: got 0"),
        ({"backbone.layers.0.block.attention.heads": 3}, r"heads"),
        ({"modalities.text.type": "txt"}, r"no modality 'txt' \(did you mean 'text'\?\)"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_path(
    plain: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        zoo.create(plain, **change)
