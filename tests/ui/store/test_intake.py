"""Dropped files: usable ones become pictures, others are reported, and nothing is overwritten or left behind."""

from __future__ import annotations

import io
import random
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.folder import mask_file
from trainer.errors import DatasetError, TrainerError
from ui.store.caption_edits import save_caption
from ui.store.caption_undo import undo_last
from ui.store.intake import IncomingFile, Intake, IntakeProgress, add_files
from ui.store.limits import Limits
from ui.store.masks import save_mask
from ui.store.picture_checks import PictureChecks
from ui.store.projects import Projects
from ui.text import Words
from ui.views.artwork import intake_html
from ui.views.captions import edit_words

LIMITS = Limits(free_bytes=0)


@pytest.fixture
def projects(tmp_path: Path) -> Projects:
    made = Projects(tmp_path / "datasets", tmp_path / "cache")
    made.create("art")
    return made


def png(colour: str = "red", size: tuple[int, int] = (50, 40), form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format=form)
    return data.getvalue()


def mask_of(value: int) -> bytes:
    """A mask whose left half has this value and whose right half is white."""
    mask, data = Image.new("L", (50, 40), 255), io.BytesIO()
    mask.paste(value, (0, 0, 25, 40))
    mask.save(data, format="PNG")
    return data.getvalue()


def drop(projects: Projects, files: dict[str, bytes], limits: Limits = LIMITS) -> IntakeProgress:
    """Files by the names that the artist gave them, from a place of their own."""
    place = projects.datasets.parent / f"dropped-{time.time_ns()}"
    place.mkdir()
    came = []
    for number, (name, data) in enumerate(files.items()):
        path = place / f"{number}{Path(name.replace(chr(92), '/')).suffix[:20]}"
        path.write_bytes(data)
        came.append(IncomingFile(name, path))
    arrivals = IntakeProgress(total=len(came))
    add_files(projects, "art", came, limits, arrivals)
    return arrivals


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def captions(projects: Projects) -> dict[str, str]:
    return {card.name: card.caption for card in projects.pictures("art")}


def test_bad_files_are_named_with_their_reason_and_good_ones_stay(projects: Projects):
    files = {
        "good.png": png(),
        "good.txt": b"a red field",
        "bad.png": b"nothing",
        "empty.jpg": b"",
        "virus.exe": b"x",
        "photo.heic": b"x",
        "old.rar": b"x",
        "cut.png": png(size=(400, 400), colour="blue")[:-30],
        "dot.png": png(size=(8, 8)),
    }
    arrivals = drop(projects, files)
    assert captions(projects) == {"good.png": "a red field"}
    assert arrivals.kept == 1
    assert sorted(problem.split()[0] for problem in arrivals.problems) == [
        "bad.png",
        "cut.png",
        "dot.png",
        "empty.jpg",
        "old.rar",
        "photo.heic",
        "virus.exe",
    ]
    assert "is empty" in " ".join(arrivals.problems)
    assert "make a zip" in " ".join(arrivals.problems)


def test_a_drop_overwrites_nothing_and_captions_follow_their_pictures(projects: Projects):
    one = {"IMG_1.png": png("red"), "IMG_1.txt": b"a red field"}
    two = {"IMG_1.txt": b"a blue field", "IMG_1.png": png("blue")}
    for files in (one, two, two):
        drop(projects, files)
    assert captions(projects) == {"IMG_1.png": "a red field", "IMG_1-2.png": "a blue field"}


def test_captions_may_come_later_and_sooner_than_their_pictures(projects: Projects):
    drop(projects, {"one.png": png()})
    arrivals = drop(projects, {"one.txt": b"\xef\xbb\xbfone\r\nline two", "two.caption": b"two"})
    assert "two.caption has no picture" in arrivals.problems[0]
    drop(projects, {"two.png": png("blue")})
    assert captions(projects) == {"one.png": "one line two", "two.png": "two"}


