"""Decoding of picture files to upright sRGB: EXIF orientation, transparency, profiles, CMYK, palettes and 16
bits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from trainer.errors import DatasetError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
SUPPORTED_WORDS = "png, jpg, webp, bmp, tiff, gif or avif"


@dataclass(frozen=True)
class OptionalFormat:
    """A format that Pillow reads with another package, which is not required."""

    words: str
    pillow_format: str
    module: str
    package: str

    @property
    def is_installed(self) -> bool:
        """Returns whether the package is installed."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def remedy(self) -> str:
        """The end of a sentence about a picture of this format without the package."""
        return f"is a {self.words} picture; install {self.package} (pip install {self.package}) or save it as jpg"


HEIF = OptionalFormat("HEIC", "HEIF", "pillow_heif", "pillow-heif")
JXL = OptionalFormat("JPEG XL", "JXL", "pillow_jxl", "pillow-jxl-plugin")
OPTIONAL_SUFFIXES = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".jxl": JXL}
UNSUPPORTED_SUFFIXES = frozenset(
    [*OPTIONAL_SUFFIXES, ".psd", ".svg", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw"]
)  # the optional ones only without their package
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
# Pillow refuses a PNG whose colour profile or text is larger than 1 MiB unpacked; profiles of printers and
# scanners, and the workflows that ComfyUI stores, can be larger. Larger ones than this are left out instead
# (`_without_metadata`), so that a small file can't unpack to gigabytes. All texts together stay below Pillow's
# own limit of 64 MiB.
_MAX_METADATA_BYTES = 16 << 20
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MAX_METADATA_BYTES)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
MAX_PIXELS = 100_000_000  # a decoded picture of 100 megapixels takes 300 MB
_MIN_SIDE = 16  # px
_ORIENTATION, _ROTATED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that exchange width and height
_RESIZABLE_MODES = (
    "RGB",
    "RGBA",
    "L",
    "LA",
    "CMYK",
)  # resizing palettes or 16-bit greys would change their meaning
T = TypeVar("T")


def is_supported(suffix: str) -> bool:
    """Returns whether files with this suffix, in lower case, can be read here."""
    optional = OPTIONAL_SUFFIXES.get(suffix)
    return suffix in SUFFIXES or (optional is not None and optional.is_installed)


def unsupported_reason(name: str) -> str:
    """Returns the end of a sentence about a picture whose format can't be read."""
    optional = OPTIONAL_SUFFIXES.get(Path(name).suffix.lower())
    return optional.remedy if optional else "has a format that is not supported; save it as png or jpg"


def open_picture(path: Path, *, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns an upright RGB picture in sRGB, transparency on white.

    Raises DatasetError with the file's name and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` has its own limit
            warnings.simplefilter("ignore", UserWarning)  # unusual EXIF blocks

            def read(picture: Image.Image) -> Image.Image:
                _check_size(path, picture, most_pixels)
                return _to_srgb(ImageOps.exif_transpose(picture))

            return _with_opened(path, read)
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path.name} is gone; put it back or leave it out") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise _unreadable(path) from error


