"""Rules of the house that no linter knows: who imports whom, what never stands in a file, what is never called."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lower may not import higher. Parts of one rank may import each other, except the rooms named below.
PACKAGES = {"modalities": 0, "zoo": 1, "training": 2, "demos": 3}
ROOMS = {"registry": 0, "spec": 1, "moe": 2, "backbone": 3, "models": 4, "hub": 5}
TOP_ROOM = 6  # laws, surgery, compress, inference, runtime, scaling, the verbs and the command
PARTS = {"moe", "backbone"}  # named by the registry, so they never import it

REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "registry.npm" + "js",
    "conda.ana" + "conda.org",
    "index" + "-url",
]
MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:home|root|work|Users|mnt)/\w")


def sources(*folders: str) -> list[Path]:
    """Python files of the checkout under these folders."""
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """zoo/moe/__init__.py -> zoo.moe."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or package of the checkout."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions and for type checking included."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else base


def room(name: str) -> tuple[str, int]:
    """The room of a zoo module and its rank: zoo.moe.layer -> ("moe", 2); the package itself is at the top."""
    parts = name.split(".")
    head = parts[1] if len(parts) > 1 else ""
    return head, ROOMS.get(head, TOP_ROOM)


def wrong_direction(importer: str, target: str) -> str | None:
    """Why `importer` may not import `target`, or None where it may."""
    here, there = importer.split(".")[0], target.split(".")[0]
    if there in {"tests", "benchmarks"}:
        return f"{importer} imports {target}: packages never import tests or benchmarks"
    if there not in PACKAGES:
        return None
    if PACKAGES[there] > PACKAGES[here]:
        return f"{importer} imports {target}: the direction is demos -> training -> zoo -> modalities"
    if here == there == "zoo":
        (room_here, rank_here), (room_there, rank_there) = room(importer), room(target)
        if rank_there > rank_here:
            return f"{importer} imports {target}: inside zoo it is {' <- '.join(ROOMS)} <- the rest"
        if room_there == "registry" and room_here in PARTS:
            return f"{importer} imports {target}: parts are found by the registry and never import it"
    return None


@pytest.mark.parametrize(
    ("importer", "target", "refused"),
    [
        ("modalities.text.module", "zoo.spec", True),
        ("zoo.moe.layer", "modalities.base", False),
        ("zoo.moe.layer", "zoo.backbone.trunk", True),
        ("zoo.moe.layer", "zoo.registry", True),
        ("zoo.moe.layer", "zoo", True),
        ("zoo.hub.load", "zoo.models.unified", False),
        ("zoo.hub.load", "zoo.laws", True),
        ("zoo.laws.layer", "zoo.surgery.split", False),
        ("zoo.cli", "training.cli", True),
        ("training.module", "tests.helpers", True),
        ("demos.app", "zoo", False),
        ("zoo.spec", "torch.nn", False),
    ],
)
def test_the_rule_itself(importer: str, target: str, refused: bool) -> None:
    assert (wrong_direction(importer, target) is not None) == refused


def test_imports_are_resolved_as_python_does() -> None:
    source = "import zoo.spec\nfrom . import base\nfrom .base import Tokens\nfrom modalities import base\n"
    found = [name for _, name in imported(ROOT / "modalities" / "manifest.py", source)]
    assert found == ["zoo.spec", "modalities.base", "modalities.base", "modalities.base"]


def test_imports_follow_the_direction() -> None:
    wrong = []
    for path in sources(*PACKAGES):
        for line, name in imported(path, path.read_text(encoding="utf-8")):
            reason = wrong_direction(module_name(path), name)
            if reason:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {reason}")
    assert not wrong, "\n".join(wrong)


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword of a call, None where it is absent or not a constant."""
    for word in call.keywords:
        if word.arg == name and isinstance(word.value, ast.Constant):
            return word.value.value
    return None


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) wherever a file could run code that came with data."""
    forbidden = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"imports {name}") for name in names if name.split(".")[0] in forbidden)
        if not isinstance(node, ast.Call):
            continue
        if (
            ast.unparse(node.func) in {"torch.load", "torch.serialization.load"}
            and keyword(node, "weights_only") is not True
        ):
            yield node.lineno, "torch.load without weights_only=True"
        for flag in ("trust_remote_code", "allow_pickle"):
            if keyword(node, flag) is True:
                yield node.lineno, f"{flag}=True"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", 1),
        ("from joblib import load", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", 1),
        ("AutoModel.from_pretrained(name, trust_remote_code=False)", 0),
        ("numpy.load(path, allow_pickle=True)", 1),
    ],
)
def test_unsafe_calls_are_seen(source: str, found: int) -> None:
    assert len(list(unsafe(ast.parse(source)))) == found


def test_nothing_read_from_disk_can_run_code() -> None:
    wrong = []
    for path in sources(*PACKAGES, "benchmarks"):
        for line, what in unsafe(ast.parse(path.read_text(encoding="utf-8"))):
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {what}")
    assert not wrong, "\n".join(wrong)


def tracked_texts() -> Iterator[tuple[str, str]]:
    """(name, text) of every tracked text file; skips the test outside a git checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            yield name, data.decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('open("' + "/home" + '/ann/data.csv")', True),
        ("cd " + "/root" + "/checkout", True),
        ("https://example.com" + "/home" + "/page", False),
        ("data" + "/work" + "/x", False),
        ("/usr/bin/env bash", False),
    ],
)
def test_machine_paths_are_seen(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == found


def test_no_machine_paths_and_no_package_registries_in_tracked_files() -> None:
    wrong = []
    for name, text in tracked_texts():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or any(address in line for address in REGISTRIES):
                wrong.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not wrong, "\n".join(wrong)


def test_constraints_are_exact_and_without_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", line)]
    assert pins and not wrong, wrong


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name == project["name"]:
            continue
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} but constraints.txt pins {pinned}"


def test_the_version_stands_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.M)
    assert not released or released[0] == version
