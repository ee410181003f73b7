"""Merges, resizes and converts LoRAs of the library into new entries: checks the arguments and starts the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.headers.sidecars import TOOLS
from ui.store.file_jobs import FileJobs
from ui.store.library import Library, LoraEntry, optional_weight

_FORMATS = ("kohya", "kohya-diffusers", "diffusers")
_MAX_RANK = 1024


@dataclass(frozen=True, kw_only=True)
class LoraEdit:
    """One operation that creates a new LoRA file from others."""

    tool: str  # "merge", "resize" or "convert"
    keys: tuple[str, ...]  # of the library; only "merge" uses more than the first
    weights: tuple[Any, ...] = ()  # of "merge", one for each key
    rank: Any = 0  # of "resize" and "merge"; 0 merges without reducing the rank
    form: str = "kohya"  # the key format, of "convert"
    name: str = ""  # of the new entry; chosen from the sources if empty


def start_edit(library: Library, edit: LoraEdit) -> str:
    """Starts a job that creates a new entry; returns the job's id.

    Raises:
        TrainerError: an argument is not valid, or a LoRA does not exist.
    """
    sources = [library.entry(key) for key in edit.keys]
    if edit.tool not in TOOLS or not sources:
        raise TrainerError("choose a LoRA first")
    arguments = _arguments(edit, sources)
    out = library.new_file(edit.name or _default_name(edit, sources))
    return FileJobs(library.runs).start(edit.tool, **arguments, out=str(out.resolve()))


def _arguments(edit: LoraEdit, sources: list[LoraEntry]) -> dict[str, Any]:
    paths = [str(source.file.resolve()) for source in sources]
    if edit.tool == "merge":
        if len(sources) < 2 or len(set(edit.keys)) < len(edit.keys):
            raise TrainerError("choose two to four different LoRAs to merge")
        terms = [[path, optional_weight(weight)] for path, weight in zip(paths, edit.weights, strict=True)]
        if any(weight is None for _, weight in terms):
            raise TrainerError("enter a weight from -2 to 2 for each LoRA")
        rank = _checked_rank(edit.rank) if edit.rank else 0
        return {"terms": terms, "method": "svd" if rank else "concat", "rank": rank}
    if edit.tool == "resize":
        return {"source": paths[0], "rank": _checked_rank(edit.rank)}
    if edit.form not in _FORMATS:
        raise TrainerError("choose a key format from the list")
    return {"source": paths[0], "form": edit.form}


def _checked_rank(value: Any) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value != int(value) or not 1 <= value <= _MAX_RANK:
        raise TrainerError(f"the rank must be a whole number from 1 to {_MAX_RANK}")
    return int(value)


def _default_name(edit: LoraEdit, sources: list[LoraEntry]) -> str:
    stems = [source.stem for source in sources]
    names = {
        "merge": " and ".join(stems),
        "resize": f"{stems[0]}-rank{edit.rank or 0:g}",
        "convert": f"{stems[0]}-{edit.form}",
    }
    return names.get(edit.tool, stems[0])
