"""The language-model side: logits, losses, caches, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.models.unified import Unified

IDS = torch.tensor([[256, 72, 101, 108, 108, 111], [256, 104, 105, 33, 10, 10]])


def test_both_ways_of_calling_agree(model: Unified) -> None:
    text: Any = model.modalities["text"]
    batch = text.batch([IDS[0, 1:], IDS[1, 1:]])
    trained = model("text", batch)
    called = model(batch["ids"])
    assert torch.equal(text.logits(trained.tokens.embedding), called.logits)
    assert called.loss is None and called.hidden_states is None
    assert torch.equal(model(input_ids=batch["ids"]).logits, called.logits)
    with pytest.raises(TypeError, match="expected the name of a modality and its batch, or input_ids"):
        model()


def test_the_loss_is_shifted_and_leaves_out_what_is_ignored(model: Unified) -> None:
    labels = IDS.clone()
    labels[1, 3:] = -100
    out = model(IDS, labels=labels)
    wanted = torch.cat([labels[0, 1:], labels[1, 1:3]])
    logits = torch.cat([out.logits[0, :-1], out.logits[1, :2]])
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, wanted))
    assert float(model(IDS, labels=torch.full_like(IDS, -100)).loss.detach()) == 0
    out.loss.backward()
    assert model.modalities["text"].embedding.weight.grad is not None
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("chunks", [[1] * 6, [4, 2], [5, 1]])
@torch.inference_mode()
def test_a_cache_gives_the_full_pass(model: Unified, chunks: list[int]) -> None:
    full = model(IDS).logits
    cache, parts = model.new_cache(), []
    for part in IDS.split(chunks, dim=1):
        parts.append(model(part, cache=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padding_on_either_side_changes_nothing(model: Unified, side: str) -> None:
    pad = torch.full((2, 2), 258)
    zeros, ones = torch.zeros(2, 2, dtype=torch.int64), torch.ones_like(IDS)
    left = side == "left"
    ids = torch.cat([pad, IDS] if left else [IDS, pad], dim=1)
    mask = torch.cat([zeros, ones] if left else [ones, zeros], dim=1)
    found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[:, 2:] if left else found[:, :6], model(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covers", ["past and new", "new", "nothing"])
@torch.inference_mode()
def test_padded_rows_with_a_cache(model: Unified, covers: str) -> None:
    """Rows of unequal length, padded on the left; the mask may cover the past, only what is new, or be left out."""
    alone = model(IDS[1:, :4]).logits[:, -1]
    ids = torch.stack([IDS[0, :5], torch.cat([torch.tensor([258, 258]), IDS[1, :3]])])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    cache = model.new_cache()
    model(ids, attention_mask=mask, cache=cache)
    new = torch.stack([IDS[0, 5:6], IDS[1, 3:4]])
    ones = torch.ones(2, 1, dtype=torch.int64)
    given = {"past and new": torch.cat([mask, ones], dim=1), "new": ones, "nothing": None}[covers]
    out = model(new, attention_mask=given, cache=cache)
    torch.testing.assert_close(out.logits[1:, -1], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.logits[0, -1], model(IDS[:1]).logits[0, -1], rtol=1e-5, atol=1e-5)


def test_hidden_states_and_records(model: Unified) -> None:
    out = model(IDS, output_hidden_states=True)
    assert [h.shape for h in out.hidden_states] == [(2, 6, 16)] * 3
    assert torch.equal(out.hidden_states[0], model.modalities["text"].embed(IDS))
    assert torch.equal(out.hidden_states[-1], out.state)
    assert torch.equal(model.modalities["text"].logits(out.hidden_states[-1]), out.logits)
    assert len(out.records) == 2


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.tensor([1, 2]), None, r"input_ids: got torch.int64 \[2\], expected integers \[batch, length\]"),
        (torch.zeros(1, 2), None, r"input_ids: got torch.float32"),
        (torch.tensor([[1, 999]]), None, r"input_ids: got ids 1..999, expected 0..258"),
        (torch.tensor([[-1, 3]]), None, r"got ids -1..3"),
        ([[1, 2], [3]], None, r"input_ids: rows differ in length; expected \[batch, length\]"),
        ([["a"]], None, r"input_ids: got list of <U1, expected whole numbers"),
        ([[1.5]], None, r"input_ids: got torch.float64"),
        (IDS, torch.ones(2, 5), r"attention_mask: got shape \[2, 5\], expected \[2, 6\]$"),
        (IDS, [[1] * 6], r"attention_mask: got shape \[1, 6\], expected \[2, 6\]$"),
        (IDS, [[1] * 6, [1] * 5], r"attention_mask: rows differ in length"),
        (IDS, torch.zeros(2, 6).fill_(-1e9), r"attention_mask: holds -1000000000.0, expected 1 on real ids and 0 on"),
        (IDS, IDS, r"attention_mask: holds 256, expected 1 on real ids"),
    ],
)
def test_wrong_ids_are_refused(model: Unified, ids: Any, mask: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        model(ids, attention_mask=mask)


@torch.inference_mode()
def test_lists_and_arrays_are_as_good_as_tensors(model: Unified) -> None:
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    expected = model(IDS, attention_mask=mask, labels=IDS)
    for given in ("tolist", "numpy"):
        ids, seen = (getattr(value, given)() for value in (IDS, mask))
        found = model(ids, attention_mask=seen, labels=ids)
        assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
    assert torch.equal(model(IDS, attention_mask=mask.double()).logits, expected.logits)


def test_gradient_checkpointing_changes_no_number(plain: dict[str, Any]) -> None:
    model = zoo.create(plain, seed=0).train()

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        model.zero_grad(set_to_none=True)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            loss = model(IDS, labels=IDS).loss
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(saved)

    loss, grads, kept = step()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    again, found, fewer = step()
    assert model.is_gradient_checkpointing and model.spec.backbone.checkpoint and fewer < kept / 2
    assert torch.equal(loss, again) and grads.keys() == found.keys()
    assert all(torch.equal(grads[name], found[name]) for name in grads)
    model.gradient_checkpointing_disable()
    assert step()[2] == kept


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (IDS[:, :3], r"labels: got torch.int64 \[2, 3\], expected integers \[2, 6\]"),
        (IDS.float(), r"labels: got torch.float32"),
        (IDS + 100, r"labels: got ids 110..356, expected 0..258"),
        (IDS - 100, r"labels: got ids -90..156"),
    ],
)
def test_wrong_labels_are_refused(model: Unified, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(IDS, labels=labels)


@pytest.mark.slow
def test_a_call_with_ids_compiles_into_one_graph(model: Unified) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
        torch.testing.assert_close(compiled(IDS, labels=IDS).loss, model(IDS, labels=IDS).loss)


def test_a_model_without_text_says_so(plain: dict[str, Any]) -> None:
    series = {"series": plain["modalities"]["series"]}
    model = zoo.create({**plain, "modalities": series})
    with pytest.raises(ValueError, match="this model has no text modality; it has time series"):
        model(IDS)
