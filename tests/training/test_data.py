"""Mixtures: what a step holds, where it goes on, and what is wrong with a description."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.data import MixtureData
from training.sources import build_data


def attached(tiny: Any, rank: int = 0, world: int = 1, **settings: Any) -> MixtureData:
    """A data module as a trainer of this rank would hold it."""
    data = build_data({"sources": tiny.sources(), "micro_batches": 2, **settings})
    module = tiny.module()
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=module, global_rank=rank, world_size=world, ckpt_path=None, training=True
    )
    return data


def take(data: MixtureData, start: int, count: int) -> list[Any]:
    stream = data.steps(start)
    return [next(stream) for _ in range(count)]


def same(a: list[Any], b: list[Any]) -> bool:
    flat_a, flat_b = ([(n, k, v) for step in s for n, batch in step for k, v in batch.items()] for s in (a, b))
    return len(flat_a) == len(flat_b) and all(
        x[:2] == y[:2] and torch.equal(x[2], y[2]) for x, y in zip(flat_a, flat_b, strict=True)
    )


def test_the_stream_is_a_function_of_its_position(tiny: Any) -> None:
    whole = take(attached(tiny), 0, 6)
    assert same(whole[4:], take(attached(tiny), 4, 2))
    assert not same(whole[4:], take(attached(tiny, seed=1), 4, 2))
    assert {name for step in whole for name, _ in step} == {"text", "time_series"}
    assert whole[0][0][1]["ids"].shape[0] == 3 and all(len(step) == 2 for step in whole)


def test_ranks_share_the_micro_batches_of_a_step(tiny: Any) -> None:
    whole = take(attached(tiny, micro_batches=2), 3, 2)
    parts = [take(attached(tiny, rank, 2, micro_batches=1), 3, 2) for rank in (0, 1)]
    assert same(whole, [[*a, *b] for a, b in zip(*parts, strict=True)])


def test_held_out_batches_are_fixed_and_every_rank_has_its_part(tiny: Any) -> None:
    alone, again = (list(attached(tiny, eval_batches=2).val_dataloader()) for _ in range(2))
    assert same(alone, again) and len(alone) == 4
    ranks = [list(attached(tiny, rank, 2, eval_batches=2).val_dataloader()) for rank in (0, 1)]
    assert [len(r) for r in ranks] == [2, 2]
    assert same(alone, [ranks[0][0], ranks[1][0], ranks[0][1], ranks[1][1]])
    assert not same(alone, list(attached(tiny, eval_batches=2, seed=3).test_dataloader()))


def test_the_cache_is_bounded(tiny: Any) -> None:
    data = attached(tiny, cache=4)
    take(data, 0, 5)
    assert len(data._examples) == 4


def test_only_what_training_took_moves_the_position(tiny: Any) -> None:
    data = attached(tiny)
    stream = iter(data.train_dataloader())
    next(stream)
    ahead = next(stream)
    assert data.state_dict() == {"position": 0}
    data.on_after_batch_transfer(ahead, 0)
    assert data.state_dict() == {"position": 1}
    other = attached(tiny)
    other.load_state_dict({"position": 1})
    assert same([next(iter(other.train_dataloader()))], [ahead])


def test_modalities_are_fitted_once_and_not_again_with_weights(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fitted = attached(tiny), []
    module = data._module
    monkeypatch.setattr(module.model.modality("text"), "fit", lambda raws: fitted.append(len(list(raws))))
    data.setup("fit")
    data.setup("fit")
    assert len(fitted) == 1 and fitted[0] > 10 and module.fitted == {"text", "time_series"}
    module.fitted.clear()
    data.trainer.ckpt_path = "last.ckpt"  # type: ignore[union-attr]
    data.setup("fit")
    assert len(fitted) == 1


def test_the_first_data_set_that_is_there_is_taken(tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    data = build_data({"sources": tiny.sources(data=[{"type": "tinyshakespeare"}, {"type": "docstrings"}])})
    assert type(data.sources["text"].choose("text")).__name__ == "DocstringsSpec"
    alone = build_data({"sources": tiny.sources(data={"type": "tinyshakespeare"})})
    with pytest.raises(ValueError, match=r"sources.text.data: none of tinyshakespeare is available"):
        alone.sources["text"].choose("text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "sources: got none"),
        ({"micro_batches": 0}, "micro_batches: got 0"),
        ({"sources": {"text": {"data": {"type": "docstring"}}}}, "did you mean 'docstrings'"),
        ({"sources": {"text": {"data": {"type": "docstrings"}, "wieght": 2}}}, "did you mean 'weight'"),
        ({"sources": {"text": {"data": {"type": "docstrings"}, "rows": 0}}}, "rows: got 0"),
        ({"sources": {"txt": {"data": {"type": "docstrings"}}}}, "no modality 'txt'.*did you mean 'text'"),
    ],
)
def test_wrong_descriptions(tiny: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data = attached(tiny, **change)
        data.setup("fit")
        take(data, 0, 1)
