"""The README and the documentation are tried out, block by block, as a reader would follow them.

What a block is stands behind its language:

    python            is run; `python no-run` is compiled and its imports are looked up
    pycon             is run as a doctest, errors included
    yaml KIND         is read as what it is: data, sources, model, entry, curriculum, train, compare, or the kind of a
                      part
    sh                each command is run or, where it would take long, parsed with its options and files
    toml              entry points are checked
    file=NAME         the block is written to this file first

Pages share a folder that holds what a reader would have: own data, and a small model in place of the quickstart's.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import zoo
from modalities.base import DataSpec
from training.compare import command
from training.compare import plan as planning
from training.compare.config import read as read_comparison
from training.curriculum import CurriculumSpec
from training.sources import SourceSpec
from zoo import registry
from zoo.backbone.blocks.base import BlockSpec
from zoo.hub.entries import EntryFile
from zoo.models.unified import ModelSpec
from zoo.moe.balance.base import BalanceSpec
from zoo.moe.experts.base import ExpertSpec
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.policies.base import PolicySpec
from zoo.moe.routers.base import RouterSpec
from zoo.spec import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)([^\n`]*)\n(.*?)^```$", flags=re.M | re.S)
BASES = (BlockSpec, BalanceSpec, ExpertSpec, FeedForwardSpec, PolicySpec, RouterSpec, ModelSpec, DataSpec)
SMALL = {"backbone.dim": 32, "backbone.cond": 32, "backbone.layers.0.repeat": 2}
UNTESTED = {"text", "mermaid", "csv", "jsonl", "json"}  # nothing to run; written where they have a file name


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the words behind it, and its text."""

    place: str
    language: str
    words: tuple[str, ...]
    file: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in their order."""
    content = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(content):
        words = match[2].split()
        file = next((w.removeprefix("file=") for w in words if w.startswith("file=")), None)
        place = f"{page.relative_to(ROOT)}:{content[: match.start()].count(chr(10)) + 1}"
        yield Block(place, match[1], tuple(w for w in words if not w.startswith("file=")), file, match[3])


def quick(block: Block) -> str:
    """The text of a block as it is tried out: training takes one step."""
    if block.words != ("curriculum",):
        return block.text
    return re.sub(r"\bwarmup: \d+", "warmup: 0", re.sub(r"\bsteps: \d+", "steps: 1", block.text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: the configurations, a small model, own data, and some broken files."""
    root = tmp_path_factory.mktemp("reader")
    (root / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    model = zoo.create("unimoe-tiny", **SMALL)
    spoken = {"audio": 0.1 * rng.standard_normal(24000).astype(np.float32), "rate": 8000, "text": "one", "speaker": "x"}
    model.modalities["speech"].fit([spoken] * 6)  # type: ignore[operator]
    zoo.save(model, root / "outputs/quickstart/model")
    own_data(root / "data", rng)
    broken_files(root / "bad")
    for block in (b for page in PAGES for b in blocks(page) if b.file):
        assert block.file is not None
        (root / block.file).parent.mkdir(parents=True, exist_ok=True)
        (root / block.file).write_text(quick(block), encoding="utf-8")
    return root


def own_data(root: Path, rng: np.random.Generator) -> None:
    """Data of the kinds the pages speak of, below the names they use."""
    from modalities.codecs.files import write_wav
    from modalities.vision.files import write_png

    for i in range(4):
        write_wav(root / f"clips/{i}.wav", 0.1 * rng.standard_normal(28000).astype(np.float32), 8000)
    for kind in ("beech", "maple", "oak"):
        for i in range(10):
            write_png(root / f"leaves/{kind}/{i}.png", rng.integers(0, 256, (40, 36, 3), dtype=np.uint8))
    (root / "poems").mkdir()
    for i in range(4):
        (root / f"poems/{i}.txt").write_text(f"The moon, verse {i}, and the sea below it.\n" * 4, encoding="utf-8")
    hours = [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{np.sin(i / 4):.3f},{i % 7}" for i in range(700)]
    (root / "load.csv").write_text("\n".join(["date,load,temperature", *hours]) + "\n", encoding="utf-8")


def broken_files(root: Path) -> None:
    """What the errors on the pages are about."""
    root.mkdir()
    (root / "here.wav").write_bytes(b"RIFF")
    (root / "broken.wav").write_bytes(b"RIFF")
    (root / "empty.png").touch()
    (root / "missing.csv").write_text("audio,text\nhere.wav,a\ngone.wav,b\n", encoding="utf-8")
    (root / "tune.json").write_text(json.dumps([[60, 0, 0, 0], [300, 0, 0, 0]]), encoding="utf-8")
    (root / "gap.csv").write_text("date,load\na,1\nb,2\nc,\nd,4\n", encoding="utf-8")


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder as the current one; the part that docs/architecture.md makes is registered."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("ZOO_DATA", str(folder / "none"))
    monkeypatch.setattr(sys, "argv", ["training"])  # Lightning warns where it finds pytest's
    monkeypatch.setitem(registry.TABLE["router"], "threshold", "threshold:ThresholdSpec")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    sys.modules.pop("threshold", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_of_a_page_works(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language in UNTESTED:
            continue
        try:
            HANDLERS[block.language](block, names)
        except (Exception, SystemExit) as error:
            said = capsys.readouterr().err[-2000:]
            raise AssertionError(f"{block.place}: {type(error).__name__}: {error}\n{said}") from error


@pytest.mark.parametrize(
    ("language", "words", "text", "message"),
    [
        ("python", (), "import zoo\nzoo.load('nowhere/at-all')", "nowhere/at-all"),
        ("python", ("no-run",), "from zoo.moe.layer import Moe", "zoo.moe.layer"),
        ("pycon", (), ">>> 1 + 1\n3\n", "Got:"),
        ("yaml", ("router",), "{type: top_p, q: 0.5}", "unknown key 'q'"),
        ("yaml", ("data",), "{type: text_files, path: gone}", "gone: no such file or folder"),
        ("sh", (), "zoo lst", "zoo lst"),
        ("sh", (), "zoo list --routr top_p", "--routr"),
        ("sh", (), "python -m training ft", "ft"),
        ("sh", (), "make quick", "quick"),
        ("sh", (), "rm -r data", "no way to check"),
        ("toml", (), '[project.entry-points."moezoo.parts"]\n"router.x" = "zoo.moe.layer:Gone"', "Gone"),
    ],
)
def test_a_block_that_does_not_work_is_noticed(
    language: str, words: tuple[str, ...], text: str, message: str, place: Path
) -> None:
    with pytest.raises((Exception, SystemExit)) as caught:
        HANDLERS[language](Block("here", language, words, None, text), {})
    assert message in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_files_and_pages_that_are_named_exist(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", prose)]
    rooms = re.findall(r"`((?:zoo|modalities|training|configs|demos|docs|tests)/[\w./*-]*)`", prose)
    missing = [str(link) for link in links if not link.exists()] + [r for r in rooms if not list(ROOT.glob(r))]
    assert not missing


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Runs a block among the names of those before it, or looks up its imports."""
    assert block.words in ((), ("no-run",)), f"unknown words {block.words}"
    code = compile(block.text, block.place, "exec")
    if block.words:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                assert all(hasattr(importlib.import_module(str(node.module)), a.name) for a in node.names), node.module
    elif block.file is None:
        exec(code, names)
    else:
        importlib.import_module(block.file.removesuffix(".py"))


def run_pycon(block: Block, names: dict[str, Any]) -> None:
    """Compares what a session prints with what the page says."""
    test = doctest.DocTestParser().get_doctest(block.text, names, block.place, None, 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
    assert tried and not failed, "".join(said)


def read_yaml(block: Block, names: dict[str, Any]) -> None:
    """Reads a description as what the page calls it."""
    (kind,), plain = block.words, yaml.safe_load(block.text)
    if kind == "data":
        assert parse(DataSpec, plain).build("train")[0]
    elif kind == "sources":
        for name, source in plain.items():
            assert parse(SourceSpec, source, name).choose(name)
    elif kind == "entry":
        parse(ModelSpec, parse(EntryFile, plain).spec).cost()
    elif kind == "curriculum":
        assert block.file, "a curriculum needs file=NAME, so that commands find it"
        run_training(["curriculum", "--config", block.file])
        assert parse(CurriculumSpec, plain).stages
    elif kind == "compare":
        assert block.file
        run_training(["compare", "--config", block.file])
    elif kind == "train":
        assert block.file, "a training configuration needs file=NAME, so that commands find it"
    else:
        base = next(b for b in BASES if b.kind == kind)
        assert parse(base, plain)


def read_toml(block: Block, names: dict[str, Any]) -> None:
    """Entry points name a part that can be imported."""
    for group, points in tomllib.loads(block.text)["project"]["entry-points"].items():
        assert group == registry.GROUP
        for name, target in points.items():
            module, _, attribute = target.partition(":")
            assert getattr(importlib.import_module(module), attribute).kind == name.partition(".")[0]


def run_shell(block: Block, names: dict[str, Any]) -> None:
    """Every command of a block, in order."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            command = next((c for c in COMMANDS if words[: len(c)] == list(c)), None)
            assert command is not None, f"no way to check {line!r}"
            COMMANDS[command](words[len(command) :])


def run_zoo(words: list[str]) -> None:
    """Runs the command `zoo`."""
    from zoo import cli

    assert cli.main(words) == 0, f"zoo {' '.join(words)}"


def run_training(words: list[str]) -> None:
    """Runs the curricula of the pages, the comparison of tiny systems, and what is laid over by the configuration of
    four steps; otherwise everything is resolved and nothing trained."""
    from training import cli, curriculum, lightning_cli

    if words[0] in ("fit", "validate", "test", "predict"):
        if "configs/trainer/debug.yaml" in words:
            lightning_cli.run(words)
            return
        with pytest.raises(SystemExit) as ended:
            lightning_cli.run([*words, *(["--print_config"] if "--print_config" not in words else [])])
        assert ended.value.code == 0
        return

    assert words[0] in cli.COMMANDS and importlib.util.find_spec(cli.COMMANDS[words[0]])
    if words[0] == "compare":
        settings = command.parser().parse_args(words[1:])
        if "configs/compare/debug.yaml" in words:
            assert command.main([*words[1:], "--quiet", "--workers", "1"]) == 0
        assert planning.make(read_comparison(settings.config)).cells(settings.only)
    if words[0] == "curriculum":
        shipped = any("configs/" in word for word in words)
        assert curriculum.main([*words[1:], *(["--dry-run"] if shipped else [])]) == 0


def run_make(words: list[str]) -> None:
    """The target exists."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert words[0] in targets and all(w.startswith("ARGS=") for w in words[1:]), words


def look_up(words: list[str]) -> None:
    """The imports of `python -c CODE`."""
    run_python(Block("python -c", "python", ("no-run",), None, words[0]), {})


def nothing(words: list[str]) -> None:
    """For commands that are not ours."""


COMMANDS: dict[tuple[str, ...], Callable[[list[str]], None]] = {
    ("zoo",): run_zoo,
    ("python", "-m", "training"): run_training,
    ("python", "-c"): look_up,
    ("make",): run_make,
    ("export",): nothing,
    ("tensorboard",): nothing,
}
HANDLERS: dict[str, Callable[[Block, dict[str, Any]], None]] = {
    "python": run_python,
    "pycon": run_pycon,
    "yaml": read_yaml,
    "toml": read_toml,
    "sh": run_shell,
}
