from __future__ import annotations

import pytest
import torch

from modalities.text.sampling import draw


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(logits: list[float], **settings: object) -> set[int]:
    rows = torch.tensor(logits).expand(500, -1)
    return set(draw(rows, generator=seeded(), **settings).tolist())  # type: ignore[arg-type]


def test_temperature_zero_takes_the_most_likely_and_needs_no_generator() -> None:
    assert draw(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), temperature=0).tolist() == [1, 0]


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, top_k=2) == {0, 1}
    assert drawn(logits, top_k=9) == {0, 1, 2, 3}
    assert drawn(logits, top_p=0.5) == {0}
    assert drawn(logits, top_p=0.79) == {0, 1}
    assert drawn(logits, top_p=0.81) == {0, 1, 2}
    assert drawn(logits, top_p=1e-9) == {0}


def test_a_banned_id_is_never_drawn() -> None:
    assert drawn([9.0, 0.0, 0.0], banned=(0,)) == {1, 2}


def test_shares_follow_the_probabilities() -> None:
    rows = torch.tensor([0.7, 0.3]).log().expand(20_000, -1)
    assert draw(rows, generator=seeded()).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_the_seed_fixes_the_draw() -> None:
    logits = torch.randn(50, 9, generator=seeded(1))
    assert torch.equal(draw(logits, generator=seeded(2)), draw(logits, generator=seeded(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"generator": None}, "generator: none given"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(torch.zeros(1, 3), **({"generator": seeded()} | settings))  # type: ignore[arg-type]
