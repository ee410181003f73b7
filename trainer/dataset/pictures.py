"""Any picture file to upright sRGB: EXIF turned, alpha laid on white, CMYK, 16-bit and palette converted."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from trainer.errors import DatasetError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
UNSUPPORTED_SUFFIXES = frozenset(
    {
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
    }
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: values that swap width and height
MAX_PIXELS = 100_000_000  # a decoded picture of 100 megapixels takes 300 MB


def open_picture(path: Path, *, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture. Raises DatasetError that names the file and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF blocks
            with Image.open(path, formats=FORMATS) as picture:
                _refuse_giants(path, picture, most_pixels)
                return _to_srgb(ImageOps.exif_transpose(picture))
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path.name} is gone; put it back or leave it out") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = "is empty" if path.exists() and path.stat().st_size == 0 else "can't be read as a picture"
        raise DatasetError(f"{path.name} {reason}; remove it or save it again") from error


def small_picture(
    path: Path, side: int, *, most_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """A picture whose longer side is at most `side`, and its full (width, height), upright.

    The whole file is read, so that a damaged one is found, but a JPEG is decoded no larger than needed (Pillow's `draft`).
    Raises DatasetError as `open_picture` does, before anything is decoded when the picture has more than `most_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=FORMATS) as picture:
                _refuse_giants(path, picture, most_pixels)
                size = _upright(picture)
                if picture.mode in (
                    "RGB",
                    "RGBA",
                    "L",
                    "LA",
                    "CMYK",
                ):  # the others change their meaning when resized
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
        reason = "is empty" if path.exists() and path.stat().st_size == 0 else "can't be read as a picture"
        raise DatasetError(f"{path.name} {reason}; remove it or save it again") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) once turned upright, from the file's header. Raises DatasetError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                return _upright(picture)
    except Exception as error:  # as in open_picture
        raise DatasetError(f"{path.name} can't be read as a picture; remove it or save it again") from error


def _upright(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    # Asked for its EXIF block, a PNG that has none before its pixels would be decoded whole.
    has_block = picture.format != "PNG" or "exif" in picture.info
    return (
        (height, width) if has_block and picture.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    )


def open_alpha(path: Path) -> Image.Image | None:
    """How opaque a picture is, upright, "L"; None when it has no transparency. Raises DatasetError."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            _refuse_giants(path, picture)
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    except DatasetError:
        raise
    except Exception as error:  # as in open_picture
        raise DatasetError(f"{path.name} can't be read as a picture; remove it or save it again") from error


def _refuse_giants(path: Path, picture: Image.Image, most: int = MAX_PIXELS) -> None:
    width, height = picture.size
    if width * height > most:
        raise DatasetError(
            f"{path.name} has {width} x {height} pixels, more than {most // 1_000_000} megapixels; make it smaller"
        )
    if min(width, height) < 16:
        raise DatasetError(f"{path.name} has only {width} x {height} pixels; use a larger picture")


def _to_srgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    if picture.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        picture = _eight_bit(picture)
        profile = None
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    if alpha is not None:
        picture = picture.convert("L" if picture.mode in ("LA", "La") else "RGB")
    picture = _by_profile(picture, profile) if profile else picture.convert("RGB")
    if alpha is not None:
        page = Image.new("RGB", picture.size, "white")
        page.paste(picture, mask=alpha)
        picture = page
    picture.load()
    picture.info = {}
    return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)
    # Integer greys are 16-bit in practice; floats are [0, 1] or already [0, 255].
    top = 65535.0 if picture.mode != "F" else (1.0 if values.max(initial=0) <= 1 else 255.0)
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))


def _by_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    if picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        turned = ImageCms.profileToProfile(
            picture, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (
        ImageCms.PyCMSError,
        OSError,
        ValueError,
    ):  # a damaged profile says nothing: take the numbers as they are
        return picture.convert("RGB")
    return turned if turned is not None else picture.convert("RGB")