def test_a_second_upload_replaces_an_edited_caption_only_with_undo_and_reports_it(projects: Projects):
    files = {"owl.png": png(), "owl.txt": b"an owl", "cat.png": png("blue"), "cat.txt": b"a cat"}
    assert drop(projects, files).replaced == []
    edited = "an owl in ink\nwings spread"
    save_caption(projects, "art", "owl.png", edited)
    for upload in (files, {"again.zip": zipped(files)}, {"owl.txt": b"an owl"}):
        progress = drop(projects, upload)
        assert progress.replaced == ["owl.txt"]
        assert "Undo on the Captions tab" in intake_html(Words(), progress)
        assert "owl.txt" in intake_html(Words(), progress)
        assert captions(projects)["owl.png"] == "an owl"
        undone = undo_last(projects, "art")
        assert (undone.kind, undone.count, undone.kept) == ("uploaded", 1, 0)
        assert "replaced by an upload" in edit_words(Words(), undone)
        assert {picture.name: picture.text for picture in projects.pictures("art")} == {
            "cat.png": "a cat",
            "owl.png": edited,
        }


def test_a_caption_that_was_edited_after_a_second_upload_survives_its_undo(projects: Projects):
    drop(projects, {"owl.png": png(), "owl.txt": b"an owl"})
    drop(projects, {"owl.txt": b"a wise owl"})
    (projects.folder("art") / "owl.txt").write_text("edited elsewhere")
    assert undo_last(projects, "art").kept == 1
    assert captions(projects) == {"owl.png": "edited elsewhere"}


def test_a_caption_that_is_cut_is_reported(projects: Projects):
    progress = drop(projects, {"owl.png": png(), "owl.txt": b"owl, " * 500})
    assert len(captions(projects)["owl.png"]) <= 2000
    assert any("owl.txt has more than 2000 characters" in note for note in progress.notes)


def test_a_zip_is_taken_in_like_a_drop(projects: Projects):
    files = {
        "a/1.png": png("red"),
        "a/1.txt": b"one",
        "b/1.txt": b"other",
        "b/1.png": png("blue"),
        "../../evil.png": png(),
        "b/note.md": b"x",
        "3_cats/tom.png": png("green"),
        "__MACOSX/a/._1.png": b"x",
        "inner.zip": b"PK",
    }
    arrivals = drop(projects, {"art.zip": zipped(files)})
    assert captions(projects) == {"1.png": "one", "1-2.png": "other", "tom.png": "cats"}
    assert len(arrivals.problems) == 3
    assert {problem.split()[0] for problem in arrivals.problems} == {
        "../../evil.png",
        "note.md",
        "inner.zip",
    }
    assert next(card for card in projects.pictures("art") if card.name == "tom.png").override.repeats == 3
    assert not list(projects.datasets.parent.rglob("evil*"))
    assert sorted(path.name for path in (projects.datasets / "art" / ".impasto").iterdir()) == [
        "pictures.json"
    ]


def test_a_damaged_zip_is_told_and_leaves_nothing(projects: Projects):
    arrivals = drop(projects, {"art.zip": b"PK\x03\x04 no zip", "good.png": png()})
    assert list(captions(projects)) == ["good.png"]
    assert "art.zip can't be read as a zip" in arrivals.problems[0]
    assert not (projects.datasets / "art" / ".impasto").exists() or not list(
        (projects.datasets / "art" / ".impasto").glob("arriving*")
    )


def test_masks_come_with_their_pictures(projects: Projects):
    mask = io.BytesIO()
    Image.new("L", (50, 40), 0).save(mask, format="PNG")
    files = {
        "art/one.png": png(),
        "art/masks/one.png": mask.getvalue(),
        "two.png": png("blue"),
        "two.mask.png": mask.getvalue(),
    }
    drop(projects, {"art.zip": zipped(files), "lone.mask.png": mask.getvalue()})
    assert {card.name: bool(card.mask) for card in projects.pictures("art")} == {
        "one.png": True,
        "two.png": True,
    }


