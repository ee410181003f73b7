"""An artist's picture folders under `datasets/`: listed, filled by uploads, captioned, shown as thumbnails."""

from __future__ import annotations

import glob
import hashlib
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.captions import Listed, metadata_captions, one_line, sidecar_caption
from trainer.dataset.pictures import SUFFIXES, open_picture
from trainer.dataset.scan import pictures_in, places
from trainer.errors import DatasetError
from trainer.run import write_atomically

THUMBNAIL = 256  # px
MAX_CAPTION = 2000  # characters
_TEXT_SUFFIXES = {".txt", ".caption"}


SAMPLES = ("ink-emoji",)  # come with Impasto; an artist's own pictures do not go in there


@dataclass(frozen=True)
class Card:
    name: str  # `art.png`, or `10_sks cat/art.png` in a kohya-style sub-folder
    caption: str
    version: int  # another one when the picture has been replaced


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

    def latest(self) -> str | None:
        """The project an artist worked on last; the sample set when there is none."""
        names = self.names()
        return next((name for name in names if name not in SAMPLES), names[0] if names else None)

    def fresh(self, name: str) -> str:
        """`name`, or `name-2` ... when that is taken."""
        taken = set(self.names())
        return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if n not in taken)

    def cards(self, name: str) -> list[Card]:
        folder, cards = self.folder(name), []
        for place, _, token in places(folder):
            listed, _ = metadata_captions(place)
            for path in pictures_in(place)[0]:
                caption = sidecar_caption(path)
                if caption is None:
                    caption = listed.get(path.name, Listed(token)).caption
                cards.append(Card(path.relative_to(folder).as_posix(), caption, path.stat().st_mtime_ns))
        return cards

    def picture(self, project: str, name: str) -> Path:
        """A picture of a project. Raises DatasetError for anything else, paths and links out of it included."""
        folder = self.folder(project)
        path = folder / name
        if "\0" in name or path not in pictures_in_all(folder) or not path.resolve().is_relative_to(folder.resolve()):
            raise DatasetError("that picture is not there any more; reload the page")
        return path

    def thumbnail(self, project: str, name: str) -> Path:
        """A small WebP of a picture, made once."""
        path = self.picture(project, name)
        stat = path.stat()
        key = hashlib.sha256(f"{project}/{name}/{stat.st_mtime_ns}/{stat.st_size}".encode()).hexdigest()
        small = self.cache / "thumbnails" / f"{key[:32]}.webp"
        if not small.exists():
            picture = open_picture(path)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            data = io.BytesIO()
            picture.save(data, format="WEBP", quality=82)
            small.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(small, data.getvalue())
        return small

    def save_caption(self, project: str, name: str, caption: str) -> None:
        """Writes the `.txt` beside a picture. Raises DatasetError."""
        if len(caption) > MAX_CAPTION:
            raise DatasetError(f"a caption has at most {MAX_CAPTION} characters; shorten it")
        path = self.picture(project, name)
        write_atomically(path.with_suffix(".txt"), (one_line(caption) + "\n").encode())

    def ingest(self, project: str, uploads: list[Path]) -> tuple[str, int, list[str]]:
        """Copies uploads into a project, each checked first: (project, pictures kept, what was left out and why).

        Nothing is overwritten: another picture of the same name becomes `name-2`, and a caption dropped with it follows.
        """
        project = clean_name(project) or self.fresh("my-pictures")
        folder = self.datasets / project
        folder.mkdir(parents=True, exist_ok=True)
        problems: list[str] = []
        stems: dict[str, str] = {}  # of an upload -> under which it is kept
        for upload in uploads:
            if upload.suffix.lower() in _TEXT_SUFFIXES:
                continue
            if upload.suffix.lower() not in SUFFIXES:
                problems.append(f"{upload.name} is no picture; use png, jpg, webp, bmp, tiff, gif or avif")
                continue
            try:
                open_picture(upload)
            except DatasetError as error:
                problems.append(str(error))
                continue
            stems[upload.stem] = _kept(upload, folder)
        for upload in (u for u in uploads if u.suffix.lower() in _TEXT_SUFFIXES):
            stem = stems.get(upload.stem) or clean_name(upload.stem) or "picture"
            text = one_line(upload.read_bytes()[: 4 * MAX_CAPTION].decode("utf-8", errors="replace"))
            write_atomically(folder / f"{stem}.txt", (text[:MAX_CAPTION] + "\n").encode())
        return project, len(stems), problems


def pictures_in_all(folder: Path) -> set[Path]:
    """Every picture of a project, sub-folders included."""
    return {path for place, _, _ in places(folder) for path in pictures_in(place)[0]}


def _kept(upload: Path, folder: Path) -> str:
    """Copies a picture into a folder; the stem it got there. The same picture dropped again stays one."""
    data, suffix = upload.read_bytes(), upload.suffix.lower()
    wanted = clean_name(upload.stem) or "picture"
    for stem in (wanted, *(f"{wanted}-{i}" for i in range(2, 10_000))):
        same_stem = [path for path in folder.glob(f"{glob.escape(stem)}.*") if path.suffix.lower() in SUFFIXES]
        if not same_stem:
            write_atomically(folder / f"{stem}{suffix}", data)
            return stem
        if any(path.suffix.lower() == suffix and path.read_bytes() == data for path in same_stem):
            return stem
    raise DatasetError(f"{folder.name} holds too many pictures called {wanted}; rename some")


def clean_name(text: str) -> str:
    """A safe file or folder name in any script: letters, digits, space, dot, dash and underscore; at most 200 bytes,
    so that a suffix still fits what file systems take."""
    kept = re.sub(r"[^\w .\-]", "", one_line(text)).strip(" .")
    return kept[:80].encode()[:200].decode(errors="ignore").strip(" .")


def cards_html(project: str, cards: list[Card]) -> str:
    """Thumbnails with their captions beside them; the page's script saves a caption when its field is left."""
    if not cards:
        return '<p class="hint">No pictures yet. Drop some above: ten to thirty are plenty.</p>'
    from urllib.parse import quote

    cells = []
    for card in cards:
        name, place = html.escape(card.name, quote=True), f"{quote(project)}/{quote(card.name)}"
        cells.append(
            f'<li class="card"><img src="/thumb/{place}?v={card.version}" alt="{name}" loading="lazy" width="96" height="96">'
            f'<label><span class="file">{name}</span><textarea class="caption" rows="2" maxlength="{MAX_CAPTION}" '
            f'data-place="{place}" placeholder="What is in the picture?">{html.escape(card.caption)}</textarea>'
            f'<span class="saved" role="status"></span></label></li>'
        )
    return f'<ul class="cards">{"".join(cells)}</ul>'
