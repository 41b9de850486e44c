from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
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


def test_scales_bias_and_further_rows() -> None:
    spec = TextSpec(vocab=300, scale=3.0, logit_scale=0.5, head_bias=True, tie=False)
    text = spec.build(8)
    assert spec.parameters(8) == sum(p.numel() for p in text.parameters()) == 300 * (8 + 8 + 1)
    ids = torch.tensor([[1, 2]])
    assert torch.equal(text.embed(ids), text.embedding(ids) * 3)
    assert text.head is not None and text.head_bias is not None
    torch.nn.init.normal_(text.head_bias)
    hidden = torch.randn(1, 2, 8, generator=seeded())
    expected = (hidden @ text.head.weight.T + text.head_bias) * 0.5
    torch.testing.assert_close(text.logits(hidden), expected)
    batch = text.batch([torch.tensor([5, 6])])
    loss = text.loss(Tokens(embedding=hidden), batch)
    wanted = -expected.log_softmax(-1)[0, [0, 1], [5, 6]].sum()
    torch.testing.assert_close(loss.total, wanted)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"vocab": 0}, "vocab: got 0"), ({"scale": 0.0}, "scale: got 0.0"), ({"logit_scale": math.inf}, "logit_scale")],
)
def test_impossible_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSpec(**keys)
    with pytest.raises(ValueError, match="vocab: got 100, expected at least the tokenizer's 259 ids"):
        TextSpec(vocab=100).build(8)


def test_settings_of_generation_come_from_the_folder_and_go_with_the_weights(tmp_path: Path) -> None:
    text = make()
    assert text.sampling == Sampling(temperature=0.8)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "max_new_tokens": 3}')
    text.attach(tmp_path)
    assert text.sampling == Sampling(temperature=0, max_new_tokens=3)
    (tmp_path / "one").mkdir()
    text.write_files(tmp_path / "one")
    assert (tmp_path / "one" / "generation_config.json").read_bytes() == (
        tmp_path / "generation_config.json"
    ).read_bytes()
    text.sampling = Sampling(temperature=0.3, top_p=0.9)
    (tmp_path / "two").mkdir()
    text.write_files(tmp_path / "two")
    again = make()
    again.attach(tmp_path / "two")
    assert again.sampling == Sampling(temperature=0.3, top_p=0.9, eos=(257,))
