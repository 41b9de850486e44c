"""The tokenizer and feature side of a model, without its trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.spec import SpecError


def test_it_makes_the_batches_that_training_makes(saved: Path, model: Any) -> None:
    processor = zoo.processor(saved)
    text = model.modalities["text"]
    expected = text.collate([text.example({"text": "hello"})], torch.Generator().manual_seed(0))
    found = processor("text", {"text": "hello"})
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    assert processor.tokenizer.decode(processor.tokenizer.encode("hello")) == "hello"
    assert processor("series", [{"series": np.arange(40.0)}] * 3)["past"].shape[0] == 3


def test_it_holds_no_trained_weights(saved: Path) -> None:
    assert all(p.is_meta for p in zoo.processor(saved).modalities.parameters() if p.requires_grad)


def test_what_was_fitted_comes_from_the_weights(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "type": "unified",
        "backbone": {"dim": 8, "layers": [{"block": {"type": "sequential", "attention": {"heads": 1},
                                                     "ffn": {"type": "dense", "hidden": 8}}}]},
        "modalities": {"speech": {"type": "speech", "codec": {"type": "log_mel_rvq", "size": 8, "codebooks": 2}}},
    }  # fmt: skip
    model = zoo.create(plain)
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(8000).astype(np.float32) * 0.1
    raw = {"audio": wave, "rate": 8000, "text": "one", "speaker": "ann"}
    speech: Any = model.modalities["speech"]
    speech.fit([raw])
    found = zoo.processor(zoo.save(model, tmp_path / "m"))
    fitted: Any = found.modalities["speech"]
    assert torch.equal(fitted.codec.entries, speech.codec.entries) and fitted.voices.known() == ["ann"]
    assert torch.equal(fitted.example(raw)["rows"], speech.example(raw)["rows"])
    with pytest.raises(ValueError, match="no text modality, so no tokenizer; it has speech"):
        found.tokenizer  # noqa: B018


def test_of_a_description_without_weights(plain: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    assert zoo.processor(plain)("text", {"text": "a"})["ids"].tolist() == [[256, 97]]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_name_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no modality 'txt' \(did you mean 'text'\?\); there are text, series"):
        zoo.processor(saved)("txt", {"text": "a"})
    with pytest.raises(SpecError, match="unknown key"):
        zoo.processor({"type": "unified", "hello": 1})


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A random Llama of transformers with tokenizer, chat template and settings of generation."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = "<s> </s> <|user|> <|bot|> the moon is a harsh mistress tell me of"
    words = text.split()
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="the"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    peer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|user|>", "<|bot|>"]
    )
    peer.chat_template = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|bot|>"
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=False, max_new_tokens=7, eos_token_id=[1, 3])
    model.save_pretrained(tmp_path / "public")
    peer.save_pretrained(tmp_path / "public")
    return tmp_path / "public"


def test_of_a_public_checkpoint(public: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peer, reference = AutoTokenizer.from_pretrained(str(public)), AutoModelForCausalLM.from_pretrained(str(public))
    messages = [{"role": "user", "content": "tell me of the moon"}]
    side = zoo.processor(public)
    assert all(p.is_meta for p in side.modalities.parameters())
    text = side.chat(messages)
    assert text == peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat = peer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert side.tokenizer.encode(text) == chat.input_ids[0].tolist()
    expected = reference.generate(**chat)
    model: Any = zoo.load(public)
    assert torch.equal(model.generate(chat.input_ids), expected), "generation_config.json says how"
    answer = peer.decode(expected[0, chat.input_ids.shape[1] :], skip_special_tokens=True)
    assert model.generate(text, special=False).strip() == answer
    asked = peer("the moon", return_tensors="pt")
    assert side("text", {"text": "the moon"})["ids"].tolist() == [[0, 4, 5]]
    found = peer.decode(reference.generate(**asked)[0], skip_special_tokens=True)
    assert "the moon" + model.generate("the moon") == found
    for again in (zoo.save(model, tmp_path / "ours"), zoo.export(model, tmp_path / "theirs")):
        assert zoo.processor(again).chat(messages) == text
        assert zoo.load(again).sampling == model.sampling
        assert (again / "tokenizer.json").read_bytes() == (public / "tokenizer.json").read_bytes()


def test_a_model_without_a_chat_template(saved: Path, plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no chat template; expected chat_template.jinja"):
        zoo.processor(saved).chat([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="no chat template: the model has no folder of its own"):
        zoo.processor(plain).chat([{"role": "user", "content": "a"}])
