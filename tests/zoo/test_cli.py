"""The command, in this process: what it prints, where it refuses, what it never overwrites."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import zoo
from zoo import cli, registry
from zoo.models.unified import Unified


def ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command line."""
    status = cli.main([str(w) for w in words])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of an error."""
    status, _, err = ran(capsys, *words)
    assert status == 2 and err.startswith("zoo: error: ") and "Traceback" not in err
    return err.removeprefix("zoo: error: ").strip()


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "list")[1].split() == zoo.list_entries()
    assert "unimoe-tiny" in ran(capsys, "list", "uni*", "--modality", "speech", "--router", "top_p")[1]
    assert ran(capsys, "list", "--pretrained", "no*") == (0, "", "")
    assert ran(capsys, "show", "unimoe-tiny")[1] == str(zoo.card("unimoe-tiny")) + "\n"


def test_every_registered_part_documents_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in registry.kinds():
        assert ran(capsys, "show", "--schema", kind)[0] == 0
        for name in registry.names(kind):
            status, out, _ = ran(capsys, "show", "--schema", f"{kind}.{name}")
            assert status == 0 and f"type: {name}" in out


def test_a_schema_names_types_defaults_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    out = ran(capsys, "show", "--schema", "top_p")[1]
    assert "p: 0.7  # float\n      probability mass, 0 < p <= 1; 1 keeps all" in out
    assert "max_k: null  # int or null" in out
    assert "bias: false  # bool\n      holds a selection bias" in out, "keys of a base class are documented too"
    assert "routed: (required)  # int" in ran(capsys, "show", "--schema", "ffn.moe")[1]
    assert "did you mean 'top_p'" in refused(capsys, "show", "--schema", "topp")
    assert "did you mean 'top_p'" in refused(capsys, "show", "--schema", "router.topp")


def test_generate(capsys: pytest.CaptureFixture[str], saved: Path, model: Unified) -> None:
    words = ["generate", saved, "--prompt", "ab", "--max-new-tokens", "5", "--temperature", "0"]
    expected = f"ab{model.generate('ab', max_new_tokens=5, temperature=0.0)}\n"
    assert ran(capsys, *words)[1] == expected
    assert ran(capsys, *words, "--stream")[1] == expected


def test_generate_with_all_settings(
    capsys: pytest.CaptureFixture[str], saved: Path, model: Unified, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01}
    keys |= {"repetition_penalty": 1.2, "stop": ["q", "zz"]}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in keys.items() if name != "stop"]
    words += ["--stop", "q", "--stop", "zz", "--seed", "3", "--dtype", "float32"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    expected = f"two\nlines{model.generate(f'two{chr(10)}lines', seed=3, **keys)}\n"
    assert ran(capsys, "generate", saved, "--prompt", "-", *words)[1] == expected


def test_generate_as_a_chat(capsys: pytest.CaptureFixture[str], saved: Path, model: Unified, tmp_path: Path) -> None:
    folder = tmp_path / "chatting"
    shutil.copytree(saved, folder)
    words = ["generate", folder, "--prompt", "hi", "--chat", "--max-new-tokens", "6", "--temperature", "0"]
    assert "no chat template; expected chat_template.jinja" in refused(capsys, *words)
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    expected = model.generate("s:be brief;u:hi;", special=False, max_new_tokens=6, temperature=0)
    assert ran(capsys, *words, "--system", "be brief", "--stream")[1] == f"{expected}\n"
    assert refused(capsys, "generate", saved, "--system", "be brief") == "--system: goes with --chat"


def test_forecast(capsys: pytest.CaptureFixture[str], saved: Path, model: Unified, tmp_path: Path) -> None:
    series = np.sin(np.arange(40.0))
    table = tmp_path / "data.csv"
    table.write_text("day,a,b\n" + "".join(f"d{i},{v},{i}\n" for i, v in enumerate(series)), encoding="utf-8")
    expected = model.forecast([float(v) for v in series], 5).tolist()
    words = ["forecast", saved, "--csv", table, "--horizon", 5, "--column", "a"]
    assert [float(v) for v in ran(capsys, *words)[1].split()] == pytest.approx(expected, rel=1e-4)
    out = tmp_path / "forecast.csv"
    assert ran(capsys, *words, "--out", out)[0] == 0
    with out.open(newline="", encoding="utf-8") as handle:
        assert [float(r["forecast"]) for r in csv.DictReader(handle)] == pytest.approx(expected, rel=1e-5)
    before = out.read_bytes()
    assert "forecast.csv: already exists" in refused(capsys, *words, "--out", out)
    assert out.read_bytes() == before
    assert ran(capsys, *words, "--out", out, "--overwrite")[0] == 0
    assert "did you mean 'a'" in refused(capsys, *words[:-1], "aa")
    assert "name one with --column; columns of numbers are a, b" in refused(capsys, *words[:-2])


def test_sound_and_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = {"backbone.dim": 32, "backbone.cond": 32, "backbone.layers.0.repeat": 1}
    model = zoo.create("unimoe-tiny", **small)
    speech: Any = model.modalities["speech"]
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1
    speech.fit([{"audio": noise, "rate": 8000, "text": "one", "speaker": "ann"} for _ in range(40)])
    folder = zoo.save(model, tmp_path / "m")
    for words in (
        ["speak", folder, "--text", "one", "--speaker", "ann", "--out", tmp_path / "one.wav"],
        ["compose", folder, "--seconds", "1", "--out", tmp_path / "piece.wav"],
        ["draw", folder, "--label", "3", "7", "--steps", "2", "--out", tmp_path / "digits.png"],
    ):
        assert ran(capsys, *words) == (0, f"{words[-1]}\n", "")
        assert "already exists" in refused(capsys, *words)
    assert ran(capsys, "transcribe", folder, tmp_path / "one.wav")[0] == 0
    assert "this model draws images for labels" in refused(
        capsys, "draw", folder, "--prompt", "a cat", "--out", tmp_path / "cat.png"
    )
    soundfile.write(long := tmp_path / "long.wav", np.tile(noise, 5), 8000)
    assert "long.wav: lasts 5.00 s, expected at most 4 s" in refused(capsys, "transcribe", folder, long)
    unfitted = zoo.save(zoo.create("unimoe-tiny", **small), tmp_path / "unfitted")
    wanted = tmp_path / "two.wav"
    assert "no codebooks yet" in refused(capsys, "speak", unfitted, "--text", "two", "--out", wanted)
    assert not wanted.exists()
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    assert "broken.wav: not a readable audio file" in refused(capsys, "transcribe", folder, tmp_path / "broken.wav")


def test_laws(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "laws", "--list")
    assert status == 0 and len(out.splitlines()) > 5
    assert "did you mean 'top_k'" in refused(capsys, "laws", "--part", "topk")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "no verb 'lst' (did you mean 'list'?); there are list, show"),
        ([], "the following arguments are required: VERB"),
        (["generate"], "the following arguments are required: REF; see `zoo generate --help`"),
        (["generate", "x", "--promt", "y"], "no option '--promt' of generate (did you mean '--prompt'?)"),
        (["generate", "x", "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["show", "unimoe-tinny"], "no entry 'unimoe-tinny' (did you mean 'unimoe-tiny'?)"),
        (["generate", "unimoe-tiny"], "entry 'unimoe-tiny' has no weights"),
        (["generate", "org/name"], "org/name: no such folder; for the Hugging Face hub write 'hf:org/name'"),
        (["convert", "nowhere.ckpt", "folder"], "nowhere.ckpt: no such checkpoint"),
    ],
)
def test_errors_name_the_thing_and_the_fix(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    error = refused(capsys, *words)
    assert error.startswith(message) and len(error.splitlines()) == 1


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom zoo import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert cli.main(['list']) == 0\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "unimoe-tiny" in done.stdout.splitlines()
