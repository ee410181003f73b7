"""Thumbnails of pictures for the page: cache/thumbnails/<project>/<key>.webp, created again when a picture changes."""

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
    """A folder of thumbnails with a subfolder for each project."""

    folder: Path

    def of(self, project: str, path: Path, side: int = THUMBNAIL) -> Path:
        """Returns a WebP of a picture whose longer side is at most `side` px, creating it if necessary.

        Raises:
            DatasetError: the picture can't be read.
        """
        thumbnail = self._path(project, path, side)
        if not thumbnail.exists():
            _write(thumbnail, small_picture(path, side)[0], side)
        return thumbnail

    def keep(self, project: str, path: Path, picture: Image.Image) -> None:
        """Stores the thumbnail of a picture that has just been decoded, which spares decoding it again."""
        _write(self._path(project, path, THUMBNAIL), picture, THUMBNAIL)

    def _path(self, project: str, path: Path, side: int) -> Path:
        stat = path.stat()
        key = hashlib.sha256(f"{path.name}/{stat.st_mtime_ns}/{stat.st_size}/{side}".encode()).hexdigest()
        return self.folder / project / f"{key[:32]}.webp"


def _write(path: Path, picture: Image.Image, side: int) -> None:
    """Writes a WebP; a thumbnail with lower quality until it has at most THUMBNAIL_BYTES."""
    data = io.BytesIO()
    for quality in (82, 60, 40, 20, 5):
        data = io.BytesIO()
        picture.save(data, format="WEBP", quality=quality, method=1)
        if side > THUMBNAIL or data.tell() <= THUMBNAIL_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.getvalue())
