"""DAC, EnCodec and Mimi behind the codec interface, each from a small random configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalities.codecs.spec import DacSpec, EncodecSpec, MimiSpec, PretrainedCodecSpec


def dac(folder: Path) -> DacSpec:
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=[2, 4],
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=8000,
    )
    DacModel(config).save_pretrained(folder)
    return DacSpec(path=str(folder))


def encodec(folder: Path) -> EncodecSpec:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[4.0, 8.0],
        sampling_rate=8000,
        hidden_size=8,
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        num_lstm_layers=1,
    )
    EncodecModel(config).save_pretrained(folder)
    return EncodecSpec(path=str(folder))


def mimi(folder: Path) -> MimiSpec:
    from transformers import MimiConfig, MimiModel

    config = MimiConfig(
        sampling_rate=8000,
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=8,
        num_quantizers=3,
        vector_quantization_hidden_dimension=8,
        upsample_groups=16,
        num_hidden_layers=1,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    MimiModel(config).save_pretrained(folder)
    return MimiSpec(path=str(folder))


@pytest.mark.parametrize("make", [dac, encodec, mimi])
def test_interface(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec: PretrainedCodecSpec = make(tmp_path)  # type: ignore[operator]
    codec = spec.build()
    assert spec.shape() == (codec.codebooks, codec.size)
    assert spec.parameters() == sum(p.numel() for p in codec.parameters())
    assert not any(p.requires_grad for p in codec.parameters())
    codec.train()
    assert not codec.training

    audio = torch.randn(2, 805, generator=torch.Generator().manual_seed(0)) * 0.1
    codes = codec.encode(audio)
    frames = -(-805 // round(codec.hop))
    assert codes.shape == (2, codec.codebooks, frames) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < codec.size
    assert torch.equal(codec.encode(audio[0]), codes[0])
    sound = codec.decode(codes)
    assert sound.shape[0] == 2 and abs(sound.shape[1] - frames * codec.hop) <= codec.hop
    assert bool(torch.isfinite(sound).all())
    assert codec.to(torch.bfloat16).encode(audio).equal(codes)


def test_fewer_codebooks(tmp_path: Path) -> None:
    dac(tmp_path)
    audio = torch.randn(800, generator=torch.Generator().manual_seed(0)) * 0.1
    codes = DacSpec(path=str(tmp_path), codebooks=2).build().encode(audio)
    assert torch.equal(codes, DacSpec(path=str(tmp_path)).build().encode(audio)[:2])
    with pytest.raises(ValueError, match="codebooks: got 4, expected at most the 3"):
        DacSpec(path=str(tmp_path), codebooks=4).build()


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder"):
        DacSpec(path=str(tmp_path / "nowhere")).build()
    dac(tmp_path)
    with pytest.raises(ValueError, match="holds a 'dac' model, expected 'mimi'"):
        MimiSpec(path=str(tmp_path)).build()
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        DacSpec(path=str(tmp_path)).build()
