"""Untrusted zip files: good members are unpacked, hostile ones are refused and leave nothing behind."""

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


def unpack(archive: Path, bounds: ArchiveLimits = BOUNDS) -> dict[str, bytes | str]:
    """Returns {name: content, or the reason why the member was refused}."""
    into = archive.parent / "into"
    into.mkdir(exist_ok=True)
    results: dict[str, bytes | str] = {}
    for member in extract_members(archive, into, bounds):
        results[member.name] = member.path.read_bytes() if member.path else member.reason
        assert member.path is None or member.path.parent == into
    assert list(into.iterdir()) == []
    return results


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_members_are_unpacked_unchanged(tmp_path: Path):
    files = {"art/one.png": random.Random(0).randbytes(5000), "art/one.txt": b"a cat", "two.jpg": b""}
    assert unpack(pack(tmp_path / "a.zip", files)) == files
    assert unpack(pack(tmp_path / "b.zip", files, zipfile.ZIP_STORED)) == files


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil.png"],
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str):
    results = unpack(pack(tmp_path / "a.zip", {name: b"x", "good.png": b"y"}))
    assert results.pop("good.png") == b"y"
    assert list(results.values()) == ["has a name that leads out of the zip"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "into"]


def test_links_encrypted_members_and_nested_archives_are_refused(tmp_path: Path):
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
    ):  # the encryption flag, in both headers
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            if b"locked.png" in data[start : start + 60]:
                data[start + at] |= 1
    path.write_bytes(data)
    results = unpack(path)
    assert results["good.png"] == b"good"
    assert "password" in str(results["locked.png"])
    assert "link" in str(results["link.png"])
    assert "archive inside" in str(results["inner.zip"])


def test_limits_apply_to_the_unpacked_bytes(tmp_path: Path):
    results = unpack(pack(tmp_path / "a.zip", {"bomb.png": bytes(3_000_000), "good.png": b"x"}))
    assert results["bomb.png"] == "is larger than 0 MB"
    assert results["good.png"] == b"x"
    many = pack(tmp_path / "b.zip", {f"{n}.png": bytes(9_000) for n in range(20)})
    with pytest.raises(DatasetError, match="send it in parts"):
        unpack(many)


def test_false_sizes_in_the_headers_do_not_bypass_the_limits(tmp_path: Path):
    path = pack(tmp_path / "a.zip", {"bomb.png": bytes(3_000_000)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.find(mark) + at, 100)  # uncompressed size
    path.write_bytes(data)
    assert unpack(path)["bomb.png"] in ("is larger than 0 MB", "is damaged inside the zip")


def test_an_archive_with_overlapping_members_is_refused(tmp_path: Path):
    path = pack(tmp_path / "a.zip", {"one.png": bytes(1000), "two.png": bytes(1000)})
    data = bytearray(path.read_bytes())
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 1)
    struct.pack_into("<L", data, second + 42, 0)  # the second member begins where the first does
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="share the same bytes"):
        unpack(path)


def test_an_archive_with_too_many_members_is_refused_before_they_are_listed(tmp_path: Path):
    path = pack(tmp_path / "a.zip", {f"{n}.png": b"" for n in range(51)})
    with pytest.raises(DatasetError, match="more than 50 files"):
        unpack(path)


def test_files_of_operating_systems_are_skipped(tmp_path: Path):
    files = {"__MACOSX/._one.png": b"x", ".DS_Store": b"x", "art/Thumbs.db": b"x", "art/one.png": b"y"}
    assert unpack(pack(tmp_path / "a.zip", files)) == {"art/one.png": b"y"}


def test_unsupported_compression_is_refused(tmp_path: Path):
    results = unpack(pack(tmp_path / "a.zip", {"one.png": bytes(100)}, zipfile.ZIP_LZMA))
    assert "ordinary zip" in str(results["one.png"])


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused_as_no_zip(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(data)
    with pytest.raises(DatasetError):
        unpack(path)


@given(st.data())
def test_a_damaged_archive_raises_nothing_but_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
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
        results = unpack(path)
    except DatasetError:
        return
    assert all(isinstance(what, str) or len(what) <= BOUNDS.member_bytes for what in results.values())


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=40), st.binary(max_size=200)),
        max_size=8,
        unique_by=lambda pair: pair[0],
    )
)
def test_any_names_and_bytes_stay_inside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]]
):
    folder = tmp_path_factory.mktemp("zip")
    (folder / "into").mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name, data in files:
            try:
                archive.writestr(name, data)
            except (ValueError, UnicodeError, IndexError):  # zipfile itself refuses some names
                continue
    seen: list[Member] = []
    for member in extract_members(folder / "a.zip", folder / "into", BOUNDS):
        seen.append(member)
        assert member.path is None or member.path.parent == folder / "into"
    assert {path.name for path in folder.iterdir()} == {"a.zip", "into"}
