"""Pictures of a LoRA in the library: its samples, the picture embedded in its file, and the thumbnail on its card."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.errors import RunError
from ui.store.library import Library
from ui.store.thumbnails import THUMBNAIL, Thumbnails

_MAX_PIXELS = 4_000_000  # of a picture embedded in a file
_DATA_URLS = ("data:image/jpeg;base64", "data:image/png;base64", "data:image/webp;base64")


def samples(library: Library, key: str) -> list[Path]:
    """Returns the strip of strengths that the training generated at its end."""
    return sorted((library.entry(key).folder / "samples").glob("p[0-9][0-9]_s*.png"))


def card_sample(library: Library, key: str) -> Path | None:
    """Returns the sample of the first prompt whose strength is nearest to the preferred one."""
    entry = library.entry(key)
    preferred = entry.label.weight if entry.label.weight is not None else 1.0
    by_strength = {
        float(path.stem.partition("_s")[2]): path for path in (entry.folder / "samples").glob("p00_s*.png")
    }
    nearest = min(by_strength, key=lambda strength: abs(strength - preferred), default=None)
    return None if nearest is None else by_strength[nearest]


def embedded_picture(library: Library, key: str) -> Image.Image | None:
    """Decodes the picture in the file's metadata (`modelspec.thumbnail`); None without a valid one."""
    start, comma, data = library.entry(key).metadata.get("modelspec.thumbnail", "").partition(",")
    if not comma or start not in _DATA_URLS:
        return None
    # The file may come from anyone: only these formats are decoded, and only up to a size.
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        content = io.BytesIO(base64.b64decode(data, validate=True))
        picture = Image.open(content, formats=("JPEG", "PNG", "WEBP"))
        return picture.convert("RGB") if picture.width * picture.height <= _MAX_PIXELS else None
    return None


def thumbnail(library: Library, key: str) -> Path:
    """Returns a small WebP for the card.

    Raises:
        RunError: there is no such entry, or it has no picture.
    """
    folder, sample = library.thumbnails_folder(key), card_sample(library, key)
    if sample:
        return Thumbnails(folder.parent).of(folder.name, sample)
    version = library.entry(key).file.stat().st_mtime_ns
    path = folder / f"cover-{version}.webp"
    if not path.exists():
        picture = embedded_picture(library, key)
        if picture is None:
            raise RunError("this LoRA has no picture yet")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, format="WEBP", quality=80)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getvalue())
    return path
