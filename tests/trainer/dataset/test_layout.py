"""Layout of a dataset: what each file of a folder, a zip or an upload is, by its relative name."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.config import TrainConfig
from trainer.dataset.folder import caption_file, mask_file, picture_files, read_folder
from trainer.dataset.layout import PictureFiles, Reason, layout
from trainer.dataset.quick_scan import quick_scan
from trainer.dataset.scan import scan
from trainer.dataset.sources import scan_all, with_class_and_validation


def painted(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), colour).save(path)
    return path


@pytest.mark.parametrize("caption", ["a.txt", "a.TXT", "a.caption", "a.png.txt", "A.txt"])
def test_a_caption_is_found_by_the_stem_or_the_whole_name_in_any_case(caption: str):
    assert layout(["a.png", caption]).pictures == (PictureFiles("a.png", caption),)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_letters_match(forms: tuple[Literal["NFC", "NFD"], ...]):
    picture, caption = (
        unicodedata.normalize(form, name)
        for form, name in zip(forms, ("Übung.png", "Übung.txt"), strict=True)
    )
    assert layout([picture, caption]).pictures[0].caption == caption


@pytest.mark.parametrize(
    "mask", ["a.mask.png", "masks/a.png", "Masks/a.PNG", "a-masklabel.png", "a.MASK.png"]
)
def test_masks_of_impasto_and_of_onetrainer_belong_to_their_picture(mask: str):
    found = layout(["a.png", mask])
    assert found.pictures == (PictureFiles("a.png", mask=mask),)
    assert found.problems() == []


def test_an_exact_name_is_preferred_to_one_in_another_case():
    found = layout(["A.png", "a.png", "a.txt"])
    assert [(one.name, one.caption) for one in found.pictures] == [("A.png", None), ("a.png", "a.txt")]


def test_the_preferred_caption_is_used_and_the_other_one_reported():
    found = layout(["a.png", "a.caption", "a.txt", "a.png.txt"])
    assert found.pictures[0].caption == "a.txt"
    problem = "these caption files are not used, because their pictures have another: a.caption, a.png.txt"
    assert found.problems() == [problem]


def test_captions_and_masks_belong_to_the_picture_of_their_own_folder():
    found = layout(["a/1.png", "b/1.png", "a/1.txt", "b/1.txt", "b/masks/1.png"])
    assert found.pictures == (
        PictureFiles("a/1.png", "a/1.txt"),
        PictureFiles("b/1.png", "b/1.txt", "b/masks/1.png"),
    )


def test_the_innermost_kohya_folder_decides_on_repeats_and_token():
    found = layout(["a.png", "5_cats/b.png", "5_cats/old/c.png", "5_cats/2_big cats/d.png"]).pictures
    assert {one.name: (one.repeats, one.token) for one in found} == {
        "a.png": (1, ""),
        "5_cats/b.png": (5, "cats"),
        "5_cats/old/c.png": (5, "cats"),
        "5_cats/2_big cats/d.png": (2, "big cats"),
    }


def test_a_year_that_is_read_as_repeats_is_reported():
    assert "the folder 2024_summer repeats" in layout(["2024_summer/a.png"]).problems()[0]


def test_files_of_systems_and_other_tools_are_passed_over():
    names = ["a.png", "._a.png", ".hidden/b.png", ".impasto/removed/c.png", "__MACOSX/a.png", "Thumbs.db"]
    found = layout([*names, "a-condlabel.png", "b-condlabel.png", "a.npz"])
    assert [one.name for one in found.pictures] == ["a.png"]
    assert found.problems() == [
        "condition images of OneTrainer are not used: a-condlabel.png, b-condlabel.png"
    ]
    assert found.passed_over["._a.png"] is Reason.HIDDEN


def test_captions_and_masks_without_a_picture_are_named():
    found = layout(["a.png", "notes.txt", "masks/venice.png", "b.mask.png", "masks/c.jpg"])
    first, second, third = found.problems()
    assert first.endswith("not used: notes.txt")
    assert "b.mask.png, masks/venice.png; if they are pictures" in second
    assert "no PNGs" in third


def test_the_pictures_of_a_training_inside_the_folder_are_no_dataset():
    run = ["out/events.jsonl", "out/manifest.json", "out/samples/1.png"]
    assert [one.name for one in layout(["a.png", *run]).pictures] == ["a.png"]


@given(st.lists(st.text("aAé.-_/0mskptngx", min_size=1, max_size=20)))
def test_every_file_has_exactly_one_role(names: list[str]):
    found = layout(names)
    roles = [one.name for one in found.pictures] + list(found.metadata) + list(found.passed_over)
    used = {name for one in found.pictures for name in (one.caption, one.mask) if name}
    assert sorted([*roles, *used]) == sorted(set(names))


def test_subfolders_are_scanned_with_the_nearest_metadata(tmp_path: Path):
    for name in ("a.png", "portraits/b.png", "portraits/old/c.png", ".trash/d.png"):
        painted(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "portraits/b.png", "text": "outer"}\n{"file_name": "portraits/old/c.png", "text": "c"}'
    )
    (tmp_path / "portraits" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b", "weight": 2}')
    for manifest in (scan(tmp_path), quick_scan(tmp_path)):
        found = [(item.name, item.caption, item.weight) for item in manifest.items]
        assert found == [("a.png", "", 1.0), ("b.png", "b", 2.0), ("c.png", "c", 1.0)]
        assert manifest.problems == ()


def test_a_damaged_picture_is_named_with_its_folder(tmp_path: Path):
    painted(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.png").write_bytes(b"x")
    assert scan(tmp_path).problems == ("more/a.png can't be read as a picture; remove it or save it again",)


def test_a_link_to_an_outer_folder_is_followed_once(tmp_path: Path):
    painted(tmp_path / "set" / "a.png")
    try:
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    assert [picture.name for picture in read_folder(tmp_path / "set").pictures] == ["a.png"]


def test_one_picture_is_looked_up_as_in_the_whole_folder(tmp_path: Path):
    for name in ("a.png", "b.png", "é.png"):
        painted(tmp_path / name)
    painted(tmp_path / "masks" / "a.png")
    painted(tmp_path / "b-masklabel.png")
    (tmp_path / "a.TXT").write_text("a")
    (tmp_path / "b.png.txt").write_text("b")
    (tmp_path / unicodedata.normalize("NFD", "é.txt")).write_text("e")
    found = read_folder(tmp_path)
    assert len(found.pictures) == 3
    for picture in found.pictures:
        assert picture_files(picture.path) == picture.files
        assert picture.files.caption
        assert caption_file(picture.path) == picture.caption_file
        assert mask_file(picture.path) == picture.mask_file


def test_inner_folders_with_a_purpose_of_their_own_are_not_trained_on_twice(tmp_path: Path):
    for name in ("a.png", "more/b.png", "reg/c.png", "val/d.png"):
        painted(tmp_path / name)
    reg, val = str(tmp_path / "reg"), str(tmp_path / "val")
    config = TrainConfig(prior_folder=reg, validation_folder=val)
    for manifest in (scan(tmp_path), scan_all([tmp_path], apart=(reg, val))):
        items = with_class_and_validation(manifest, config).items
        roles = sorted((item.name, item.role) for item in items)
        assert roles == [("a.png", "train"), ("b.png", "train"), ("c.png", "class"), ("d.png", "validation")]
    both = scan_all([tmp_path, tmp_path / "more"]).items
    assert sorted(item.name for item in both) == ["a.png", "b.png", "c.png", "d.png"]