def small_picture(
    path: Path, side: int, *, most_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Returns (an upright RGB picture whose longer side is at most `side`, its original upright (width,
    height)).

    The whole file is read, so that a damaged one is noticed, but a JPEG is decoded at reduced size (Pillow's
    `draft`).

    Raises:
        DatasetError: as `open_picture`; before decoding if the picture has more than `most_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)

            def read(picture: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
                _check_size(path, picture, most_pixels)
                size = _upright_size(picture)
                if picture.mode in _RESIZABLE_MODES:
                    picture.thumbnail((side, side), reducing_gap=2.0)
                small = _to_srgb(ImageOps.exif_transpose(picture))
                small.thumbnail((side, side), reducing_gap=2.0)
                return small, size

            return _with_opened(path, read)
    except DatasetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DatasetError(
            f"{path.name} has more than {most_pixels // 1_000_000} megapixels; make it smaller"
        ) from None
    except Exception as error:  # as in open_picture
        raise _unreadable(path) from error


def upright_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) in upright orientation from the file's header. Raises DatasetError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _with_opened(path, _upright_size)
    except DatasetError:
        raise
    except Exception as error:  # as in open_picture
        raise _unreadable(path) from error


def open_alpha(path: Path) -> Image.Image | None:
    """Returns the upright opacity of a picture, "L", 255 for opaque; None without transparency. Raises
    DatasetError.
    """
    try:

        def read(picture: Image.Image) -> Image.Image | None:
            _check_size(path, picture)
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None

        return _with_opened(path, read)
    except DatasetError:
        raise
    except Exception as error:  # as in open_picture
        raise _unreadable(path) from error


def open_layers(path: Path, name: str = "") -> tuple[Image.Image, Image.Image | None]:
    """Returns (upright RGB in sRGB without transparency, opacity "L" or None if there is no transparency).

    Args:
        name: of the file in messages, if not its own.

    Raises:
        DatasetError: the file is missing, too large or can't be decoded.
    """
    name = name or path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` has its own limit
            warnings.simplefilter("ignore", UserWarning)  # unusual EXIF blocks
            return _with_opened(path, functools.partial(_layers, Path(name)))
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{name} is gone; put it back or leave it out") from None
    except Exception as error:  # as in open_picture
        raise DatasetError(f"{name} can't be read as a picture; remove it or save it again") from error


def _layers(named: Path, picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    _check_size(named, picture)
    return _colours_and_opacity(ImageOps.exif_transpose(picture))


def _with_opened(path: Path, read: Callable[[Image.Image], T]) -> T:
    """Returns `read` of the opened picture; a PNG with metadata beyond the limits is read without it.

    Raises:
        DatasetError: the file needs a package that is not installed. Other exceptions are Pillow's.
    """
    formats = (*FORMATS, *_optional_formats(path))
    try:
        with Image.open(path, formats=formats) as picture:
            return read(picture)
    except ValueError:  # Pillow raises it for metadata that is too large, before or after the pixels
        stripped = _without_metadata(path)
        if stripped is None:
            raise
        with Image.open(stripped, formats=formats) as picture:
            return read(picture)


def _optional_formats(path: Path) -> list[str]:
    """Makes Pillow read a HEIC or JPEG XL file, which is recognised by its first bytes, as under any suffix.

    Raises DatasetError if the necessary package is not installed.
    """
    with path.open("rb") as file:
        start = file.read(12)
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS
    optional = HEIF if is_heif else JXL if start.startswith(_JXL_SIGNATURES) else None
    if optional is None:
        return []
    if not optional.is_installed:
        raise DatasetError(f"{path.name} {optional.remedy}")
    plugin = importlib.import_module(optional.module)
    if optional is HEIF:
        plugin.register_heif_opener()
    return [optional.pillow_format]


def _without_metadata(path: Path) -> io.BytesIO | None:
    """Returns a PNG without its texts and colour profile; None for other files and PNGs without these."""
    data = path.read_bytes()
    if not data.startswith(_PNG_SIGNATURE):
        return None
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind not in _PNG_METADATA:
            kept.append(data[position:end])
        position = end
    stripped = b"".join(kept)
    return io.BytesIO(stripped) if len(stripped) < len(data) else None


def _unreadable(path: Path) -> DatasetError:
    reason = "is empty" if path.exists() and path.stat().st_size == 0 else "can't be read as a picture"
    return DatasetError(f"{path.name} {reason}; remove it or save it again")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    # getexif() decodes the whole picture if a PNG has no EXIF block before its pixels.
    has_block = picture.format != "PNG" or "exif" in picture.info
    is_rotated = has_block and picture.getexif().get(_ORIENTATION) in _ROTATED
    return (height, width) if is_rotated else (width, height)


def _check_size(path: Path, picture: Image.Image, most_pixels: int = MAX_PIXELS) -> None:
    width, height = picture.size
    if width * height > most_pixels:
        raise DatasetError(
            f"{path.name} has {width} x {height} pixels, more than {most_pixels // 1_000_000} megapixels; "
            "make it smaller"
        )
    if min(width, height) < _MIN_SIDE:
        raise DatasetError(f"{path.name} has only {width} x {height} pixels; use a larger picture")


def _to_srgb(picture: Image.Image) -> Image.Image:
    picture, alpha = _colours_and_opacity(picture)
    if alpha is not None:
        page = Image.new("RGB", picture.size, "white")
        page.paste(picture, mask=alpha)
        picture = page
    picture.load()
    picture.info = {}
    return picture


def _colours_and_opacity(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Returns (RGB in sRGB without transparency, opacity "L" or None if the picture has no transparency)."""
    profile = picture.info.get("icc_profile")
    if picture.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        picture = _to_eight_bits(picture)
        profile = None  # made for 16 bits
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    if alpha is not None:
        picture = picture.convert("L" if picture.mode in ("LA", "La") else "RGB")
    return _apply_profile(picture, profile) if profile else picture.convert("RGB"), alpha


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)
    # Integer greys are 16-bit in practice; for floats, white is 1 or 255.
    float_white = 1.0 if values.max(initial=0) <= 1 else 255.0
    white = float_white if picture.mode == "F" else 65535.0
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))


def _apply_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    if picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, embedded, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile: the values count as sRGB
        converted = None
    return converted if converted is not None else picture.convert("RGB")
