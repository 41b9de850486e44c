"""Averages of saved weights: the identity they rest on, the folder they give, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.hub.average import average, coefficients
from zoo.hub.weights import save
from zoo.models.unified import Unified


def kept(model: Unified, folder: Path, count: int) -> tuple[list[Path], list[dict[str, torch.Tensor]]]:
    """Folders of `count` models along random updates, and their states."""
    generator, paths, states = torch.Generator().manual_seed(0), [], []
    model = copy.deepcopy(model)
    for i in range(count):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        paths.append(save(model, folder / f"step-{i}"))
    return paths, states


def test_coefficients_stand_for_a_falling_rate() -> None:
    """Merged weights are theta_n - sum w_i g_i along any trajectory theta_{n+i} = theta_{n+i-1} - g_i."""
    generator = torch.Generator().manual_seed(0)
    for decay in ([0.75, 0.5, 0.25], [1.0, 0.9, 0.2], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]):
        start, updates = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((6,), (3, 6)))
        points = torch.stack([start, *(start - updates.cumsum(0))])
        found = coefficients(decay)
        assert sum(found) == pytest.approx(1) and min(found) >= 0
        merged = (torch.tensor(found, dtype=torch.float64)[:, None] * points).sum(0)
        expected = start - (torch.tensor(decay, dtype=torch.float64)[:, None] * updates).sum(0)
        torch.testing.assert_close(merged, expected, atol=1e-12, rtol=0)
    assert coefficients([0.75, 0.5, 0.25]) == [0.25] * 4, "even weights are a linear decay"


def test_saved_weights_are_averaged_tensor_by_tensor(model: Unified, tmp_path: Path) -> None:
    paths, states = kept(model, tmp_path, 3)
    factors = [0.5, 0.3, 0.2]
    loaded = zoo.load(average(paths, tmp_path / "merged", weights=factors))
    assert loaded.spec == model.spec
    for name, value in loaded.state_dict().items():
        parts = [state[name] for state in states]
        mean = sum(f * part.double() for f, part in zip(factors, parts, strict=True))
        expected = mean.to(value.dtype) if value.is_floating_point() else parts[-1]  # type: ignore[union-attr]
        torch.testing.assert_close(value, expected, rtol=2e-7, atol=1e-7)
    even = zoo.load(average(paths, tmp_path / "even")).state_dict()
    torch.testing.assert_close(next(iter(even.values())), torch.stack([next(iter(s.values())) for s in states]).mean(0))


@pytest.mark.parametrize("decay", [[0.5, 0.6], [1.2], [0.5, -0.1], [0.5, 0.2, float("nan")]])
def test_a_decay_that_rises_or_leaves_its_range_is_refused(decay: list[float]) -> None:
    said = rf"decay\[{len(decay) - 1}\]: got {decay[-1]}, expected values of 0..1 that never rise"
    with pytest.raises(ValueError, match=said):
        coefficients(decay)


def test_what_does_not_fit_is_refused(model: Unified, tmp_path: Path) -> None:
    paths, _ = kept(model, tmp_path, 2)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (paths[:1], {}, "folders: got 1, expected at least two"),
        (paths, {"weights": [1.0]}, "weights: got 1, expected one for each of the 2 folders"),
        (paths, {"weights": [0.5, 0.6]}, "weights: got a sum of 1.1, expected 1"),
    ]
    for folders, keys, message in cases:
        with pytest.raises(ValueError, match=message):
            average(folders, tmp_path / "merged", **keys)
    with pytest.raises(ValueError, match="is among the folders that are averaged"):
        average(paths, paths[0], overwrite=True)
    other = save(zoo.create("dense-lm", seed=0), tmp_path / "other")
    with pytest.raises(ValueError, match="describes another model than"):
        average([*paths, other], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"public: is a public checkpoint; `zoo convert .* --to zoo` makes"):
        average([zoo.export(zoo.create("dense-lm", seed=0), tmp_path / "public"), other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_decay_of_another_length_is_refused_by_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", "a", "b", "c", "--out", "d", "--decay", "0.5", "0.2", "0.1"]) == 2
    assert "--decay: got 3 values, expected 2: one for each SRC but the first" in capsys.readouterr().err