def test_giant_pictures_are_refused_by_their_header(projects: Projects):
    """A PNG that claims 30,000 x 30,000 pixels in 57 bytes: decoded, it would take 2.7 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    for side in (8000, 12_000, 30_000):
        head = chunk(b"IHDR", struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        arrivals = drop(projects, {"bomb.png": bomb})
        assert "more than 50 megapixels" in arrivals.problems[0], arrivals.problems
    assert captions(projects) == {}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(free_bytes=0, project_pictures=2), "a project holds 2 pictures"),
        (Limits(free_bytes=0, project_bytes=400), "a project holds 0 MB"),
        (Limits(free_bytes=0, picture_bytes=100), "is larger than 0 MB"),
        (Limits(free_bytes=1 << 60), "disk is nearly full"),
    ],
)
def test_limits_hold_also_inside_zips(projects: Projects, limits: Limits, words: str):
    files = {f"{n}.png": png(colour) for n, colour in enumerate(("red", "green", "blue", "black"))}
    for dropped in (files, {"all.zip": zipped(files)}):
        arrivals = drop(projects, dropped, limits)
        assert any(words in problem or "send it in parts" in problem for problem in arrivals.problems)
    assert len(captions(projects)) < 4


def test_thumbnails_are_there_at_once_and_small(projects: Projects):
    noise = Image.frombytes("RGB", (900, 700), random.Random(0).randbytes(900 * 700 * 3))
    data = io.BytesIO()
    noise.save(data, format="PNG")
    drop(projects, {"noise.png": data.getvalue(), "photo.jpg": png(size=(2000, 1000), form="JPEG")})
    kept = list((projects.cache / "thumbnails" / "art").iterdir())
    assert len(kept) == 2
    assert all(path.stat().st_size <= 60_000 for path in kept)
    assert projects.thumbnail("art", "noise.png") in kept
    assert Image.open(projects.thumbnail("art", "photo.jpg")).size == (384, 192)


def test_a_drop_goes_on_without_its_page_and_leaves_no_copy(projects: Projects, tmp_path: Path):
    came = []
    for number in range(12):
        place = tmp_path / "uploads" / str(number)
        place.mkdir(parents=True)
        (place / "a.png").write_bytes(png(size=(60 + number, 50)))
        came.append(IncomingFile(f"{number}.png", place / "a.png"))
    intake = Intake(projects, LIMITS)
    intake.start("art", came[:6])
    intake.start("art", came[6:])
    wait_until(lambda: not intake.is_busy("art"))
    assert len(captions(projects)) == 12
    assert not list((tmp_path / "uploads").iterdir())


def test_the_doctor_looks_at_each_picture_once(projects: Projects):
    drop(projects, {"a.png": png(size=(300, 200)), "b.png": png("blue", (200, 300))})
    checks = PictureChecks(projects)
    for _ in range(2):
        checks.start("art", projects.pictures("art"))
        wait_until(lambda: (progress := checks.progress("art")) is not None and progress.ended)
        assert set(checks.measured("art", projects.pictures("art"))) == {"a.png", "b.png"}
        assert len((projects.cache / "doctor" / "art.jsonl").read_text().splitlines()) == 2
    (projects.datasets / "art" / "a.png").write_bytes(png("green", (80, 80)))
    assert set(checks.measured("art", projects.pictures("art"))) == {"b.png"}


def test_the_doctor_waits_until_a_drop_has_come_in(projects: Projects, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.store.picture_checks._DELAY_SECONDS", 0.01)
    drop(projects, {"a.png": png(size=(80, 80))})
    done_while_receiving: list[int] = []

    def is_receiving(project: str) -> bool:
        progress = checks.progress(project)
        assert progress is not None
        done_while_receiving.append(progress.done)
        return len(done_while_receiving) < 5

    checks = PictureChecks(projects, is_receiving)
    checks.start("art", projects.pictures("art"))
    progress = checks.progress("art")
    assert progress is not None
    wait_until(lambda: progress.ended)
    assert done_while_receiving == [0] * 5
    assert progress.done == 1


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=30), st.sampled_from([".png", ".txt", ".mask.png", ".PNG", ""])
        ),
        max_size=5,
    )
)
def test_any_names_become_safe_pictures(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]
):
    made = Projects(tmp_path_factory.mktemp("names") / "datasets", tmp_path_factory.mktemp("cache"))
    made.create("art")
    drop(made, {stem + suffix: png(size=(20, 20 + number)) for number, (stem, suffix) in enumerate(names)})
    for path in (made.datasets / "art").iterdir():
        assert not set(path.name) & set('/\\:*?"<>|\0\n')
    for card in made.pictures("art"):
        assert made.picture("art", card.name).is_file()


def test_an_upload_keeps_the_mask_that_a_picture_has(projects: Projects):
    drop(projects, {"one.png": png(), "one.mask.png": mask_of(0)})
    assert drop(projects, {"one.mask.png": mask_of(0)}).problems == []
    for again in ({"one.mask.png": mask_of(128)}, {"one.png": png(), "one.mask.png": mask_of(128)}):
        (problem,) = drop(projects, again).problems
        assert problem.startswith(
            "one.mask.png was not stored, because one.png has another mask; remove that one"
        )
    found = mask_file(projects.folder("art") / "one.png")
    assert found
    with Image.open(found) as mask:
        assert mask.getextrema() == (0, 255)


def test_drawn_masks_are_stored_in_grey_and_have_the_pictures_shape(projects: Projects):
    drop(projects, {"one.png": png(size=(60, 40))})
    picture = projects.picture("art", "one.png")

    def drawn(mode: str, size: tuple[int, int], colour) -> bytes:
        data = io.BytesIO()
        Image.new(mode, size, colour).save(data, format="PNG")
        return data.getvalue()

    save_mask(picture, drawn("RGBA", (30, 20), (0, 0, 0, 255)))
    found = mask_file(picture)
    assert found
    assert Image.open(found).mode == "L"
    assert Image.open(found).size == (60, 40)
    wrong = {
        "can't be read": b"no picture",
        "black or transparent everywhere": drawn("RGBA", (60, 40), (0, 0, 0, 0)),
        "another shape": drawn("L", (40, 60), 0),
    }
    for reason, data in wrong.items():
        with pytest.raises(DatasetError, match=reason):
            save_mask(picture, data)
    save_mask(picture, drawn("L", (60, 40), 255))  # all of it counts: no mask
    assert mask_file(picture) is None


def test_no_room_at_all_is_a_sentence(projects: Projects):
    with pytest.raises(TrainerError, match="nearly full"):
        Limits(free_bytes=1 << 60).check_free_space(projects.datasets)


def test_captions_in_any_encoding_are_stored_as_utf_8_from_files_and_zips(projects: Projects):
    captions = {
        "a.txt": "a black cat".encode("utf-16"),
        "b.txt": "café, d’or".encode("cp1252"),
        "c.txt": "黒猫".encode("cp932"),
    }
    pictures = {
        f"{name}.png": png(colour) for name, colour in zip("abc", ("red", "green", "blue"), strict=True)
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in {**pictures, **captions}.items():
            packed.writestr(name, data)
    for files in ({**pictures, **captions}, {"all.zip": archive.getvalue()}):
        progress = drop(projects, files)
        assert progress.problems == []
        assert [note.split(" is ")[0] for note in progress.notes] == ["b.txt", "c.txt"]
        found = {picture.name: picture.caption for picture in projects.pictures("art")}
        assert found == {"a.png": "a black cat", "b.png": "café, d’or", "c.png": "黒猫"}
        assert (projects.folder("art") / "c.txt").read_text(encoding="utf-8") == "黒猫\n"
