"""Continuing prompts: ids, streams, texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from modalities.text.module import Text
from modalities.text.sampling import Sampling
from modalities.text.spec import TextSpec

Make = Callable[..., Any]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(tie: bool = False) -> Text:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextSpec(tie=tie, length=16).build(32)


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
    together = text.sample(trunk.step(), prompts, Sampling(max_new_tokens=12, temperature=0))
    for row, prompt in zip(together, prompts, strict=True):
        alone = text.sample(trunk.step(), prompt, Sampling(max_new_tokens=12, temperature=0))[0]
        assert torch.equal(row[: len(alone)], alone)


def test_sampling_step_by_step_equals_the_full_pass(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    ids = text.sample(trunk.step(), "now", Sampling(max_new_tokens=10, temperature=0))[0]
    batch = text.batch([torch.tensor([*b"now", *ids.tolist()])])
    logits = text.decode(trunk(text.encode(batch)))[0, 3:]
    logits[:, [text.tokenizer.bos, text.tokenizer.pad]] = -torch.inf
    assert torch.equal(logits.argmax(-1), ids)


def test_only_new_tokens_are_fed(stand_in: Make) -> None:
    text, inner, lengths = make(), stand_in().step(), []

    def step(tokens: Tokens) -> Tokens:
        lengths.append(tokens.shape[1])
        return inner(tokens)

    text.sample(step, "four", Sampling(max_new_tokens=4, temperature=0))
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
    ids = text.sample(scripted(text, [65, eos], "xyz"), ["", ""], Sampling(max_new_tokens=3, temperature=0))
    assert ids.tolist() == [[65, eos, pad], [120, 121, 122]]
    assert text.texts(ids) == ["A", "xyz"]


def test_a_stop_text_ends_the_row_and_is_cut_off() -> None:
    text = make()
    sampling = Sampling(max_new_tokens=50, temperature=0, stop=(". t", "zzz"))
    ids = text.sample(scripted(text, "one. two. three."), "", sampling)
    assert text.texts(ids, sampling) == ["one"] and ids.shape == (1, 6)


def test_other_ids_may_end_a_row() -> None:
    text = make()
    sampling = Sampling(max_new_tokens=5, temperature=0, eos=(ord("y"), 3))
    ids = text.sample(scripted(text, "xyz", [65, text.tokenizer.eos, 66]), ["", ""], sampling)
    pad = text.tokenizer.pad
    assert ids.tolist() == [[120, 121, pad, pad, pad], [65, 257, 66, 66, 66]]


def test_pieces_of_several_rows_end_with_each_row() -> None:
    text = make()
    sampling = Sampling(max_new_tokens=9, temperature=0, stop="EN")
    script = scripted(text, "abENDxxxx", "a\u00e9b")
    pieces = list(text.write(script, text.prompt(["", ""]), sampling))
    assert pieces[:4] == [["a", "a"], ["b", ""], ["", "\u00e9"], ["", "b"]]  # E may begin the stop text
    assert ["".join(row) for row in zip(*pieces, strict=True)] == ["ab", "a\u00e9" + "b" * 6]


def test_the_repetition_penalty_counts_the_prompt_but_no_padding() -> None:
    text = make()
    step = scripted(text, "aaaa", "aaaa")
    sampling = Sampling(max_new_tokens=2, temperature=0, repetition_penalty=1e6)
    ids = text.sample(step, ["a", "longer"], sampling)
    assert ids[0, 0] != ord("a") and ids[1, 0] == ord("a") and ids[1, 1] != ord("a")


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_prompt_may_be_fed_in_chunks(stand_in: Make, chunk: int) -> None:
    text, trunk, lengths = make(), stand_in(), []
    sampling = Sampling(max_new_tokens=6, temperature=0)
    inner = trunk.step()

    def step(tokens: Tokens) -> Tokens:
        lengths.append(tokens.shape[1])
        return inner(tokens)

    found = text.sample(step, ["a prompt", "b"], sampling, prefill_chunk=chunk)
    assert torch.equal(found, text.sample(trunk.step(), ["a prompt", "b"], sampling))
    assert max(lengths) == min(chunk, 9) and sum(lengths) == 9 + 5
    with pytest.raises(ValueError, match="prefill_chunk: got 0"):
        text.sample(trunk.step(), "a", sampling, prefill_chunk=0)


def test_rows_of_equal_length_need_no_mask(stand_in: Make) -> None:
    text, inner, masks = make(), stand_in().step(), []

    def step(tokens: Tokens) -> Tokens:
        masks.append(tokens.mask)
        return inner(tokens)

    text.sample(step, ["ab", "cd"], Sampling(max_new_tokens=3, temperature=0))
    assert masks == [None] * 3


def test_the_stream_gives_what_the_sample_gives_one_id_at_a_time(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    stream = text.stream(trunk.step(), ["a", "bc"], Sampling(max_new_tokens=5), generator=seeded())
    first = next(stream)
    assert first.shape == (2,)
    whole = text.sample(trunk.step(), ["a", "bc"], Sampling(max_new_tokens=5), generator=seeded())
    assert torch.equal(torch.stack([first, *stream], 1), whole)


def test_impossible_requests_are_refused(stand_in: Make) -> None:
    text, trunk = make(), stand_in()
    with pytest.raises(ValueError, match="prompt: got an empty list"):
        text.sample(trunk.step(), [], Sampling(temperature=0))
    with pytest.raises(ValueError, match="prompt: got an empty text without special ids"):
        text.prompt(["a", ""], special=False)
    with pytest.raises(ValueError, match="generator: none given"):
        text.sample(trunk.step(), "a")
