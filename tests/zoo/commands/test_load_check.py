"""`zoo load-check`: what it says of good folders, and how it names what is wrong with bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.hub import check


def wrong(run: Any, folder: Path, *words: str) -> str:
    """The report of a folder that is not fit for use."""
    status, out, err = run("load-check", folder, *words)
    assert status == 1 and not err and out.splitlines()[-1] == "NOT fit for use"
    return str(out)


def test_a_public_checkpoint(run: Any, make: Any) -> None:
    folder = make(use_cache=True)
    status, out, err = run("load-check", folder)
    assert status == 0 and not err and out.splitlines()[-1] == "ok"
    cost = zoo.load(folder).spec.cost()
    assert "mixtral (MixtralForCausalLM), separate experts, float32" in out
    assert f"{cost.total / 1e3:.3g} k total, {cost.active / 1e3:.3g} k active per token" in out
    assert "tensors:           41 of 41 read; they set" in out and "without influence: use_cache" in out
    assert re.search(r"tokenizer: +none\n.*chat template: +none\n.*generation: +none\n.*numbers: +all finite", out)


def test_json_says_the_same(run: Any, make: Any) -> None:
    folder = make(shard=8000)
    status, out, _ = run("load-check", folder, "--json")
    found = json.loads(out)
    assert status == 0 and found["ok"] and found["problems"] == []
    assert found["family"] == "mixtral" and found["layout"] == "separate" and found["dtype"] == {"float32": 41}
    assert sorted(found["files"]) == sorted(p.name for p in folder.glob("*.safetensors")) and len(found["files"]) > 2
    assert found["theirs"] == [41, 41] and found["ours"][0] == found["ours"][1]
    assert found["parity"] is None and found["nonfinite"] == {}


def test_our_own_format(run: Any, saved: Path) -> None:
    status, out, _ = run("load-check", saved, "--parity")
    assert status == 0 and "our own format (moezoo), float32" in out
    assert "no parity: transformers does not read our own format" in out


@pytest.mark.parametrize("dense", [False, True])
def test_parity(run: Any, make: Any, dense: bool) -> None:
    status, out, err = run("load-check", make(dense=dense), "--parity", "--json")
    parity = json.loads(out)["parity"]
    assert status == 0 and not err
    assert parity["difference"] < 1e-5 and parity["tokens"] == 48 and parity["other"] == 0
    assert parity["choices"] == (0 if dense else 2 * 48) and parity["peer"].startswith("transformers ")


def test_a_difference_is_a_problem() -> None:
    from zoo.hub.parity import Parity

    assert Parity("t", 4, 1e-6, 8, 0).problems() == []
    assert "differ by 1.0e-02 of the largest, expected at most 1e-04" in Parity("t", 4, 1e-2).problems()[0]
    assert len(Parity("t", 4, float("nan"), 8, 3).problems()) == 2
    assert "cannot be seen" in Parity("t", 4, 0.0).line()


def test_without_transformers_parity_is_left_out(run: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    status, out, _ = run("load-check", make(), "--parity")
    assert status == 0 and "no parity: transformers is not installed" in out


def test_numbers_that_are_not_finite(run: Any, make: Any, spoil: Any) -> None:
    folder = make()

    def break_two(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][:2, 0] = torch.inf
        tensors["model.norm.weight"][3] = torch.nan

    spoil(folder, break_two)
    out = wrong(run, folder)
    assert "numbers:           not finite in 2 tensors" in out
    assert "lm_head.weight: 2 of 4144" in out and "model.norm.weight: 1 of 16" in out
    assert json.loads(run("load-check", folder, "--json")[1])["nonfinite"] == {
        "lm_head.weight": 2,
        "model.norm.weight": 1,
    }


def test_a_large_folder_has_a_progress_bar(run: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BAR", 1)
    folder = make()
    assert "B/s" in run("load-check", folder)[2]
    assert run("load-check", folder, "--json")[2] == ""


def test_tensors_that_do_not_fit_are_all_listed(run: Any, make: Any, spoil: Any) -> None:
    folder = make()

    def mix_up(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.more.weight"] = torch.zeros(2, 3)
        tensors["lm_head.weight"] = torch.zeros(3, 16)

    spoil(folder, mix_up)
    out = wrong(run, folder)
    assert "mixtral (MixtralForCausalLM), float32" in out, "what is known stands there all the same"
    assert "3 tensors do not fit the model of config.json" in out
    for line in ("missing model.norm.weight [16]", "surplus model.more.weight [2, 3]", "misshapen lm_head.weight"):
        assert line in out


def test_long_lists_are_cut_but_not_in_json(run: Any, make: Any, spoil: Any) -> None:
    folder = make()
    spoil(folder, lambda tensors: tensors.update({f"more.{i}": torch.zeros(1) for i in range(30)}))
    out = wrong(run, folder)
    assert out.count("surplus more.") == 20 and "... and 10 more (--json lists all)" in out
    assert json.loads(run("load-check", folder, "--json")[1])["problems"][0].count("surplus more.") == 30


def test_a_head_that_should_repeat_the_embedding(run: Any, make: Any) -> None:
    out = wrong(run, make(tie_word_embeddings=True))
    assert "lm_head.weight differs from model.embed_tokens.weight, which it repeats by config.json" in out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mixtrall"},
            r"'mixtrall' is not supported \(did you mean 'mixtral'\?\); supported are .*olmoe",
        ),
        ({"attention_sink_size": 4}, "refused rather than ignored: attention_sink_size = 4"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: names code to run"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', supported is 'silu'"),
    ],
)
def test_fields_that_are_refused(run: Any, make: Any, fields: dict[str, Any], message: str) -> None:
    assert re.search(message, wrong(run, make(**fields)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model-00009-of-00003.safetensors", "no such weight file"),
        ("../secret.safetensors", "names the shard '../secret.safetensors'; expected a .safetensors file in the same"),
        ("/etc/secret.safetensors", "expected a .safetensors file in the same folder"),
    ],
)
def test_an_index_that_lies(run: Any, make: Any, file: str, message: str) -> None:
    folder = make(shard=8000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["lm_head.weight"] = file
    path.write_text(json.dumps(index), encoding="utf-8")
    assert message in wrong(run, folder)


def test_a_truncated_shard_and_weights_that_are_pickled(run: Any, make: Any) -> None:
    folder = make()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "model.safetensors: truncated" in wrong(run, folder)
    path.rename(folder / "pytorch_model.bin")
    out = wrong(run, folder)
    assert "pytorch_model.bin only, a pickle" in out and "save_pretrained" in out


def test_files_beside_the_weights_have_to_be_readable(run: Any, make: Any) -> None:
    folder = make()
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    out = wrong(run, folder)
    assert "tokenizer:         not readable" in out and "tokenizer.json: not a tokenizer" in out
    assert "chat template:     default" in out


def test_a_folder_that_is_not_there_is_an_error(refused: Any, tmp_path: Path) -> None:
    assert "no such folder" in refused("load-check", tmp_path / "gone")
