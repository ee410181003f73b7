"""Zips from anyone: what is good comes out under names of our own, what is hostile is told and leaves nothing
behind.
"""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.archives import ArchiveLimits, Member, extract_members
from trainer.errors import DatasetError

BOUNDS = ArchiveLimits(members=50, member_bytes=10_000, total_bytes=40_000)


def unpacked(archive: Path, bounds: ArchiveLimits = BOUNDS) -> dict[str, bytes | str]:
    """name -> what came out of it, or why it did not."""
    into = archive.parent / "into"
    into.mkdir(exist_ok=True)
    found: dict[str, bytes | str] = {}
    for member in extract_members(archive, into, bounds):
        found[member.name] = member.path.read_bytes() if member.path else member.reason
        assert member.path is None or member.path.parent == into
    assert list(into.iterdir()) == []
    return found


def packed(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_files_come_out_as_they_went_in(tmp_path: Path):
    files = {"art/one.png": random.Random(0).randbytes(5000), "art/one.txt": b"a cat", "two.jpg": b""}
    assert unpacked(packed(tmp_path / "a.zip", files)) == files
    assert unpacked(packed(tmp_path / "b.zip", files, zipfile.ZIP_STORED)) == files


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil.png"],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str):
    found = unpacked(packed(tmp_path / "a.zip", {name: b"x", "good.png": b"y"}))
    assert found.pop("good.png") == b"y"
    assert list(found.values()) == ["has a name that leads out of the zip"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "into"]


def test_links_locks_and_archives_inside_are_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", b"PK")
        archive.writestr("locked.png", b"secret")
        archive.writestr("good.png", b"good")
    data = bytearray(path.read_bytes())
    for mark, at in (
        (b"PK\x03\x04", 6),
        (b"PK\x01\x02", 8),
    ):  # the flag that says "encrypted", in both headers
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            if b"locked.png" in data[start : start + 60]:
                data[start + at] |= 1
    path.write_bytes(data)
    found = unpacked(path)
    assert found["good.png"] == b"good"
    assert "password" in str(found["locked.png"])
    assert "link" in str(found["link.png"])
    assert "archive inside" in str(found["inner.zip"])


def test_a_bomb_is_counted_by_what_comes_out(tmp_path: Path):
    found = unpacked(packed(tmp_path / "a.zip", {"bomb.png": bytes(3_000_000), "good.png": b"x"}))
    assert found["bomb.png"] == "is larger than 0 MB"
    assert found["good.png"] == b"x"
    many = packed(tmp_path / "b.zip", {f"{n}.png": bytes(9_000) for n in range(20)})
    with pytest.raises(DatasetError, match="send it in parts"):
        unpacked(many)


def test_a_zip_that_lies_about_sizes_gains_nothing(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {"bomb.png": bytes(3_000_000)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.find(mark) + at, 100)  # uncompressed size
    path.write_bytes(data)
    assert unpacked(path)["bomb.png"] in ("is larger than 0 MB", "is damaged inside the zip")


def test_members_that_share_bytes_are_refused_whole(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {"one.png": bytes(1000), "two.png": bytes(1000)})
    data = bytearray(path.read_bytes())
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 1)
    struct.pack_into("<L", data, second + 42, 0)  # the second member begins where the first does
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="share the same bytes"):
        unpacked(path)


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {f"{n}.png": b"" for n in range(51)})
    with pytest.raises(DatasetError, match="more than 50 files"):
        unpacked(path)


def test_what_operating_systems_add_is_passed_over(tmp_path: Path):
    files = {"__MACOSX/._one.png": b"x", ".DS_Store": b"x", "art/Thumbs.db": b"x", "art/one.png": b"y"}
    assert unpacked(packed(tmp_path / "a.zip", files)) == {"art/one.png": b"y"}


def test_unusual_compression_is_refused(tmp_path: Path):
    found = unpacked(packed(tmp_path / "a.zip", {"one.png": bytes(100)}, zipfile.ZIP_LZMA))
    assert "ordinary zip" in str(found["one.png"])


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(data)
    with pytest.raises(DatasetError):
        unpacked(path)


@given(st.data())
def test_damage_anywhere_is_told_not_raised(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("art/one.png", random.Random(1).randbytes(400))
        archive.writestr("one.txt", "a cat in ink " * 20)
    mutant = bytearray(made.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(bytes(mutant))
    try:
        found = unpacked(path)
    except DatasetError:
        return
    assert all(isinstance(what, str) or len(what) <= BOUNDS.member_bytes for what in found.values())


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=40), st.binary(max_size=200)),
        max_size=8,
        unique_by=lambda pair: pair[0],
    )
)
def test_any_names_and_bytes_stay_inside(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]]
):
    place = tmp_path_factory.mktemp("zip")
    (place / "into").mkdir()
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        for name, data in files:
            try:
                archive.writestr(name, data)
            except (ValueError, UnicodeError, IndexError):  # zipfile itself refuses some names
                continue
    seen: list[Member] = []
    for member in extract_members(place / "a.zip", place / "into", BOUNDS):
        seen.append(member)
        assert member.path is None or member.path.parent == place / "into"
    assert {path.name for path in place.iterdir()} == {"a.zip", "into"}
