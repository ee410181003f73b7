"""The docs are true: names in them exist, links resolve."""

from __future__ import annotations

import dataclasses
import re

import pytest
import typer.main

from tests.conftest import ROOT
from trainer.__main__ import app
from trainer.config import TrainConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


def commands() -> set[str]:
    """`train`, `lora bake`, ..."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        found.add(name)
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return found


def test_where_a_kohya_option_is_here_is_a_setting_or_a_command():
    rows = re.findall(
        r"^\|(.+?)\|(.+?)\|.*\|$", (ROOT / "docs" / "kohya.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = [name for _, here in rows for name in re.findall(r"`([^`]+)`", here)]
    assert len(rows) > 100 and len(named) > 80
    assert [name for name in named if name not in SETTINGS | commands()] == []


def test_every_option_without_a_place_has_a_reason():
    text = (ROOT / "docs" / "kohya.md").read_text(encoding="utf-8")
    assert re.findall(r"^\|[^|]+\| – \|\s*\|$", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = re.findall(r"^python -m trainer (\w+(?: (?:check|inspect))?)", text, re.MULTILINE)
    used += re.findall(r"^\| `(lora \w+)", text, re.MULTILINE)
    assert len(used) > 10 and set(used) <= commands()
