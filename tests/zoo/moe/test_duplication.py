"""No two files under zoo/moe share more than a third of their lines: what they have in common belongs to a third one.

Counted are lines of code, without indentation: not blank lines, comments, docstrings, imports and lines of punctuation
alone, which say nothing about what a file does. Two files share a line as often as both have it, wherever it stands,
and the share is taken of the shorter one. A file of fewer than 24 lines counts as 24: a part that says in ten lines
what is its own still needs the decorators and signatures of its socket, of which eight are thereby free.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "zoo" / "moe"
SHORT = 24
MOST = 1 / 3


def passed_over(source: str) -> set[int]:
    """The numbers of the lines of docstrings and imports."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(range(node.lineno, (node.end_lineno or 0) + 1))
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            found.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def lines(source: str) -> Counter[str]:
    """The lines of code of a file and how often each stands in it."""
    skipped = passed_over(source)
    numbered = enumerate((line.strip() for line in source.splitlines()), 1)
    return Counter(
        line for i, line in numbered if i not in skipped and any(c.isalnum() for c in line) and not line.startswith("#")
    )


def too_alike(files: dict[str, Counter[str]]) -> Iterator[str]:
    """Every pair that shares too much, with the lines."""
    for (a, left), (b, right) in combinations(sorted(files.items()), 2):
        common, shorter = left & right, min(left.total(), right.total())
        if common.total() > MOST * max(shorter, SHORT):
            listed = "\n".join(f"    {line}" for line in common.elements())
            yield f"{a} and {b} share {common.total()} of {shorter} lines:\n{listed}"


def test_no_two_files_share_more_than_a_third_of_their_lines() -> None:
    files = {str(p.relative_to(FOLDER)): lines(p.read_text(encoding="utf-8")) for p in FOLDER.rglob("*.py")}
    assert len(files) > 50
    found = list(too_alike(files))
    assert not found, "\n".join(found)


def test_lines_that_say_nothing_are_not_counted() -> None:
    said = "x = [\n    1,  # one\n]\ndef f():\n    x\n"
    silent = '"""A\nb."""\nimport a\nfrom b import (\n    c,\n)\n\n'
    assert lines(silent + said.replace("():\n", '():\n    """D."""\n    # no\n')) == lines(said)
    assert lines(said) == Counter(["x = [", "1,  # one", "def f():", "x"])


def test_a_file_with_a_copied_third_is_named() -> None:
    first = [f"part_{i} = {i}" for i in range(24)]
    other = [f"other_{i} = {i}" for i in range(40)]

    def found(*second: str) -> list[str]:
        return list(too_alike({"a.py": lines("\n".join(first)), "b.py": lines("\n".join(second))}))

    assert not found(*first[:8], *other) and not found(*first[:8])
    (message,) = found(*first[:9], *other)
    assert message.startswith("a.py and b.py share 9 of 24 lines:") and "    part_3 = 3" in message
    assert found(*first[:9])
