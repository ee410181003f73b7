"""Decoding of picture files to upright sRGB: EXIF orientation, transparency, profiles, CMYK, palettes and 16
bits.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from trainer.errors import DatasetError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
UNSUPPORTED_SUFFIXES = frozenset(
    [
        ".heic",
        ".heif",
        ".jfif",
        ".jxl",
        ".psd",
        ".svg",
        ".tga",
        ".exr",
        ".hdr",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    ]
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
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


def open_picture(path: Path, *, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns an upright RGB picture in sRGB, transparency on white.

    Raises DatasetError with the file's name and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` has its own limit
            warnings.simplefilter("ignore", UserWarning)  # unusual EXIF blocks
            with Image.open(path, formats=FORMATS) as picture:
                _check_size(path, picture, most_pixels)
                return _to_srgb(ImageOps.exif_transpose(picture))
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
            with Image.open(path, formats=FORMATS) as picture:
                _check_size(path, picture, most_pixels)
                size = _upright_size(picture)
                if picture.mode in _RESIZABLE_MODES:
                    picture.thumbnail((side, side), reducing_gap=2.0)
                small = _to_srgb(ImageOps.exif_transpose(picture))
                small.thumbnail((side, side), reducing_gap=2.0)
                return small, size
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
            with Image.open(path, formats=FORMATS) as picture:
                return _upright_size(picture)
    except Exception as error:  # as in open_picture
        raise _unreadable(path) from error


def open_alpha(path: Path) -> Image.Image | None:
    """Returns the upright opacity of a picture, "L", 255 for opaque; None without transparency. Raises
    DatasetError.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            _check_size(path, picture)
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    except DatasetError:
        raise
    except Exception as error:  # as in open_picture
        raise _unreadable(path) from error


def open_layers(source: Path | io.BytesIO, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Returns (upright RGB in sRGB without transparency, opacity "L" or None if there is no transparency).

    Args:
        source: a file, or its bytes.
        name: of the file, for messages.

    Raises:
        DatasetError: the file is missing, too large or can't be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` has its own limit
            warnings.simplefilter("ignore", UserWarning)  # unusual EXIF blocks
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(Path(name), picture)
                return _colours_and_opacity(ImageOps.exif_transpose(picture))
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{name} is gone; put it back or leave it out") from None
    except Exception as error:  # as in open_picture
        raise DatasetError(f"{name} can't be read as a picture; remove it or save it again") from error


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
