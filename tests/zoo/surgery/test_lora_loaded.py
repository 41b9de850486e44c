"""LoRA experts beside the maps of models opened from public checkpoints: adapted, trained, merged, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.hub.conversion.checkpoint import describe
from zoo.models.unified import Unified
from zoo.surgery.lora_experts import add_lora_experts, merge_lora_experts

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64, "rope_theta": 1e4,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "olmoe": {"architectures": ["OlmoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(params=sorted(FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Unified:
    """A model opened from a public checkpoint."""
    fields = {**SIZES, "model_type": request.param, **FAMILIES[request.param]}
    _, spec = describe(fields, tmp_path / "config.json")
    torch.manual_seed(0)
    zoo.export(spec.build(), tmp_path / "public")
    found = zoo.load(str(tmp_path / "public"))
    assert isinstance(found, Unified)
    return found.eval()


def rows() -> Tensor:
    return torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=rows()).logits
    return found


def trained(model: Any) -> Any:
    """After two steps of its trainable parameters."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=rows(), labels=rows()).loss.backward()
        optimizer.step()
    return model.eval()


def test_one_expert_is_trained_merged_and_written_as_the_family_it_was(loaded: Unified, tmp_path: Path) -> None:
    before = logits(loaded)
    adapted = add_lora_experts(loaded, counts=(1,), ranks=2, targets=("*",))
    assert torch.equal(logits(adapted), before)
    kept = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    after = logits(trained(adapted))
    assert (after - before).abs().max() > 0.05 and torch.equal(logits(loaded), before)
    assert all(torch.equal(p, kept[name]) for name, p in adapted.named_parameters() if name in kept)
    merged = merge_lora_experts(adapted)
    torch.testing.assert_close(logits(merged), after, atol=1e-5, rtol=0)
    zoo.export(merged, tmp_path / "merged")
    assert torch.equal(logits(zoo.load(str(tmp_path / "merged"))), logits(merged))


def test_several_experts_are_trained_and_saved_but_no_fixed_matrix(loaded: Unified, tmp_path: Path) -> None:
    adapted = trained(add_lora_experts(loaded, ranks=2, targets=("*",)))
    zoo.save(adapted, tmp_path / "adapted")
    assert torch.equal(logits(zoo.load(str(tmp_path / "adapted"))), logits(adapted))
    with pytest.raises(ValueError, match=r"backbone\.blocks\.0\.attention\.q: its router chooses among 2 experts"):
        merge_lora_experts(adapted)
