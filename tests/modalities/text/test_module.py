from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from modalities.text.module import Text
from modalities.text.spec import TextSpec

Make = Callable[..., Any]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(tie: bool = False, length: int = 16) -> Text:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextSpec(tie=tie, length=length).build(32)


@pytest.mark.parametrize("tie", [False, True])
def test_the_spec_counts_its_parameters(tie: bool) -> None:
    assert TextSpec(tie=tie).parameters(32) == sum(p.numel() for p in make(tie).parameters())


def test_a_length_below_two_is_refused() -> None:
    with pytest.raises(ValueError, match="length: got 1, expected at least 2"):
        TextSpec(length=1)


def test_an_example_ends_where_its_text_ends() -> None:
    text = make()
    assert text.example({"text": "ab"})["ids"].tolist() == [97, 98, text.tokenizer.eos]
    assert text.example({"text": "ab", "ends": False})["ids"].tolist() == [97, 98]


@pytest.mark.parametrize(("raw", "message"), [({"text": ""}, "empty text"), ({"text": 3}, "got int"), ({}, "got None")])
def test_an_example_without_text_is_refused(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().example(raw)


def test_a_batch_predicts_the_next_id_from_bos_on() -> None:
    text = make()
    batch = text.collate([text.example({"text": "abc"}), text.example({"text": "z", "ends": False})], seeded())
    eos, bos, pad = text.tokenizer.eos, text.tokenizer.bos, text.tokenizer.pad
    assert batch["target"].tolist() == [[97, 98, 99, eos], [122, -100, -100, -100]]
    assert batch["ids"].tolist() == [[bos, 97, 98, 99], [bos, pad, pad, pad]]
    assert batch["mask"].sum().item() == 5


def test_long_texts_are_cropped_by_the_generator() -> None:
    text = make(length=8)
    example = text.example({"text": "".join(chr(33 + i) for i in range(60))})
    rows = text.collate([example] * 50, seeded())["target"]
    assert rows.shape == (50, 8) and len(rows[:, 0].unique()) > 20
    assert (rows[:, 1:7] - rows[:, :6] == 1).all()
    assert torch.equal(rows, text.collate([example] * 50, seeded())["target"])


def test_the_loss_is_cross_entropy_summed_over_target_tokens() -> None:
    text = make()
    batch = text.batch([torch.tensor([1, 2, 3]), torch.tensor([4])])
    hidden = text.encode(batch)
    loss = text.loss(hidden, batch)
    log = text.decode(hidden).log_softmax(-1)
    expected = -(log[0, 0, 1] + log[0, 1, 2] + log[0, 2, 3] + log[1, 0, 4])
    assert loss.count.item() == 4 and torch.allclose(loss.total, expected, atol=1e-5)
    uniform = text.loss(Tokens(embedding=torch.zeros(2, 3, 32)), batch)
    assert uniform.total.item() == pytest.approx(4 * math.log(259), rel=1e-5)


def test_padding_changes_neither_loss_nor_gradient(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    rows = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([9, 8])]
    together = text.batch(rows)
    loss = text.loss(trunk(text.encode(together)), together)
    (whole,) = torch.autograd.grad(loss.total, text.embedding.weight)
    parts = torch.zeros_like(whole)
    total = 0.0
    for row in rows:
        batch = text.batch([row])
        part = text.loss(trunk(text.encode(batch)), batch).total
        total += part.item()
        parts += torch.autograd.grad(part, text.embedding.weight)[0]
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_prompts_of_different_length_are_padded_on_the_left() -> None:
    text = make()
    given = text.prompt(["ab", ""])
    bos, pad = text.tokenizer.bos, text.tokenizer.pad
    assert given["ids"].tolist() == [[bos, 97, 98], [pad, pad, bos]]
    assert given["mask"].tolist() == [[True, True, True], [False, False, True]]
    assert given["position"][..., 0].tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("tie", [False, True])
def test_a_batch_of_prompts_continues_as_each_does_alone(stand_in: Make, tie: bool) -> None:
    text, trunk = make(tie), stand_in()
    prompts = ["a longer prompt", "b", ""]
    together = text.sample(trunk.step(), prompts, max_new_tokens=12, temperature=0)
    for row, prompt in zip(together, prompts, strict=True):
        alone = text.sample(trunk.step(), prompt, max_new_tokens=12, temperature=0)[0]
        assert torch.equal(row[: len(alone)], alone)


def test_sampling_step_by_step_equals_the_full_pass(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    ids = text.sample(trunk.step(), "now", max_new_tokens=10, temperature=0)[0]
    batch = text.batch([torch.tensor([*b"now", *ids.tolist()])])
    logits = text.decode(trunk(text.encode(batch)))[0, 3:]
    logits[:, [text.tokenizer.bos, text.tokenizer.pad]] = -torch.inf
    assert torch.equal(logits.argmax(-1), ids)


def test_only_new_tokens_are_fed(stand_in: Make) -> None:
    text, inner, lengths = make(), stand_in().step(), []

    def step(tokens: Tokens) -> Tokens:
        lengths.append(tokens.shape[1])
        return inner(tokens)

    text.sample(step, "four", max_new_tokens=4, temperature=0)
    assert lengths == [5, 1, 1, 1]


def scripted(text: Text, *scripts: str | list[int]) -> Callable[[Tokens], Tokens]:
    """A step whose hidden states make each row say its script, id by id."""
    count = iter(range(100))
    assert text.head is not None
    with torch.no_grad():
        text.head.weight.zero_()
        text.head.weight[:, :9] = torch.tensor([[float(b == "1") for b in f"{i:09b}"] for i in range(259)]) - 0.5

    def step(tokens: Tokens) -> Tokens:
        at, hidden = next(count), torch.zeros(*tokens.shape, 32)
        for row, script in enumerate(scripts):
            ids = text.tokenizer.encode(script) if isinstance(script, str) else script
            code = f"{ids[min(at, len(ids) - 1)]:09b}"
            hidden[row, -1, :9] = torch.tensor([float(b == "1") for b in code]) - 0.5
        return tokens.replace(embedding=hidden)

    return step


def test_a_row_stops_at_eos_and_the_others_go_on() -> None:
    text = make()
    eos, pad = text.tokenizer.eos, text.tokenizer.pad
    ids = text.sample(scripted(text, [65, eos], "xyz"), ["", ""], max_new_tokens=3, temperature=0)
    assert ids.tolist() == [[65, eos, pad], [120, 121, 122]]
    assert text.texts(ids) == ["A", "xyz"]


def test_a_stop_text_ends_the_row_and_is_cut_off() -> None:
    text = make()
    ids = text.sample(scripted(text, "one. two. three."), "", max_new_tokens=50, temperature=0, stop=[". t"])
    assert text.texts(ids, stop=[". t"]) == ["one"] and ids.shape == (1, 6)


def test_the_stream_gives_what_the_sample_gives_one_id_at_a_time(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    stream = text.stream(trunk.step(), ["a", "bc"], max_new_tokens=5, generator=seeded())
    first = next(stream)
    assert first.shape == (2,)
    whole = text.sample(trunk.step(), ["a", "bc"], max_new_tokens=5, generator=seeded())
    assert torch.equal(torch.stack([first, *stream], 1), whole)


def test_impossible_requests_are_refused(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    with pytest.raises(ValueError, match="max_new_tokens: got 0"):
        text.sample(trunk.step(), "a", max_new_tokens=0, temperature=0)
    with pytest.raises(ValueError, match="prompt: got an empty list"):
        text.sample(trunk.step(), [], temperature=0)
    with pytest.raises(ValueError, match="generator: none given"):
        text.sample(trunk.step(), "a")
