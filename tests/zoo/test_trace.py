"""Traces: exact counts, no effect on outputs, nothing left behind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.models.unified import Unified


def batch_of(model: Unified, name: str, raws: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    modality = model.modality(name)
    return modality.collate([modality.example(r) for r in raws], torch.Generator().manual_seed(0))


@pytest.fixture
def texts(model: Unified) -> dict[str, torch.Tensor]:
    return batch_of(model, "text", [{"text": "hello there"}, {"text": "hi"}])


def test_it_counts_what_the_layers_count(model: Unified, texts: dict[str, torch.Tensor]) -> None:
    with zoo.trace(model) as trace:
        out = model("text", texts)
    load = trace.load()["text"]
    assert load.shape == (2, 5)
    for i, record in enumerate(out.records):
        assert np.array_equal(load[i], record.stats.load.numpy())
        assert np.array_equal(trace.layers[i].expert, record.routing.expert.numpy())
        assert np.array_equal(trace.layers[i].gate, record.routing.gate.detach().numpy())
    assert load[0].sum() == 2 * int(texts["mask"].sum()), "two slots for each real token, none for padding"
    assert trace.null == 1


def test_slots_per_token_and_layer(plain: dict[str, Any], texts: dict[str, torch.Tensor]) -> None:
    """Top-p, so that tokens fill unlike numbers of slots."""
    router = {"type": "top_p", "p": 0.5, "gate": {"init_std": 0.5}}
    model = zoo.create(plain, seed=0, backbone__layers__0__block__ffn__router=router)
    series = batch_of(model, "series", [{"series": np.sin(np.arange(60.0))}])
    with zoo.trace(model) as trace:
        text, other = model("text", texts), model("series", series)
    for i, record in enumerate(text.records):
        count = record.stats.count.numpy()
        assert np.array_equal(trace.layers[i].count, count) and len(set(count[texts["mask"].flatten()])) > 1
        assert trace.mean_k()["text"][i] == pytest.approx(float(record.stats.mean_k))
        slots, tokens = (sum(float(x) for x in pair) for pair in zip(
            *((r.stats.load.sum(), r.stats.tokens) for r in (record, other.records[i])), strict=True))  # fmt: skip
        assert trace.mean_k("all")["all"][i] == pytest.approx(slots / tokens)


def test_it_changes_nothing_and_leaves_nothing(model: Unified, texts: dict[str, torch.Tensor]) -> None:
    before = model("text", texts).tokens.embedding
    with zoo.trace(model) as trace:
        inside = model("text", texts).tokens.embedding
    after = model("text", texts).tokens.embedding
    assert torch.equal(before, inside) and torch.equal(before, after)
    assert trace.forwards == 1
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hook_goes_when_the_block_fails(model: Unified) -> None:
    with pytest.raises(RuntimeError, match="broken"), zoo.trace(model):
        raise RuntimeError("broken")
    assert not any(module._forward_hooks for module in model.modules())


def test_modalities_are_told_apart(model: Unified, texts: dict[str, torch.Tensor]) -> None:
    series = batch_of(model, "series", [{"series": np.sin(np.arange(60.0))}])
    with zoo.trace(model) as trace:
        model("text", texts)
        model("series", series)
    load = trace.load()
    assert list(load) == ["text", "series"]
    assert np.array_equal(trace.load(by="all")["all"], load["text"] + load["series"])
    with pytest.raises(ValueError, match="by: got 'layer'"):
        trace.load(by="layer")  # type: ignore[arg-type]


def test_recomputed_activations_are_seen_once(plain: dict[str, Any], texts: dict[str, torch.Tensor]) -> None:
    model = zoo.create(plain, backbone__checkpoint=True).train()
    with zoo.trace(model) as trace:
        model("text", texts).loss.total.backward()
    assert len(trace.layers) == 2 and trace.forwards == 1


def test_generation_is_seen_step_by_step(model: Unified) -> None:
    with zoo.trace(model) as trace:
        model.generate("ab", max_new_tokens=4, temperature=0.0)
    assert trace.forwards >= 1
    assert [len(t.expert) for t in trace.layers if t.layer == 0][:2] == [3, 1][: trace.forwards]


def test_the_csv_holds_every_slot(model: Unified, texts: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with zoo.trace(model) as trace:
        model("text", texts)
    path = trace.to_csv(tmp_path / "trace.csv")
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == trace.load()["text"].sum()
    for layer in (0, 1):
        counts = np.bincount([int(r["expert"]) for r in rows if r["layer"] == str(layer)], minlength=5)
        assert np.array_equal(counts, trace.load()["text"][layer])
    assert {r["modality"] for r in rows} == {"text"}
    with pytest.raises(FileExistsError, match="already exists"):
        trace.to_csv(path)
    trace.to_csv(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.csv"]


def test_a_dense_model_has_no_routing(plain: dict[str, Any]) -> None:
    dense = zoo.create(plain, **{"backbone.layers.0.block.ffn": {"type": "dense", "hidden": 4}})
    with pytest.raises(ValueError, match="has no MoE layer"), zoo.trace(dense):
        pass


def test_an_empty_trace_has_no_load(model: Unified) -> None:
    with zoo.trace(model) as trace:
        pass
    assert trace.load() == {}
