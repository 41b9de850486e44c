"""Loading a public checkpoint brings none of the libraries it can do without."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def test_no_library_of_checkpoints_is_imported(write: Any, tmp_path: Any) -> None:
    code = f"""
import sys, torch, zoo
model = zoo.load({str(write().folder)!r})
model(torch.arange(6)[None])
zoo.export(model, {str(tmp_path / "m")!r})
heavy = ("transformers", "tokenizers", "huggingface_hub", "jinja2", "lightning")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stdout + done.stderr
