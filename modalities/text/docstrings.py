"""A corpus that every Python has: the docstrings of its standard library."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

MODULES = (
    "abc argparse ast base64 bisect calendar cmd code codecs collections configparser contextlib copy csv ctypes "
    "dataclasses datetime decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib functools "
    "getopt getpass gettext glob gzip hashlib heapq hmac html imaplib inspect io ipaddress json keyword linecache "
    "locale logging lzma mailbox mimetypes multiprocessing netrc numbers operator optparse os pathlib pdb pickle "
    "pickletools pkgutil platform plistlib poplib pprint profile queue random re reprlib sched secrets selectors "
    "shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl statistics string stringprep struct "
    "subprocess symtable tarfile tempfile textwrap threading timeit token tokenize trace traceback turtle types "
    "typing unittest uuid venv warnings wave weakref webbrowser zipapp zipfile"
)


@functools.cache
def standard_library() -> str:
    """All docstrings of MODULES (packages with their submodules), in a fixed order, separated by blank lines.

    The text depends on the Python version alone. Nothing is imported: the sources are parsed.
    Raises FileNotFoundError where Python was installed without its sources.
    """
    found: dict[str, None] = {}
    for name in MODULES.split():
        for path in _sources(name):
            found.update(dict.fromkeys(_docstrings(path)))
    if not found:
        raise FileNotFoundError("the standard library has no source files here; use text_files with texts of your own")
    return "\n\n".join(found)


def _sources(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    path = Path(spec.origin)
    return sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]


def _docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return [t for t in texts if t]
