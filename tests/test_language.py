"""The project's language: plain English in docstrings, messages, the page and the documentation.

Words that describe people rather than programs ("told", "asked") and riddles ("by name", "as must be") are rejected, as
are docstrings that begin with a relative word instead of a noun or a verb.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("trainer", "ui", "tools", "benchmarks", "tests")
WORDS = re.compile(
    r"\b(said|told|tells?|asked|wanted|answers?|answered|owed|suffices?|suffice|heard|drawn anew|made anew|(is|are|was|were) (\w+ )?by name"
    r"|as must be|of then|looked at|looks at|a fault|the line of (jobs|trainings)|learnt|trained from nothing)\b",
    re.IGNORECASE,
)
# Names inside strings: element ids, file names, and the columns of the queue's database, which existing files have.
CODE = re.compile(r"""="[^"]*"|#[\w-]+|\w+\.json|"said"|\bsaid( =|  +\w|,| INTEGER| REAL)""")
RELATIVES = re.compile(r"(What|Which|How|Whether|Where|Who|Whose|Of|That)\b")
# Words of a formula, an option or another project's text, not of ours.
EXEMPT = ("benchmarks/NOTES.md",)


def python_files() -> list[Path]:
    files = [ROOT / "app.py"]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def pages() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
    found += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "tests").rglob("*.md"))
    return [path for path in found if path.relative_to(ROOT).as_posix() not in EXEMPT]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield getattr(node, "lineno", 1), text


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string of several words: messages, help texts, log lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") >= 2:
            yield node.lineno, CODE.sub("", node.value)


def comments(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.search(r"(?:^|\s)# (.+)$", line):
            yield number, match[1]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_files_are_written_in_plain_english(path: Path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    where = path.relative_to(ROOT).as_posix()
    problems = [
        f"{where}:{line}: docstring begins with {match[0]!r}"
        for line, docstring in docstrings(tree)
        if (match := RELATIVES.match(docstring))
    ]
    if path != Path(__file__).resolve():
        problems += [
            f"{where}:{line}: {match[0]!r} in {found[:80]!r}"
            for line, found in [*sentences(tree), *comments(text)]
            if (match := WORDS.search(found))
        ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_written_in_plain_english(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    problems = [
        f"{number}: {match[0]!r}" for number, line in enumerate(lines, 1) if (match := WORDS.search(line))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ui" / "text" / "en").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_english_page_is_written_in_plain_english(path: Path):
    texts = tomllib.loads(path.read_text(encoding="utf-8"))
    problems = [f"{key}: {text}" for key, text in texts.items() if WORDS.search(text)]
    assert not problems, "\n".join(problems)
