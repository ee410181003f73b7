"""Documentation: settings and commands that it names exist, and its links resolve."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import typer.main

from tests.conftest import ROOT
from trainer.__main__ import app
from trainer.config import TrainConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


def commands() -> set[str]:
    """Names of all commands, such as `train` and `lora bake`."""
    names = set()
    groups = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for name, command in groups.items():
        names.add(name)
        names |= {f"{name} {subcommand}" for subcommand in getattr(command, "commands", {})}
    return names


def kohya_page() -> str:
    return (ROOT / "docs" / "kohya.md").read_text(encoding="utf-8")


def test_the_equivalent_of_a_kohya_option_is_a_setting_or_a_command():
    rows = re.findall(r"^\|(.+?)\|(.+?)\|.*\|$", kohya_page(), re.MULTILINE)
    named = [name for _, equivalent in rows for name in re.findall(r"`([^`]+)`", equivalent)]
    assert len(rows) > 100
    assert len(named) > 80
    assert [name for name in named if name not in SETTINGS | commands()] == []


def test_every_kohya_option_without_an_equivalent_has_a_reason():
    assert re.findall(r"^\|[^|]+\| – \|\s*\|$", kohya_page(), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_of_a_page_resolve(page: Path):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_every_command_in_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = re.findall(r"^python -m trainer (\w+(?: (?:check|inspect))?)", text, re.MULTILINE)
    used += re.findall(r"^\| `(lora \w+)", text, re.MULTILINE)
    assert len(used) > 10
    assert set(used) <= commands()
