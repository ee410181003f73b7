"""Work on LoRA files for the page: a job directory says what, and the new file appears with what it is beside it.

outputs/.making-<id>/
  job.json       {"tool": "merge", "terms": [["/.../a.safetensors", 1.0], ...], "method": "concat", "rank": 0, "out": "..."}
                 {"tool": "resize", "source": "...", "rank": 16, "out": "..."}
                 {"tool": "convert", "source": "...", "form": "diffusers", "out": "..."}
                 {"tool": "check", "source": "..."}                                     what was imported
                 {"tool": "choose", "run": "...", "step": 200, "strength": 0.8}         the one that the artist marked
  events.jsonl   started, checked, ended: as of a training (trainer/runs/events.py)
  and beside the new file what it is (trainer/headers/sidecars.py)
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.errors import LoraFileError, TrainerError
from trainer.headers.edit_metadata import Label, relabel
from trainer.headers.lora import recognise
from trainer.headers.sidecars import CHOICE, ENTRY
from trainer.json_files import read_object
from trainer.runs.run import Run, claim
from trainer.runs.work import run_to_end


def work(folder: Path, models: Path) -> str:
    """Runs the tool that a job directory names; returns "finished" or "failed", as the last event does."""
    run = Run(folder)
    with claim(run):
        run.emit("started")
        try:
            return run_to_end(
                run,
                lambda: _run_tool(run, models),
                interrupted="Stopped at once; no file was changed",
            )
        except TrainerError:
            return "failed"  # the message is in the events, where the page reads it


def _run_tool(run: Run, models: Path) -> str:
    job = json.loads((run.path / "job.json").read_text(encoding="utf-8"))
    run.emit("stage", stage=job["tool"])
    facts = {"choose": _choose, "check": _checked}.get(job["tool"], _made)(job, models)
    run.emit("checked", takes=facts["takes"])
    return "finished"


def _made(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """A new file in a folder of its own."""
    out = Path(job["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        of = _written(job, out)
        facts = {
            "origin": job["tool"],
            "of": of,
            "made": time.time(),
            "takes": takes(out, models),
            "problem": "",
        }
    except TrainerError:
        shutil.rmtree(out.parent, ignore_errors=True)  # the folder was made for this file alone
        raise
    write_atomically(
        out.parent / ENTRY, json.dumps(facts, ensure_ascii=False).encode()
    )  # last: it says that the file is whole
    return facts


def _checked(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """What is said from now on of a file that is there; one that was deleted meanwhile does not come back."""
    from trainer.lora_file.reader import read_modules
    from trainer.lora_file.scales import file_notice

    file = Path(job["source"])
    kept = read_object(file.parent / ENTRY)
    facts: dict[str, Any] = {"takes": [], "problem": ""}
    try:
        read_modules(file)  # every tensor accounted for, every value a number
        facts["takes"] = takes(file, models)
        facts["problem"] = file_notice(file)
    except TrainerError as error:
        facts["problem"] = str(error)
    facts = {"origin": "check", "of": [], "made": time.time(), **kept, **facts}
    try:
        write_atomically(file.parent / ENTRY, json.dumps(facts, ensure_ascii=False).encode())
    except FileNotFoundError:
        raise LoraFileError(f"{file.name} was deleted while it was being read") from None
    return facts


def _written(job: dict[str, Any], out: Path) -> list[str]:
    """Writes what the job asks for; the names of what it was made of."""
    if job["tool"] == "merge":
        from trainer.lora_file.edit.merge import Term, merge

        terms = [Term(Path(file), float(weight)) for file, weight in job["terms"] if weight]
        if not terms:
            raise LoraFileError("every weight is 0, which merges nothing; give one of them a weight")
        merge(out, terms, method=job["method"], rank=job.get("rank") or None)
        return [term.file.stem for term in terms]
    source = Path(job["source"])
    if job["tool"] == "resize":
        from trainer.lora_file.edit.resize import resize

        resize(source, out, rank=int(job["rank"]))
    else:
        from trainer.lora_file.edit.convert import convert

        convert(source, out, job["form"])
    return [source.stem]


def _choose(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """The file of a checkpoint, with the strength as its preferred weight; from then on it is the training's file."""
    run, step = Run(Path(job["run"])), int(job["step"])
    config = run.config
    final = recognise(run.lora_file).metadata if run.lora_file.is_file() else {}
    file = run.lora_file
    if final.get("ss_steps") != str(step):
        from trainer.training.export_checkpoint import export_checkpoint

        file = run.path / f"{config.name}-{step}.safetensors"
        export_checkpoint(run, step, file, models)
    label = Label.of(recognise(file).metadata)
    relabel(file, dataclasses.replace(label, weight=float(job["strength"])).changes())
    facts = {
        "step": step,
        "strength": float(job["strength"]),
        "file": file.name,
        "takes": takes(file, models),
        "made": time.time(),
    }
    write_atomically(run.path / CHOICE, json.dumps(facts, ensure_ascii=False).encode())
    return facts


def takes(file: Path, models: Path) -> list[str]:
    """Tools that take the whole file. Raises LoraFileError."""
    from trainer.lora_file.compatibility.check import check_file

    return [verdict.tool for verdict in check_file(file, bases=models).verdicts if verdict.whole]
