"""An artist's picture folders under `datasets/`: listed, filled by uploads, captioned, shown as thumbnails."""

from __future__ import annotations

import html
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.captions import metadata_captions, one_line, sidecar_caption
from trainer.dataset.pictures import SUFFIXES, open_picture
from trainer.errors import DatasetError
from trainer.run import write_atomically

THUMBNAIL = 256  # px
MAX_CAPTION = 2000  # characters
_TEXT_SUFFIXES = {".txt", ".caption"}


@dataclass(frozen=True)
class Card:
    name: str
    caption: str


@dataclass(frozen=True)
class Projects:
    """`datasets` holds one folder a project; `cache` their thumbnails."""

    datasets: Path
    cache: Path

    def names(self) -> list[str]:
        """Projects, newest first."""
        if not self.datasets.is_dir():
            return []
        folders = [p for p in self.datasets.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))]
        return [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)]

    def folder(self, name: str) -> Path:
        """The folder of a project. Raises DatasetError for a name that is none of ours, paths included."""
        if name not in self.names():
            raise DatasetError("that picture folder is not there any more; choose another")
        return self.datasets / name

    def cards(self, name: str) -> list[Card]:
        folder = self.folder(name)
        listed, _ = metadata_captions(folder)
        pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        return [Card(p.name, sidecar_caption(p) or listed.get(p.name, "")) for p in pictures]

    def picture(self, project: str, name: str) -> Path:
        """A picture of a project. Raises DatasetError for anything else, paths and links out of it included."""
        folder = self.folder(project)
        path = folder / name
        if name not in {card.name for card in self.cards(project)} or not path.resolve().is_relative_to(folder.resolve()):
            raise DatasetError("that picture is not there any more; reload the page")
        return path

    def thumbnail(self, project: str, name: str) -> Path:
        """A small WebP of a picture, made once."""
        path = self.picture(project, name)
        stat = path.stat()
        small = self.cache / "thumbnails" / project / f"{name}.{stat.st_mtime_ns}.{stat.st_size}.webp"
        if not small.exists():
            picture = open_picture(path)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            small.parent.mkdir(parents=True, exist_ok=True)
            half_written = small.with_suffix(".tmp")
            picture.save(half_written, format="WEBP", quality=82)
            half_written.replace(small)
        return small

    def save_caption(self, project: str, name: str, caption: str) -> None:
        """Writes the `.txt` beside a picture. Raises DatasetError."""
        if len(caption) > MAX_CAPTION:
            raise DatasetError(f"a caption has at most {MAX_CAPTION} characters; shorten it")
        path = self.picture(project, name)
        write_atomically(path.with_suffix(".txt"), (one_line(caption) + "\n").encode())

    def ingest(self, project: str, uploads: list[Path]) -> tuple[str, int, list[str]]:
        """Copies uploads into a project, each checked first: (project, pictures kept, what was left out and why)."""
        project = clean_name(project) or "my-pictures"
        folder = self.datasets / project
        folder.mkdir(parents=True, exist_ok=True)
        kept, problems = 0, []
        for upload in uploads:
            suffix = upload.suffix.lower()
            name = clean_name(upload.stem) or "picture"
            if suffix in _TEXT_SUFFIXES:
                text = one_line(upload.read_bytes()[: 4 * MAX_CAPTION].decode("utf-8", errors="replace"))
                write_atomically(folder / f"{name}.txt", (text[:MAX_CAPTION] + "\n").encode())
            elif suffix not in SUFFIXES:
                problems.append(f"{upload.name} is no picture; use png, jpg, webp, bmp, tiff, gif or avif")
            else:
                try:
                    open_picture(upload)
                except DatasetError as error:
                    problems.append(str(error))
                else:
                    half_written = folder / f".tmp-{name}{suffix}"
                    shutil.copyfile(upload, half_written)
                    half_written.replace(folder / f"{name}{suffix}")
                    kept += 1
        return project, kept, problems


def clean_name(text: str) -> str:
    """A safe file or folder name in any script: letters, digits, space, dot, dash and underscore."""
    kept = re.sub(r"[^\w .\-]", "", one_line(text)).strip(" .")
    return kept[:80].strip(" .")


def cards_html(project: str, cards: list[Card]) -> str:
    """Thumbnails with their captions beside them; the page's script saves a caption when its field is left."""
    if not cards:
        return '<p class="hint">No pictures yet. Drop some above: ten to thirty are plenty.</p>'
    from urllib.parse import quote

    cells = []
    for card in cards:
        name, place = html.escape(card.name, quote=True), f"{quote(project)}/{quote(card.name)}"
        cells.append(
            f'<li class="card"><img src="/thumb/{place}" alt="{name}" loading="lazy" width="96" height="96">'
            f'<label><span class="file">{name}</span><textarea class="caption" rows="2" maxlength="{MAX_CAPTION}" '
            f'data-place="{place}" placeholder="What is in the picture?">{html.escape(card.caption)}</textarea>'
            f'<span class="saved" role="status"></span></label></li>'
        )
    return f'<ul class="cards">{"".join(cells)}</ul>'
