"""The built wheel works in a second environment that cannot see the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {"PYTHONPATH", "PYTHONHOME", "ZOO_DATA", "VIRTUAL_ENV"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command away from the checkout, without what could lead back to it; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("moezoo-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and borrows the libraries of this one."""
    home = tmp_path_factory.mktemp("second")
    run(sys.executable, "-m", "venv", "--without-pip", home / "env", cwd=home)
    binaries = home / "env" / "bin"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        binaries / "python",
    ]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=home)
    # A .pth file adds the folder but reads no .pth file in it: the editable install of the checkout stays unseen.
    site = run(binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return binaries


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_every_module_and_all_data(wheel: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "zoo", "modalities", "training", "demos", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {f"zoo/{name}" if name.startswith("configs/") else name for name in listing.stdout.split()}
    assert wanted and wanted <= names_in(wheel)
    assert {"zoo/py.typed", "modalities/py.typed", "training/py.typed"} <= names_in(wheel)


def test_it_holds_neither_tests_nor_benchmarks(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"zoo", "modalities", "training", "demos"}


def test_the_checkout_is_out_of_sight(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "python", "-c", "import sys, zoo; print(zoo.__file__); print(*sys.path)", cwd=tmp_path)
    file, path = printed.splitlines()
    assert Path(file).is_relative_to(environment.parent)
    assert str(ROOT) not in path.split()


def test_configs_are_data_of_zoo(environment: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files\n"
        "print(*[entry.name for entry in files('zoo').joinpath('configs', 'zoo').iterdir()])"
    )
    assert "unimoe-tiny.yaml" in run(environment / "python", "-c", code, cwd=tmp_path).split()


def test_the_command_lists_entries(environment: Path, tmp_path: Path) -> None:
    assert "unimoe-tiny" in run(environment / "zoo", "list", cwd=tmp_path)


def test_packaged_configurations_train_without_the_checkout(environment: Path, tmp_path: Path) -> None:
    command = (environment / "python", "-m", "training")
    dry = run(*command, "curriculum", "--config", "configs/stages/quickstart.yaml", "--dry-run", cwd=tmp_path)
    assert "joint: " in dry
    shown = run(*command, "fit", "--config", "configs/train/unimoe-tiny.yaml", "--print_config", cwd=tmp_path)
    assert "spec: unimoe-tiny" in shown
    asked = "import training.quickstart as q; print(q.read(q.config_file(q.CONFIG)).stages[-1].name)"
    assert run(environment / "python", "-c", asked, cwd=tmp_path).strip() == "joint"


def test_an_entry_is_created(environment: Path, tmp_path: Path) -> None:
    code = "import zoo; print(sum(p.numel() for p in zoo.create('unimoe-tiny').parameters()))"
    assert int(run(environment / "python", "-c", code, cwd=tmp_path)) > 0
