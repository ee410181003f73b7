"""Every finished LoRA of an artist: looked up, labelled, taken in, made into others, chosen, shared and deleted. No gradio.

outputs/<run>/                     a training with a file; choice.json names the checkpoint that the artist marked
outputs/.library/<name>/           a file made elsewhere, or of others
  <name>.safetensors
  entry.json                       where it comes from (trainer/workers/lora_tools.py); written last
outputs/.making-<id>/              work that makes or changes a file
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.errors import LoraFileError, RunError, TrainerError
from trainer.headers.edit_metadata import Label, checked, relabel
from trainer.headers.lora import recognise
from trainer.headers.sidecars import CHOICE, ENTRY, TOOLS
from trainer.json_files import read_object
from trainer.runs import events
from trainer.runs.job import FILES
from trainer.runs.run import Run
from trainer.sampling_config import checked_weight
from ui.store.naming import clean_name, new_folder
from ui.store.runs import Runs
from ui.store.thumbnails import THUMBNAIL, Thumbnails

OUTSIDE = "library:"  # begins the key of what is no training; a training's name can hold no colon
_MOST_PIXELS = 4_000_000  # of a picture inside a file


@dataclass(frozen=True, kw_only=True)
class LoraEntry:
    """One LoRA, as its header and what lies beside it tell."""

    key: str
    folder: Path
    file: Path
    facts: dict[str, str]
    origin: str  # "train", "import", "merge", "resize" or "convert"
    made: float  # seconds since 1970
    of: tuple[str, ...] = ()  # what it was made of
    takes: tuple[str, ...] = ()  # tools that take the whole file
    problem: str = ""

    @property
    def label(self) -> Label:
        return Label.of(self.facts)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.key.removeprefix(OUTSIDE)

    @property
    def stem(self) -> str:
        """Of its download: `ink-300`, the training's name and steps; a file from elsewhere keeps its own."""
        steps = self.facts.get("ss_steps", "")
        if self.origin != "train" or not steps.isdecimal() or self.file.stem.endswith(f"-{steps}"):
            return self.file.stem
        return f"{self.file.stem}-{steps}"

    @property
    def base(self) -> str:
        return self.facts.get("ss_sd_model_name", "")


