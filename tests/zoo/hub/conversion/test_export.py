"""Exporting: what is written, what is refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.hub.conversion.export import ExportError
from zoo.hub.tensors import contents

ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
MIXTRAL_LIKE: dict[str, Any] = {
    "type": "unified",
    "backbone": {
        "dim": 16,
        "layers": [{"repeat": 2, "block": {
            "type": "sequential", "attention": {"heads": 2},
            "ffn": {
                "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8},
                "router": {"type": "top_k", "k": 2, "gate": {"jitter": 0.1}}, "backend": "grouped",
                "balance": [{"type": "switch", "weight": 0.01}],
            },
        }}],
    },
    "modalities": {"text": {"type": "text", "tie": False}},
}  # fmt: skip


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def test_a_model_of_ours_is_exported_as_the_family_that_describes_it(tmp_path: Path) -> None:
    import transformers

    model = zoo.create(MIXTRAL_LIKE, seed=3).eval()
    folder = zoo.export(model, tmp_path / "m")
    fields = config(folder)
    assert fields["model_type"] == "mixtral" and fields["vocab_size"] == 259 and fields["bos_token_id"] == 256
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.allclose(peer(ids).logits, expected, atol=1e-5)
        assert torch.allclose(zoo.load(folder)(ids).logits, expected, atol=1e-6)


def test_both_spellings_of_precision_and_positions_are_written(write: Any, tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model = zoo.load(write(rope_scaling=scaling, rope_theta=5e4).folder)
    fields = config(zoo.export(model, tmp_path / "m"))
    assert fields["dtype"] == fields["torch_dtype"] == "float32"
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 5e4
    assert fields["rope_scaling"]["rope_type"] == fields["rope_parameters"]["rope_type"] == "yarn"
    assert fields["rope_scaling"]["original_max_position_embeddings"] == 16


def test_fields_that_we_do_not_read_survive(write: Any, tmp_path: Path) -> None:
    model = zoo.load(write(router_aux_loss_coef=0.02, max_position_embeddings=4096, eos_token_id=[3, 4]).folder)
    again = zoo.load(zoo.save(model, tmp_path / "ours"))
    fields = config(zoo.export(again, tmp_path / "m"))
    assert fields["router_aux_loss_coef"] == 0.02 and fields["max_position_embeddings"] == 4096
    assert fields["eos_token_id"] == [3, 4]


def test_another_precision_never_narrows_routers(write: Any, tmp_path: Path) -> None:
    checkpoint = write()
    folder = zoo.export(zoo.load(checkpoint.folder), tmp_path / "m", dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    assert config(folder)["torch_dtype"] == "bfloat16"
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(stored[ROUTER], checkpoint.tensors[ROUTER])
    assert torch.equal(stored["lm_head.weight"], checkpoint.tensors["lm_head.weight"].bfloat16())
    with pytest.raises(ValueError, match=r"dtype: got torch\.int8"):
        zoo.export(zoo.load(checkpoint.folder), tmp_path / "n", dtype=torch.int8)


def test_loading_in_another_precision_and_from_mixed_files(write: Any) -> None:
    checkpoint = write()
    for name in checkpoint.tensors:
        if name != ROUTER:
            checkpoint.tensors[name] = checkpoint.tensors[name].bfloat16()
    checkpoint.write()
    as_stored = zoo.load(checkpoint.folder)
    assert as_stored.modalities["text"].head.weight.dtype == torch.bfloat16
    assert torch.equal(as_stored.moe_layers()[0].router.gate.weight, checkpoint.tensors[ROUTER])
    assert as_stored.moe_layers()[1].router.gate.weight.dtype == torch.bfloat16
    wide = zoo.load(checkpoint.folder, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    half = zoo.load(checkpoint.folder, dtype=torch.float16)
    assert half.moe_layers()[0].router.gate.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype: got torch\.int8"):
        zoo.load(checkpoint.folder, dtype=torch.int8)


def test_files_of_a_greatest_size(write: Any, tmp_path: Path) -> None:
    checkpoint = write()
    folder = zoo.export(zoo.load(checkpoint.folder), tmp_path / "m", max_shard_size=6000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and not (folder / "model.safetensors").exists()
    assert all(sum(t.nbytes for t in load_file(s).values()) <= 6000 for s in shards)
    assert contents(folder).keys() == checkpoint.tensors.keys()
    assert zoo.load(folder).spec == zoo.load(checkpoint.folder).spec


def test_tokenizer_and_generation_files_go_along(write: Any, tmp_path: Path) -> None:
    checkpoint = write()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        (checkpoint.folder / name).write_text("{}", encoding="utf-8")
    (checkpoint.folder / "modeling_evil.py").write_text("", encoding="utf-8")
    model = zoo.load(checkpoint.folder)
    expected = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                "generation_config.json", "chat_template.jinja"}  # fmt: skip
    exported, saved = zoo.export(model, tmp_path / "m"), zoo.save(model, tmp_path / "ours")
    assert {p.name for p in exported.iterdir()} == {p.name for p in saved.iterdir()} == expected
    zoo.export(zoo.load(saved), exported, overwrite=True)
    assert {p.name for p in exported.iterdir()} == expected


def test_a_tokenizer_that_cannot_go_along_is_missed(write: Any, tmp_path: Path) -> None:
    checkpoint = write()
    model = zoo.load(checkpoint.folder)
    checkpoint.folder.rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="is gone, so no tokenizer is written"):
        zoo.save(model, tmp_path / "m")


def test_what_stands_there_is_kept(write: Any, tmp_path: Path) -> None:
    model = zoo.load(write().folder)
    folder = zoo.export(model, tmp_path / "m")
    with pytest.raises(FileExistsError, match="already exists"):
        zoo.export(model, folder)
    (folder / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"also holds diary\.txt"):
        zoo.export(model, folder, overwrite=True)


def test_a_model_that_no_family_describes(write: Any, tmp_path: Path) -> None:
    changed = json.loads(json.dumps(MIXTRAL_LIKE))
    changed["backbone"]["layers"][0]["block"]["ffn"]["null_experts"] = {"zero": 1}
    with pytest.raises(ExportError, match=r"null_experts\.zero: 1, not 0"):
        zoo.export(zoo.create(changed), tmp_path / "m")
    with pytest.raises(ExportError, match="expected one text modality alone"):
        zoo.export(zoo.create("unimoe-tiny"), tmp_path / "m")
    with pytest.raises(ExportError, match="llama has no stacked experts"):
        zoo.export(zoo.load(write(dense=True).folder), tmp_path / "m", format="hf-stacked")
    with pytest.raises(ValueError, match="format: got 'gguf', expected one of hf, hf-stacked"):
        zoo.export(zoo.create(MIXTRAL_LIKE), tmp_path / "m", format="gguf")  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_a_failed_export_leaves_nothing(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    model = zoo.load(write().folder)
    monkeypatch.setattr("zoo.hub.files.write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        zoo.export(model, tmp_path / "out" / "m")
    assert list((tmp_path / "out").iterdir()) == []


def test_cards_and_references_of_public_checkpoints(write: Any) -> None:
    folder = write().folder
    card = zoo.card(folder)
    assert card.modalities == ("text",) and "router top_k" in card.parts
    assert card.total == sum(p.numel() for p in zoo.load(folder).parameters())
