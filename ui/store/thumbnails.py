"""Pictures made small for the page, kept as WebP: cache/thumbnails/<project>/<key>.webp, made anew when a picture changes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.dataset.pictures import small_picture

THUMBNAIL, LARGE = 384, 1280  # px: longer side
THUMBNAIL_BYTES = 60_000


@dataclass(frozen=True)
class Thumbnails:
    folder: Path

    def of(self, project: str, path: Path, side: int = THUMBNAIL) -> Path:
        """A picture whose longer side is at most `side` px, made once. Raises DatasetError when it can't be read."""
        place = self._place(project, path, side)
        if not place.exists():
            _write(place, small_picture(path, side)[0], side)
        return place

    def keep(self, project: str, path: Path, picture: Image.Image) -> None:
        """The thumbnail of a picture that has just been opened, so that it is not opened again."""
        _write(self._place(project, path, THUMBNAIL), picture, THUMBNAIL)

    def _place(self, project: str, path: Path, side: int) -> Path:
        stat = path.stat()
        key = hashlib.sha256(f"{path.name}/{stat.st_mtime_ns}/{stat.st_size}/{side}".encode()).hexdigest()
        return self.folder / project / f"{key[:32]}.webp"


def _write(place: Path, picture: Image.Image, side: int) -> None:
    for quality in (82, 60, 40, 20, 5):
        data = io.BytesIO()
        picture.save(data, format="WEBP", quality=quality, method=1)
        if side > THUMBNAIL or data.tell() <= THUMBNAIL_BYTES:
            break
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, data.getvalue())