@dataclass(frozen=True)
class Library:
    runs: Runs

    @property
    def shelf(self) -> Path:
        return self.runs.outputs / ".library"

    def all(self) -> list[str]:
        """All entries, newest first."""
        outside = [
            f"{OUTSIDE}{path.parent.name}"
            for path in self.shelf.glob(f"*/{ENTRY}")
            if not path.parent.name.startswith(".")
        ]
        found = [entry for key in (*self.runs.finished(), *outside) if (entry := self._entry(key))]
        return [entry.key for entry in sorted(found, key=lambda entry: -entry.made)]

    def entries(self) -> list[LoraEntry]:
        return [entry for key in self.all() if (entry := self._entry(key))]

    def revision(self) -> str:
        """Another one whenever a card would look different; cheap enough to be asked every second."""
        marks = ("*/*.safetensors", f"*/{CHOICE}", "*/samples/strip.png", f".library/*/{ENTRY}")
        found = sorted(path for mark in marks for path in self.runs.outputs.glob(mark))
        digest = hashlib.sha256()
        for path in found:
            with contextlib.suppress(OSError):
                digest.update(f"{path.relative_to(self.runs.outputs)} {path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def entry(self, key: str) -> LoraEntry:
        """Raises RunError for what is none of ours, paths included."""
        known = (
            key.removeprefix(OUTSIDE) in self._shelved()
            if key.startswith(OUTSIDE)
            else key in self.runs.names()
        )
        found = self._entry(key) if known else None
        if found is None:
            raise RunError("that LoRA is not there any more, or not yet; choose another")
        return found

    def _shelved(self) -> set[str]:
        return {path.parent.name for path in self.shelf.glob(f"*/{ENTRY}")}

    def _entry(self, key: str) -> LoraEntry | None:
        with contextlib.suppress(TrainerError, OSError, ValueError, KeyError):
            if key.startswith(OUTSIDE):
                folder = self.shelf / key.removeprefix(OUTSIDE)
                file, said = folder / f"{folder.name}.safetensors", read_object(folder / ENTRY)
                return LoraEntry(
                    key=key,
                    folder=folder,
                    file=file,
                    facts=_facts(file),
                    origin=said["origin"],
                    made=said["made"],
                    of=tuple(said["of"]),
                    takes=tuple(said["takes"]),
                    problem=said.get("problem", ""),
                )
            run = self.runs.run(key)
            choice = read_object(run.path / CHOICE)
            file = run.path / str(choice.get("file", ""))
            file = file if choice and file.parent == run.path and file.is_file() else run.lora_file
            takes = choice["takes"] if choice.get("file") == file.name else self.runs.view(key)[0].takes
            return LoraEntry(
                key=key,
                folder=run.path,
                file=file,
                facts=_facts(file),
                origin="train",
                made=file.stat().st_mtime,
                takes=tuple(takes),
            )
        return None

    def path(self, key: str) -> str:
        """Of a LoRA's file, for a training to start from. Raises RunError."""
        return str(self.entry(key).file.resolve())

    def choice(self, key: str) -> dict[str, Any]:
        """The checkpoint and strength that the artist marked; {} when none is."""
        return read_object(self.entry(key).folder / CHOICE)

    # Labels

    def relabel(self, key: str, values: dict[str, Any]) -> LoraEntry:
        """Writes what the artist says of a LoRA into its file. Raises TrainerError."""
        entry = self.entry(key)
        texts = {
            name: str(values.get(name) or "")
            for name in ("title", "author", "licence", "description", "tags", "trigger")
        }
        label = Label(**texts, weight=_weight(values.get("weight")), own_work=values.get("own_work") is True)
        relabel(entry.file, checked(label).changes())
        return self.entry(key)

    def prefer(self, key: str, strength: float, step: int | None = None) -> str | None:
        """Makes a strength the preferred one, and a checkpoint the training's file: the id of the work, None when it is done."""
        entry, weight = self.entry(key), _weight(strength)
        if weight is None:
            raise TrainerError("choose a strength from -2 to 2")
        if step is None or entry.facts.get("ss_steps") == str(step):
            values = {**vars(entry.label), "weight": weight}
            self.relabel(key, values)
            if step is not None:
                facts = {
                    "step": step,
                    "strength": weight,
                    "file": entry.file.name,
                    "takes": list(entry.takes),
                    "made": time.time(),
                }
                write_atomically(entry.folder / CHOICE, json.dumps(facts).encode())
            return None
        if step not in self.checkpoints(key):
            raise RunError("that checkpoint is not there any more; choose another")
        return self._start("choose", run=str(entry.folder.resolve()), step=step, strength=weight)

    def checkpoints(self, key: str) -> list[int]:
        """Steps of a training that can be drawn and chosen, first to last."""
        if key.startswith(OUTSIDE):
            return []
        return sorted(
            int(path.name[5:])
            for path in self.runs.run(key).checkpoints.glob("step-*")
            if path.name[5:].isdigit()
        )

    # Files from elsewhere, and of others

    def import_file(self, upload: Path, name: str) -> str:
        """Keeps a LoRA made elsewhere, once its header shows that it is one; its key. Raises LoraFileError.

        What can only be told from the whole file (values that are no numbers, tensors of no module) is told by work that
        this starts; until then the file is there to try.
        """
        wanted = clean_name(Path(name).stem) or "lora"
        try:
            recognise(upload)
        except LoraFileError as error:
            raise LoraFileError(str(error).replace(upload.name, f"{wanted}.safetensors")) from None
        folder = new_folder(self.shelf, wanted)
        file = folder / f"{folder.name}.safetensors"
        try:
            shutil.copyfile(upload, file)
            said = {"origin": "import", "of": [], "takes": [], "made": time.time()}
            write_atomically(folder / ENTRY, json.dumps(said).encode())
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise LoraFileError(
                f"the disk did not take {file.name} ({error.strerror}); make room and drop it again"
            ) from None
        self._start("check", source=str(file.resolve()))
        return f"{OUTSIDE}{folder.name}"

    def make(
        self,
        tool: str,
        keys: Sequence[str],
        *,
        weights: Sequence[float] = (),
        rank: int = 0,
        form: str = "kohya",
        name: str = "",
    ) -> str:
        """Starts work that makes a new entry of others; its id. Raises TrainerError."""
        sources = [self.entry(key) for key in keys]
        if tool not in TOOLS or not sources:
            raise TrainerError("choose a LoRA first")
        file = self._out(name or _made_name(tool, sources, rank, form))
        if tool == "merge":
            if len(sources) < 2 or len(set(keys)) < len(keys):
                raise TrainerError("choose two to four different LoRAs to merge")
            terms = [
                [str(source.file.resolve()), _weight(weight)]
                for source, weight in zip(sources, weights, strict=True)
            ]
            if any(weight is None for _, weight in terms):
                raise TrainerError("give each LoRA a weight from -2 to 2")
            return self._start(
                "merge",
                terms=terms,
                method="svd" if rank else "concat",
                rank=_rank(rank, none=True),
                out=file,
            )
        source = str(sources[0].file.resolve())
        if tool == "resize":
            return self._start("resize", source=source, rank=_rank(rank), out=file)
        if form not in ("kohya", "kohya-diffusers", "diffusers"):
            raise TrainerError("choose a form of the file from the list")
        return self._start("convert", source=source, form=form, out=file)

    def job_status(self, work: str) -> tuple[str, str]:
        """("working" | "finished" | "failed", why it failed) of started work."""
        folder = self.runs.outputs / f".making-{work}"
        if not work.isalnum() or not folder.is_dir():
            return "failed", "that work is not there any more; start it again"
        job = self.runs.queue.find(folder)
        alive = Run(folder).is_alive() or (job is not None and job.state in ("waiting", "running"))
        said, _ = events.read(folder / "events.jsonl")
        ended = next((event for event in said if event["kind"] == "ended"), None)
        if ended:
            return (
                ("finished", "") if ended["how"] == "finished" else ("failed", str(ended.get("message", "")))
            )
        return ("working", "") if alive else ("failed", "the work ended before it was done; start it again")

    def works(self) -> list[tuple[str, str, str]]:
        """(work, how it stands, why) of all that was started and is still known."""
        found = (path.name.removeprefix(".making-") for path in self.runs.outputs.glob(".making-*"))
        return [(work, *self.job_status(work)) for work in sorted(found) if work.isalnum()]

    def _start(self, tool: str, **facts: Any) -> str:
        work = uuid.uuid4().hex
        self._sweep()
        folder = self.runs.outputs / f".making-{work}"
        folder.mkdir(parents=True)
        write_atomically(
            folder / "job.json", json.dumps({"tool": tool, **facts}, ensure_ascii=False).encode()
        )
        self.runs.queue.submit(folder, "lora", ["make", str(folder.resolve())], lane=FILES)
        return work

    def _sweep(self, kept: int = 20) -> None:
        """Only the newest job folders stay: what they made lies elsewhere."""
        folders = sorted(self.runs.outputs.glob(".making-*"), key=lambda path: -path.stat().st_mtime)
        for folder in folders[kept:]:
            if self.job_status(folder.name.removeprefix(".making-"))[0] != "working":
                shutil.rmtree(folder, ignore_errors=True)

    def _out(self, wanted: str) -> str:
        folder = new_folder(self.shelf, clean_name(wanted) or "lora")
        return str((folder / f"{folder.name}.safetensors").resolve())

    # What is seen of it, and its end

    def picture(self, key: str) -> Path | None:
        """The training's own picture nearest to the preferred strength, first prompt."""
        entry = self.entry(key)
        wanted = entry.label.weight if entry.label.weight is not None else 1.0
        drawn = {
            float(path.stem.partition("_s")[2]): path
            for path in (entry.folder / "samples").glob("p00_s*.png")
        }
        return drawn[min(drawn, key=lambda strength: abs(strength - wanted))] if drawn else None

    def cover(self, key: str) -> Image.Image | None:
        """The picture in the file itself; None where there is none that can be read."""
        start, comma, data = self.entry(key).facts.get("modelspec.thumbnail", "").partition(",")
        if not (
            comma and start in ("data:image/jpeg;base64", "data:image/png;base64", "data:image/webp;base64")
        ):
            return None
        with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            picture = Image.open(
                io.BytesIO(base64.b64decode(data, validate=True)), formats=("JPEG", "PNG", "WEBP")
            )
            return picture.convert("RGB") if picture.width * picture.height <= _MOST_PIXELS else None
        return None

    def thumbnail(self, key: str) -> Path:
        """A small WebP for the card. Raises RunError where a LoRA has no picture."""
        small, picture = self.small_pictures(key), self.picture(key)
        if picture:
            return Thumbnails(small.parent).of(small.name, picture)
        file = self.entry(key).file
        place = small / f"cover-{file.stat().st_mtime_ns}.webp"
        if not place.exists():
            cover = self.cover(key)
            if cover is None:
                raise RunError("this LoRA has no picture yet")
            cover.thumbnail((THUMBNAIL, THUMBNAIL))
            data = io.BytesIO()
            cover.save(data, format="WEBP", quality=80)
            small.mkdir(parents=True, exist_ok=True)
            write_atomically(place, data.getvalue())
        return place

    def samples(self, key: str) -> list[Path]:
        """The strip that the training ended with."""
        return sorted((self.entry(key).folder / "samples").glob("p[0-9][0-9]_s*.png"))

    def size_of(self, key: str) -> tuple[int, int]:
        """(files, bytes) that deleting would remove."""
        files = [path for folder in self._folders(key) for path in folder.rglob("*") if path.is_file()]
        return len(files), sum(path.stat().st_size for path in files)

    def delete(self, key: str) -> tuple[int, int]:
        """Removes a LoRA and all that came of it: its folder, its small pictures, drawings with it. (files, bytes). Raises RunError."""
        entry = self.entry(key)
        job = self.runs.queue.find(entry.folder)
        if Run(entry.folder).is_alive() or (job is not None and job.state in ("waiting", "running")):
            raise RunError(f"“{entry.name}” is still training; stop it first")
        removed = self.size_of(key)
        for folder in self._folders(key):
            aside = self.runs.outputs / f".removing-{uuid.uuid4().hex}"
            folder.rename(aside)  # gone at once for everybody, whatever becomes of the rest
            shutil.rmtree(aside)
        return removed

    def _folders(self, key: str) -> list[Path]:
        small = self.small_pictures(key)
        return [
            self.entry(key).folder,
            *_drawings_with(self.runs.outputs, key),
            *([small] if small.is_dir() else []),
        ]

    def small_pictures(self, key: str) -> Path:
        """Where the page's thumbnails of an entry lie."""
        return self.runs.outputs / ".cache" / "results" / key.replace(":", "_")


def _drawings_with(outputs: Path, key: str) -> list[Path]:
    """Folders of the drawings (`ui/store/drawings.py`) that were made with a LoRA."""
    requests = (outputs / ".drawing" / "drawn").glob("*/asked.json")
    return [
        path.parent for path in requests if any(used == key for used, _ in read_object(path).get("files", ()))
    ]


def _weight(value: Any) -> float | None:
    """A weight that is worth writing down; None for none. Raises TrainerError for one that can't be."""
    return None if value is None or value == "" else round(checked_weight(value), 4)


def _rank(value: Any, *, none: bool = False) -> int:
    if none and not value:
        return 0
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != int(value)
        or not 1 <= value <= 1024
    ):
        raise TrainerError("a rank is a whole number from 1 to 1024")
    return int(value)


def _made_name(tool: str, sources: Sequence[LoraEntry], rank: int, form: str) -> str:
    stems = [source.stem for source in sources]
    return {
        "merge": " and ".join(stems),
        "resize": f"{stems[0]}-rank{rank or 0:g}",
        "convert": f"{stems[0]}-{form}",
    }.get(tool, stems[0])


def _facts(file: Path) -> dict[str, str]:
    stat = file.stat()
    return _facts_of(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@functools.lru_cache(maxsize=1000)
def _facts_of(file: Path, *version: int) -> dict[str, str]:
    """A page asks for headers again and again; they change only with their files."""
    return recognise(file).metadata
