"""Importing the zoo, or the description of a modality, loads none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = [
    "transformers",
    "diffusers",
    "timm",
    "torchaudio",
    "torchvision",
    "lightning",
    "gradio",
    "matplotlib",
    "sklearn",
    "scipy",
]
MODALITIES = ["text", "vision", "speech", "music", "diffusion", "time_series"]


def loaded_by(statement: str) -> list[str]:
    """The heavy libraries that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_a_heavy_library_is_noticed() -> None:
    assert loaded_by("import scipy") == ["scipy"]


@pytest.mark.parametrize("statement", ["import zoo", "import zoo; zoo.list_entries()"])
def test_importing_zoo_is_light(statement: str) -> None:
    assert loaded_by(statement) == []


def test_the_specs_of_all_modalities_are_light() -> None:
    modules = [f"modalities.{name}.spec" for name in MODALITIES]
    assert loaded_by(f"import {', '.join(modules)}") == []
