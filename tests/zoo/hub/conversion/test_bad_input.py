"""What is wrong with a checkpoint is said before anything of it is used, by name and all at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import zoo
from zoo.hub import tensors
from zoo.hub.tensors import WeightsError
from zoo.spec import SpecError


def refused(checkpoint: Any, **changes: Any) -> str:
    """The message with which a checkpoint is refused once these fields are changed."""
    checkpoint.fields |= changes
    checkpoint.write()
    with pytest.raises((SpecError, WeightsError)) as caught:
        zoo.load(checkpoint.folder)
    assert str(checkpoint.folder) in str(caught.value)
    return str(caught.value)


def test_missing_surplus_and_misshapen_tensors_are_all_listed(write: Any) -> None:
    checkpoint = write()
    del checkpoint.tensors["model.norm.weight"]
    checkpoint.tensors["model.layers.2.mlp.gate_proj.weight"] = torch.zeros(2, 3)
    checkpoint.tensors["lm_head.weight"] = torch.zeros(39, 16)
    checkpoint.tensors["model.embed_tokens.weight"] = torch.zeros(40, 16, dtype=torch.int64)
    text = refused(checkpoint)
    assert "4 tensors do not fit" in text
    assert "missing model.norm.weight [16] float32" in text
    assert "surplus model.layers.2.mlp.gate_proj.weight [2, 3] float32" in text
    assert "misshapen lm_head.weight: [39, 16] float32, expected [40, 16] float32" in text
    assert "misshapen model.embed_tokens.weight: [40, 16] int64, expected [40, 16] float32" in text


def test_half_of_the_experts_stacked_is_neither_layout(write: Any) -> None:
    checkpoint = write()
    layer = "model.layers.1.block_sparse_moe.experts"
    for i in range(3):
        del checkpoint.tensors[f"{layer}.{i}.w2.weight"]
    checkpoint.tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(3, 16, 12)
    text = refused(checkpoint)
    assert "missing model.layers.1.block_sparse_moe.experts.0.w2.weight" in text
    assert "surplus model.layers.1.mlp.experts.down_proj" in text


def test_a_truncated_shard(write: Any) -> None:
    checkpoint = write()
    checkpoint.shard()
    path = checkpoint.folder / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model-2\.safetensors: truncated"):
        zoo.load(checkpoint.folder)


@pytest.mark.parametrize(
    "file", ["model-3.safetensors", "../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors"]
)
def test_an_index_that_names_an_absent_shard_or_climbs_out(write: Any, file: str) -> None:
    checkpoint = write()
    checkpoint.shard()
    checkpoint.index(dict.fromkeys(checkpoint.tensors, file))
    absent, outside = r"no such weight file, but .*json names it \(1 of 1 are", "safetensors file in the same folder"
    expected = absent if file == "model-3.safetensors" else outside
    with pytest.raises((FileNotFoundError, WeightsError), match=expected):
        zoo.load(checkpoint.folder)


def test_an_unknown_family_names_the_nearest_and_all(write: Any) -> None:
    text = refused(write(), model_type="mixtrall")
    assert "model_type: 'mixtrall' is not supported (did you mean 'mixtral'?); supported are " in text
    assert "olmoe" in text and "qwen3_moe" in text


def test_fields_that_nobody_reads_are_refused_by_name(write: Any) -> None:
    text = refused(write(), attention_sink_size=4, num_local_expert=8, sparse_plan={"bits": 4})
    assert "config.json: not honoured here, so refused rather than ignored" in text
    assert "attention_sink_size = 4" in text and "sparse_plan = {'bits': 4}" in text
    assert "num_local_expert = 8 (did you mean 'num_local_experts'?)" in text


def test_a_share_of_a_head_is_refused_where_whole_heads_turn(write: Any) -> None:
    text = refused(write(), partial_rotary_factor=0.5)
    assert "partial_rotary_factor: got 0.5, supported is 1 in this family" in text


def test_harmless_fields_and_nulls_are_not(write: Any) -> None:
    checkpoint = write(
        use_cache=False,
        attention_dropout=0.1,
        router_jitter_noise=0.1,
        new_thing=None,
        max_length=20,
        rope_scaling=None,
    )
    assert zoo.load(checkpoint.folder).spec.backbone.dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map: names code to run"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', supported is 'silu'"),
        ({"hidden_size": "16"}, "hidden_size: got '16', expected int"),
        ({"hidden_size": True}, "hidden_size: got True, expected int"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan, expected a finite number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000, expected 1..10000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0"),
        ({"num_attention_heads": 0}, "num_attention_heads: got 0"),
        ({"num_experts": 7}, "num_local_experts: given as num_local_experts = 3 and as num_experts = 7"),
        ({"architectures": ["MixtralForSequenceClassification"]}, "supported is MixtralForCausalLM"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: got True, supported is False"),
        ({"rope_scaling": {"type": "cubic", "factor": 2.0}}, "rope_type: got 'cubic', supported are default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "spin": 1}}, "rope_scaling: not honoured here.*spin = 1"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters: not honoured.*full_attention"),
        ({"rope_parameters": [1]}, r"rope_parameters: got \[1\], expected a mapping"),
        ({"num_experts_per_tok": 9}, "as a mixtral: backbone.*router.k: got 9, expected at most 3"),
        ({"vocab_size": 10**9}, "config.json describes .* parameters, the files hold"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_right(write: Any, changes: dict[str, Any], message: str) -> None:
    text = refused(write(), **changes)
    assert re.search(message, text), text


def test_weights_that_are_pickled_are_not_opened(write: Any) -> None:
    checkpoint = write()
    (checkpoint.folder / "model.safetensors").rename(checkpoint.folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin only, a pickle.*save_pretrained"):
        zoo.load(checkpoint.folder)


def test_a_tied_head_may_be_absent_or_equal_but_not_another(write: Any) -> None:
    checkpoint = write(dense=True, tie_word_embeddings=True)
    assert "lm_head.weight" not in checkpoint.tensors
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    plain = zoo.load(checkpoint.folder)
    checkpoint.tensors["lm_head.weight"] = embedding.clone()
    checkpoint.write()
    again = zoo.load(checkpoint.folder)
    assert again.modalities["text"].head is None
    assert torch.equal(again.modalities["text"].embedding.weight, plain.modalities["text"].embedding.weight)
    checkpoint.tensors["lm_head.weight"] = embedding + 1
    assert "lm_head.weight differs" in refused(checkpoint)


def test_an_untied_head_may_not_be_absent(write: Any) -> None:
    checkpoint = write()
    del checkpoint.tensors["lm_head.weight"]
    assert "missing lm_head.weight [40, 16]" in refused(checkpoint)


def test_buffers_that_old_releases_saved_are_left_unread(write: Any) -> None:
    checkpoint = write(dense=True)
    checkpoint.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    checkpoint.write()
    assert zoo.load(checkpoint.folder).spec.backbone.depth == 2


def test_numbers_that_are_not_finite_are_counted(write: Any) -> None:
    checkpoint = write()
    assert tensors.nonfinite(tensors.contents(checkpoint.folder)) == {}
    checkpoint.tensors["model.norm.weight"][3] = torch.nan
    checkpoint.tensors["lm_head.weight"][:2, 0] = torch.inf
    checkpoint.write()
    assert tensors.nonfinite(tensors.contents(checkpoint.folder)) == {"model.norm.weight": 1, "lm_head.weight": 2}
