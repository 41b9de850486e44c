"""A checkpoint that names code to run: refused, or read by our own table without that code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.spec import SpecError

BOOM = "raise SystemExit('remote code was run')\n"


@pytest.fixture
def official(make: Any) -> Path:
    """A folder as publishers write it, with code beside the weights."""
    folder: Path = make(auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"})
    for name in ("configuration_x.py", "modeling_x.py"):
        (folder / name).write_text(BOOM)
    return folder


def test_it_is_refused_and_the_message_names_the_way_round(official: Path, refused: Any, run: Any) -> None:
    for words in (("generate", official, "--prompt", "a"), ("convert", official, official.parent / "x", "--to", "hf")):
        text = refused(*words)
        assert "auto_map: names code to run" in text and "never run" in text
        assert "ignore_remote_code=True (--ignore-remote-code) reads it without that code, as the mixtral of" in text
    status, out, _ = run("load-check", official)
    assert status == 1 and "auto_map: names code to run" in out
    for opened in (zoo.load, zoo.processor):
        with pytest.raises(SpecError, match="auto_map"):
            opened(official)


def test_it_is_read_without_that_code_where_asked(official: Path, run: Any, tmp_path: Path) -> None:
    model = zoo.load(official, ignore_remote_code=True)
    assert zoo.processor(official, ignore_remote_code=True).types == {"text": "text"}
    content = json.loads((official / "config.json").read_text())
    plain = tmp_path / "plain"
    assert run("convert", official, plain, "--to", "hf", "--ignore-remote-code")[0] == 0
    written = json.loads((plain / "config.json").read_text())
    assert "auto_map" in content and "auto_map" not in written and not list(plain.glob("*.py"))
    again = zoo.load(plain)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    status, out, err = run("load-check", official, "--parity", "--ignore-remote-code", "--json")
    assert status == 0, out + err
    assert json.loads(out)["parity"]["difference"] < 1e-5, "transformers runs its own class, not the folder's"
    text = tmp_path / "text"
    text.write_text("to be or not to be")
    for words in (("trace", official, "--text", text), ("generate", official, "--max-new-tokens", "2")):
        status, _, err = run(*words, "--ignore-remote-code")
        assert status == 2 and "no tokenizer files" in err, "read, but this folder has no tokenizer"
