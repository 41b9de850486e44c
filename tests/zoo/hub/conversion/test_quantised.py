"""Quantised releases read as plain weights: the numbers of transformers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo.hub import tensors
from zoo.hub.check import check
from zoo.hub.conversion.quantised import BlockFp8, Mxfp4
from zoo.hub.tensors import WeightsError
from zoo.spec import SpecError

FP8 = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [8, 4],
    "scale_fmt": "ue8m0",
}  # fmt: skip
OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2,
    "num_experts_per_tok": 2, "vocab_size": 40, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
}  # fmt: skip
MX = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def quantise(value: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A weight in fp8 with the factors of its blocks, those at the edges cut."""
    rows, columns = block
    grid = torch.empty(-(-value.shape[0] // rows), -(-value.shape[1] // columns))
    out = torch.empty_like(value)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            here = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            grid[i, j] = value[here].abs().max() / 448
            out[here] = value[here] / grid[i, j]
    return out.to(torch.float8_e4m3fn), grid


def to_fp8(checkpoint: Any, block: tuple[int, int] = (8, 4)) -> dict[str, Tensor]:
    """Quantises the maps of a checkpoint's blocks in place; returns what they then stand for."""
    plain = {}
    for name, value in list(checkpoint.tensors.items()):
        if value.ndim == 2 and "layers" in name and ".gate.weight" not in name:
            numbers, grid = quantise(value, block)
            checkpoint.tensors |= {name: numbers, f"{name}_scale_inv": grid}
            wide = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            plain[name] = numbers.float() * wide[: value.shape[0], : value.shape[1]]
    checkpoint.fields["quantization_config"] = FP8
    checkpoint.write()
    return plain


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_fp8_in_blocks_is_read_as_plain_weights(write: Any, tmp_path: Path, dtype: torch.dtype | None) -> None:
    checkpoint = write()
    plain = to_fp8(checkpoint)
    model = zoo.load(checkpoint.folder, dtype=dtype)
    kept = {name: value for name, value in checkpoint.tensors.items() if not name.endswith("_scale_inv")}
    zoo.export(model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == kept.keys()
    for name, value in written.items():
        assert value.dtype == torch.float32  # that of config.json
        assert torch.equal(value, plain.get(name, kept[name].float())), name
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    report = check(checkpoint.folder)
    assert report.ok and report.theirs == (len(checkpoint.tensors),) * 2
    assert any("stored as fp8" in note for note in report.notes)


def test_fp8_equals_transformers() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(256, 384, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3, generator=generator) + 0.01
    expected = Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.float32)
    found = BlockFp8((128, 128)).plain(numbers, scales)
    assert torch.equal(found, expected)
    assert torch.equal(BlockFp8((128, 128)).plain(numbers[None], scales[None]), expected[None])
    powers = torch.tensor([[0.5, 2.0, 1.0], [4.0, 1.0, 0.25]]).to(torch.float8_e8m0fnu)
    again = Fp8Dequantize(None)._dequantize_one(numbers, powers, torch.float32)
    assert torch.equal(BlockFp8((128, 128)).plain(numbers, powers), again)


def test_mxfp4_equals_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 8, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 8, 2), generator=generator, dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales)
    found = Mxfp4().plain(blocks, scales)
    assert found.shape == (3, 64, 8) and torch.equal(found, expected.reshape(found.shape))
    assert Mxfp4().shapes(blocks.shape) == (found.shape, scales.shape)


def test_a_release_of_gpt_oss_in_mxfp4_is_read(tmp_path: Path, write: Any) -> None:
    checkpoint = write(**OSS)
    generator = torch.Generator().manual_seed(0)
    plain = {}
    for name in ("gate_up_proj", "down_proj"):
        full = f"model.layers.0.mlp.experts.{name}"
        _, inputs, outputs = checkpoint.tensors.pop(full).shape
        blocks = torch.randint(256, (2, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, (2, outputs, inputs // 32), generator=generator, dtype=torch.uint8)
        checkpoint.tensors |= {f"{full}_blocks": blocks, f"{full}_scales": scales}
        plain[full] = Mxfp4().plain(blocks, scales)
    checkpoint.fields["quantization_config"] = MX
    checkpoint.write()
    checkpoint.shard()  # blocks and scales may lie in different files
    model = zoo.load(checkpoint.folder)
    zoo.export(model, tmp_path / "out", dtype=torch.bfloat16)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in plain.items())
    report = check(checkpoint.folder)
    assert report.ok and report.theirs == (len(checkpoint.tensors),) * 2


def test_numbers_that_are_not_finite_are_found_in_any_order_of_axes(tmp_path: Path) -> None:
    blocks, scales = torch.full((2, 3, 1, 16), 0x22, dtype=torch.uint8), torch.full((2, 3, 1), 127, dtype=torch.uint8)
    scales[1, 2] = 255  # no power of two by the format
    save_file({"w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    stored = Mxfp4().gather(tensors.contents(tmp_path), torch.bfloat16, tmp_path)
    assert tensors.nonfinite(stored) == {"w": 32}


def test_a_tensor_in_both_forms_is_refused(tmp_path: Path) -> None:
    blocks, scales = torch.zeros(2, 3, 1, 16, dtype=torch.uint8), torch.zeros(2, 3, 1, dtype=torch.uint8)
    save_file({"w": torch.zeros(2, 32, 3), "w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="w: stored plain as well as quantised"):
        Mxfp4().gather(tensors.contents(tmp_path), torch.bfloat16, tmp_path)


def test_scales_that_are_missing_or_do_not_fit_are_named(write: Any) -> None:
    checkpoint = write()
    to_fp8(checkpoint)
    first, second = [name for name in checkpoint.tensors if name.endswith("_scale_inv")][:2]
    checkpoint.tensors[first] = torch.ones(1, 1)
    del checkpoint.tensors[second]
    checkpoint.write()
    with pytest.raises(WeightsError, match=": 2 quantised tensors do not fit") as caught:
        zoo.load(checkpoint.folder)
    assert f"{first}: expected [2, 4], got [1, 1]" in str(caught.value)
    assert f"{second}: expected" in str(caught.value) and "got nothing" in str(caught.value)


def test_eight_bits_without_the_field_mean_nothing(write: Any) -> None:
    checkpoint = write()
    to_fp8(checkpoint)
    checkpoint.fields["quantization_config"] = None
    checkpoint.write()
    with pytest.raises(WeightsError, match=r"misshapen .*float8_e4m3fn, expected .*float32"):
        zoo.load(checkpoint.folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"stored quantised \(gptq\); of quantised ones only fp8 are read here"),
        ({"quant_method": "mxfp4"}, r"stored quantised \(mxfp4\)"),
        ({}, None),
        ({"bits": 4}, "quant_method: missing"),
        ({**FP8, "activation_scheme": "static"}, "activation_scheme: got 'static', supported is 'dynamic'"),
        ({**FP8, "weight_block_size": None}, "weight_block_size: missing"),
        ({**FP8, "weight_block_size": [128]}, r"weight_block_size: got \[128\], expected rows and columns"),
        ({**FP8, "group": 2}, "not honoured here.*group = 2"),
    ],
)
def test_other_ways_are_refused_by_name(write: Any, how: dict[str, Any], message: str | None) -> None:
    checkpoint = write()
    checkpoint.fields["quantization_config"] = how
    checkpoint.write()
    if message is None:
        assert zoo.load(checkpoint.folder).spec.backbone.dim == 16
        return
    with pytest.raises(SpecError, match=message):
        zoo.load(checkpoint.folder)
