"""The documentation is true: commands run, settings exist, links resolve."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main

from tests.conftest import INK, MODELS, ROOT, trainer
from trainer.__main__ import app
from trainer.config import TrainConfig, settings_table

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
]
KOHYA = (ROOT / "docs" / "kohya.md").read_text(encoding="utf-8")
SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}
COMMAND = re.compile(r"^(?: {4}|\| `|`)?python -m trainer ([^`\n]+)", re.MULTILINE)

# Arguments in capitals stand for files of the reader; these are the test's.
EXAMPLES = {
    "FILE": "outputs/ink/ink.safetensors",
    "OUT": "outputs/out-{number}.safetensors",
    "A:0.7": "outputs/ink/ink.safetensors:0.7",
    "B:-0.3": "outputs/ink/ink.safetensors:-0.3",
    "BASE": "tiny-sdxl",
    "TUNED": "models/tuned",
    "outputs/NAME": "outputs/ink",
    "my-model": "tiny-sdxl",
    "T": "Ink",
    "A": "Ana",
}
# The network, and captioning models of several gigabytes.
NOT_RUN = ("base fetch", "dataset caption")


def commands() -> set[str]:
    """`train`, `lora bake`, ..."""
    names = set()
    for name, command in typer.main.get_command(app).commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        names.add(name)
        names |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return names


def documented_commands() -> list[str]:
    """Every `python -m trainer` command of the documentation, in order of the pages, each once."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return list(dict.fromkeys(match.strip() for text in texts for match in COMMAND.findall(text)))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, ink_run: Path) -> Path:
    """A reader's folder: the sample set, the bundled base, a fine-tuned base and a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "ink-emoji").symlink_to(INK)
    (folder / "models").mkdir()
    (folder / "models" / "tiny-sdxl").symlink_to(MODELS / "tiny-sdxl")
    shutil.copytree(ink_run, folder / "outputs" / "ink")
    lora = folder / "outputs" / "ink" / "ink.safetensors"
    trainer("lora", "bake", lora, folder / "models" / "tuned", "--base", MODELS / "tiny-sdxl")
    return folder


def shortened(words: list[str]) -> list[str]:
    """A training of the documentation with two steps and small samples, in a folder of its own."""
    if words[0] == "train":
        words[words.index("--output") + 1] += "-again"
        words += ["--steps", "2", "--batch", "2", "--sample-prompt", "a star --w 64 --h 64 --s 1"]
    if words[0] == "preview":
        words += ["--steps", "1"]
    return words


@pytest.mark.parametrize("number", range(len(documented_commands())))
def test_every_documented_command_runs(number: int, reader: Path, monkeypatch: pytest.MonkeyPatch):
    command = documented_commands()[number]
    if command.startswith(NOT_RUN):
        assert " ".join(command.split()[:2]) in commands()
        return
    monkeypatch.chdir(reader)
    words = [EXAMPLES.get(word, word).format(number=number) for word in shlex.split(command)]
    if ("--models" not in words and words[0] in ("train", "preview")) or words[:2] in (
        ["base", "check"],
        ["lora", "bake"],
    ):
        words += ["--models", "models"]
    trainer(*shortened(words))


def test_the_documentation_names_many_commands():
    assert len(documented_commands()) > 15


def test_every_counterpart_of_a_kohya_option_is_a_setting_or_a_command():
    rows = re.findall(r"^\|(.+?)\|(.+?)\|.*\|$", KOHYA, re.MULTILINE)
    named = [name for _, here in rows for name in re.findall(r"`([^`]+)`", here)]
    assert len(rows) > 100
    assert len(named) > 80
    assert [name for name in named if name not in SETTINGS | commands()] == []


def test_every_kohya_option_without_a_counterpart_has_a_reason():
    assert re.findall(r"^\|[^|]+\| – \|\s*\|$", KOHYA, re.MULTILINE) == []
    assert "not yet" not in KOHYA


def test_no_kohya_option_is_said_to_be_missing_that_is_a_setting():
    """A row without a counterpart must not have the name of a setting."""
    rows = re.findall(r"^\|(.+?)\| – \|.*\|$", KOHYA, re.MULTILINE)
    names = [name.strip("-") for row in rows for name in re.findall(r"`(?:--)?([a-z_]+)`", row)]
    assert len(names) > 20
    assert [name for name in names if name in SETTINGS] == []


def test_the_table_of_settings_is_current():
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_table() in text


def test_settings_in_the_guides_exist():
    """`name=value` and the first column of settings tables in the pages for artists."""
    guides = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "artists").glob("*.md"))]
    named = {name for text in guides for name in re.findall(r"`([a-z_]+)=[^`]+`", text)}
    assert named
    assert named <= SETTINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_of_a_page_exist(page: Path):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_that_a_page_names_exist(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:trainer|ui|tools|tests|benchmarks|docs)/[\w/.-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
