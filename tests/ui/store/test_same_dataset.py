"""The same files give the same dataset as a folder, a drop of files with their folders, and a zip."""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.ui.store.test_intake import LIMITS
from trainer.dataset.augmentations import mask_file
from trainer.dataset.quick_scan import quick_scan
from trainer.dataset.scan import scan
from ui.store.incoming import IncomingFile, IntakeProgress
from ui.store.intake import add_files
from ui.store.projects import Projects

NFD_TEXT = unicodedata.normalize("NFD", "Übung.txt")


def image(colour: str, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (50, 40), colour).save(data, format="PNG")
    return data.getvalue()


CONTENT: dict[str, bytes] = {
    "a/1.png": image("red"),
    "a/1.txt": b"red",
    "b/1.png": image("blue"),
    "b/1.txt": b"blue",
    "copy/1.png": image("blue"),  # the same picture with another caption
    "copy/1.txt": b"sky",
    "2.png": image("green"),
    "masks/2.png": image("black", "L"),
    "3.png": image("lime"),
    "3-masklabel.png": image("black", "L"),
    "3-condlabel.png": image("navy"),
    "3.TXT": b"lime",
    "4.png": image("gold"),
    "4.png.txt": b"gold\nand yellow",
    "._4.png": bytes.fromhex("0005160700020000") + bytes(74),
    "Übung.png": image("pink"),
    NFD_TEXT: b"pink",
    "5_cats/tom.png": image("brown"),
    "5_cats/old/tim.png": image("black"),
    "5_cats/old/tim.caption": b"old tim",
    "more/6.png": image("white"),
    "more/metadata.jsonl": json.dumps({"file_name": "6.png", "text": "white", "weight": 0.5}).encode(),
    ".impasto/removed/7.png": image("gray"),
}


def contents(folder: Path) -> list[tuple[str, str, int, float, bool]]:
    """Returns (digest, caption, repeats, weight, whether there is a mask) of all pictures."""
    manifest = scan(folder)
    quick = [(item.path, item.caption, item.repeats, item.weight) for item in quick_scan(folder).items]
    assert quick == [(item.path, item.caption, item.repeats, item.weight) for item in manifest.items]
    return sorted(
        (item.digest, item.caption, item.repeats, item.weight, mask_file(Path(item.path)) is not None)
        for item in manifest.items
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name, data in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def received(projects: Projects, files: dict[str, bytes]) -> tuple[Path, list[str]]:
    """Adds files to a new project; equal files arrive at one place, as Gradio stores them."""
    place = projects.datasets.parent / "uploads"
    place.mkdir()
    incoming = []
    for name, data in files.items():
        path = place / f"{hash(data)}{Path(name).suffix}"
        path.write_bytes(data)
        incoming.append(IncomingFile(name, path))
    progress = IntakeProgress(total=len(incoming))
    project = projects.create("art")
    add_files(projects, project, incoming, LIMITS, progress)
    return projects.folder(project), progress.problems


def zipped(prefix: str, *, flagged: bool) -> bytes:
    """Returns a zip of CONTENT; without the flag of UTF-8 names, as macOS writes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in CONTENT.items():
            raw = prefix + name
            archive.writestr(raw if flagged else raw.encode().decode("cp437"), content)
    return data.getvalue()


@pytest.mark.parametrize("prefix", ["", "set/"])
def test_a_drop_with_folders_equals_the_folder(folder: Path, tmp_path: Path, prefix: str):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    project, problems = received(projects, {prefix + name: data for name, data in CONTENT.items()})
    assert contents(project) == contents(folder)
    assert problems == [f"condition images of OneTrainer are not used: {prefix}3-condlabel.png"]
    assert list(scan(folder).problems) == ["condition images of OneTrainer are not used: 3-condlabel.png"]


def test_a_zip_equals_the_folder(folder: Path, tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    project, problems = received(projects, {"set.zip": zipped("set/", flagged=True)})
    assert contents(project) == contents(folder)
    assert len(problems) == 1


def test_names_of_a_zip_without_the_utf8_flag_are_read(tmp_path: Path):
    data = zipped("", flagged=True)
    info = zipfile.ZipInfo("Übung.png")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        flagged = archive.getinfo("Übung.png").flag_bits & 0x800
    assert flagged
    # The flag is bit 11 of the general purpose flags, in both headers of each member.
    unflagged = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = unflagged.find(signature)
        while start >= 0:
            unflagged[start + offset + 1] &= ~0x08 & 0xFF
            start = unflagged.find(signature, start + 4)
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    project, _ = received(projects, {"set.zip": bytes(unflagged)})
    assert (project / info.filename).is_file()
    assert "pink" in {item.caption for item in scan(project).items}


def test_the_same_upload_again_changes_nothing(tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    project, _ = received(projects, CONTENT)
    before = contents(project)
    incoming = []
    for number, (name, data) in enumerate(CONTENT.items()):
        path = tmp_path / f"again-{number}"
        path.write_bytes(data)
        incoming.append(IncomingFile(name, path))
    add_files(projects, project.name, incoming, LIMITS, IntakeProgress())
    again = contents(project)
    assert again == before


def test_later_captions_and_masks_find_their_pictures(tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    project, _ = received(
        projects, {"Übung.png": image("red"), "a/1.png": image("blue"), "b/1.png": image("lime")}
    )
    later = {NFD_TEXT: b"red", "masks/Übung.png": image("black", "L"), "b/1.txt": b"lime"}
    incoming = []
    for number, (name, data) in enumerate(later.items()):
        path = tmp_path / f"later-{number}"
        path.write_bytes(data)
        incoming.append(IncomingFile(name, path))
    progress = IntakeProgress()
    add_files(projects, project.name, incoming, LIMITS, progress)
    assert progress.problems == ["b/1.txt fits several pictures of this project; upload it with its picture"]
    cards = {card.name: (card.caption, bool(card.mask)) for card in projects.pictures(project.name)}
    assert cards == {"1-2.png": ("", False), "1.png": ("", False), "Übung.png": ("red", True)}


@pytest.mark.parametrize("name", ["हिन्दी", "ภาษาไทย", "العربيّة", "தமிழ்", "Übung", "猫の絵", "می\u200cخواهم"])
def test_a_project_keeps_its_name_in_any_script(tmp_path: Path, name: str):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    for form in ("NFC", "NFD"):
        assert projects.create(unicodedata.normalize(form, name)).removesuffix("-2") == (
            unicodedata.normalize("NFC", name)
        )
