"""Pictures with large metadata, and formats that need another package."""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from trainer.dataset import pictures
from trainer.dataset.pictures import OptionalFormat, open_alpha, open_picture, small_picture, upright_size
from trainer.dataset.scan import scan
from trainer.errors import DatasetError

MB = 1_000_000


def srgb_profile(size: int, *, swapped: bool = False) -> bytes:
    """Returns sRGB's profile with `size` bytes; with red and green exchanged if `swapped`."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swapped:
        profile = profile.replace(b"rXYZ", b"~XYZ").replace(b"gXYZ", b"rXYZ").replace(b"~XYZ", b"gXYZ")
    profile += bytes(size - len(profile))
    profile[0:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def save_with_text(path: Path, kind: bytes, characters: int, *, at_end: bool = False) -> None:
    """Saves a red PNG with a compressed text before or after its pixels."""
    data = io.BytesIO()
    Image.new("RGBA", (80, 60), (255, 0, 0, 255)).save(data, format="PNG")
    png = data.getvalue()
    packed = zlib.compress(b"x" * characters)
    content = {b"zTXt": b"parameters\0\0" + packed, b"iTXt": b"workflow\0\1\0\0\0" + packed}[kind]
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    position = png.rindex(b"IEND") - 4 if at_end else png.index(b"IDAT") - 4
    path.write_bytes(png[:position] + chunk + png[position:])


@pytest.mark.parametrize("size", [int(1.3 * MB), 40 * MB])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_large_text_does_not_make_a_picture_unreadable(
    tmp_path: Path, size: int, kind: bytes, at_end: bool
):
    path = tmp_path / "a.png"
    save_with_text(path, kind, size, at_end=at_end)
    assert path.stat().st_size < 100_000  # so the limits on unpacked text are what is tested
    assert np.asarray(open_picture(path))[0, 0].tolist() == [255, 0, 0]
    assert small_picture(path, 20)[1] == upright_size(path) == (80, 60)
    alpha = open_alpha(path)
    assert alpha is not None
    assert alpha.getextrema() == (255, 255)


def test_a_large_colour_profile_is_applied(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), (200, 100, 50)).save(path, icc_profile=srgb_profile(3 * MB, swapped=True))
    assert np.abs(np.asarray(open_picture(path)).astype(int)[0, 0] - [100, 200, 50]).max() <= 3


def test_a_colour_profile_beyond_all_measure_is_left_out(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), (200, 100, 50)).save(path, icc_profile=srgb_profile(30 * MB, swapped=True))
    assert np.asarray(open_picture(path))[0, 0].tolist() == [200, 100, 50]


def test_the_limit_on_all_texts_together_holds():
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 16 << 20
    assert PngImagePlugin.MAX_TEXT_MEMORY <= 64 << 20


def test_a_damaged_picture_with_metadata_is_still_unreadable(tmp_path: Path):
    path = tmp_path / "a.png"
    save_with_text(path, b"zTXt", 2 * MB)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 10])
    with pytest.raises(DatasetError, match=r"a\.png can't be read as a picture"):
        open_picture(path)


def test_a_jfif_file_is_a_jpeg(tmp_path: Path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.jfif", format="JPEG")
    assert [(item.name, item.width) for item in scan(tmp_path).items] == [("a.jfif", 80)]


@pytest.mark.parametrize(
    ("name", "start", "package"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic", "pillow-heif"),
        ("phone.jpg", b"\0\0\0\x18ftypmif1", "pillow-heif"),
        ("a.jxl", b"\xff\x0a", "pillow-jxl-plugin"),
    ],
)
def test_a_format_without_its_package_is_reported_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes, package: str
):
    monkeypatch.setattr(OptionalFormat, "is_installed", False)
    Image.new("RGB", (80, 60), "red").save(tmp_path / "b.png")
    (tmp_path / name).write_bytes(start + bytes(100))
    (problem,) = scan(tmp_path).problems
    assert problem.startswith(name)
    assert f"pip install {package}" in problem


@pytest.mark.parametrize(("optional", "suffix"), [(pictures.HEIF, ".heic"), (pictures.JXL, ".jxl")])
def test_optional_formats_are_read_where_their_package_is_installed(
    tmp_path: Path, optional: OptionalFormat, suffix: str
):
    if not optional.is_installed:
        pytest.skip(f"{optional.package} is not installed")
    plugin = importlib.import_module(optional.module)
    if optional is pictures.HEIF:
        plugin.register_heif_opener()
    for name in (f"a{suffix}", "b.jpg"):  # phones send HEIC under the name of a JPEG
        Image.new("RGB", (80, 60), "red").save(tmp_path / name, format=optional.pillow_format)
        assert np.abs(np.asarray(open_picture(tmp_path / name)).astype(int)[9, 9] - [255, 0, 0]).max() < 12
    assert [item.name for item in scan(tmp_path).items] == [f"a{suffix}", "b.jpg"]
