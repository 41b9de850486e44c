"""Training goes on from a public checkpoint, and what comes out is one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from training.run import fit
from training.sources import build_data
from zoo.hub.convert import read_checkpoint
from zoo.hub.tensors import WeightsError

FIELDS: dict[str, Any] = {
    "vocab_size": 280, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {"llama": {}, "olmoe": {"num_experts": 4, "num_experts_per_tok": 2}}
IDS = torch.tensor([[1, 7, 30, 4, 9, 200, 11]])
SHORT = {"modalities.text.length": 24, "backbone.checkpoint": True}


def write_tokenizer(folder: Path) -> None:
    """Bytes, without merges, under special ids 0, 1 and 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: Any, tmp_path_factory: Any) -> Path:
    """A tiny random checkpoint that transformers wrote."""
    import transformers

    config = transformers.AutoConfig.for_model(request.param, **FIELDS, **FAMILIES[request.param])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = transformers.AutoModelForCausalLM.from_config(config)
    found: Path = tmp_path_factory.mktemp(request.param)
    peer.save_pretrained(found)
    write_tokenizer(found)
    return found


def test_a_public_checkpoint_trains_and_is_one_again(tiny: Any, folder: Path, tmp_path: Path) -> None:
    import transformers

    module = tiny.module(str(folder), overrides=SHORT, init_from=str(folder), lr=1e-2)
    loaded = zoo.load(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.model.state_dict().items())
    data = build_data({"sources": {"text": {"data": {"type": "docstrings"}, "rows": 2}}})
    last = fit(module, data, max_steps=3, folder=tmp_path / "run", log_every=1, progress=False)
    model = module.model.eval()
    assert not torch.equal(model.state_dict()["backbone.norm.weight"], loaded["backbone.norm.weight"])

    zoo.export(model, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, again(IDS).logits, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    before, after = (json.loads((at / "config.json").read_text()) for at in (folder, tmp_path / "out"))
    assert {key: after[key] for key in before} == before

    kept = read_checkpoint(last).eval()  # a training checkpoint remembers what it began from
    assert kept.origin == model.origin
    assert kept.generate("to be", max_new_tokens=2, seed=0) == model.generate("to be", max_new_tokens=2, seed=0)


def test_weights_of_another_model_are_refused(tiny: Any, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"misshapen backbone\.norm\.weight: \[16\] float32, expected \[32\]"):
        tiny.module(str(folder), overrides={**SHORT, "backbone.dim": 32}, init_from=str(folder))


def test_equal_tensors_that_mean_something_else_are_named(tiny: Any, folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"differs from its config\.json in backbone\.rope\.theta: 5000\.0, not 10000"):
        tiny.module(str(folder), overrides={**SHORT, "backbone.rope.theta": 5000.0}, init_from=str(folder))


def test_what_fits_is_taken(tiny: Any, folder: Path) -> None:
    deeper = {**SHORT, "backbone.layers.0.repeat": 3}
    with pytest.warns(UserWarning, match=r"tensors are not taken over: backbone\.blocks\.2"):
        module = tiny.module(str(folder), overrides=deeper, init_from=str(folder), init_strict=False)
    loaded, state = zoo.load(folder).state_dict(), module.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
