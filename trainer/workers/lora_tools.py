"""The page's tools for LoRA files, each run in a child process: merge, resize, convert, check, choose.

outputs/.making-<id>/
  job.json       {"tool": "merge", "terms": [["/.../a.safetensors", 1.0], ...], "method": "concat", "rank": 0,
                  "out": "..."}
                 {"tool": "resize", "source": "...", "rank": 16, "out": "..."}
                 {"tool": "convert", "source": "...", "form": "diffusers", "out": "..."}
                 {"tool": "check", "source": "..."}                                an imported file
                 {"tool": "choose", "run": "...", "step": 200, "strength": 0.8}    a checkpoint of a training
  events.jsonl   started, checked, ended, as in a training (trainer/runs/events.py)

A tool that writes a file also writes `entry.json` or `choice.json` beside it (trainer/headers/sidecars.py).
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

Job = dict[str, Any]  # content of job.json
Sidecar = dict[str, Any]  # content of entry.json or choice.json


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
    tool = {"choose": _choose_checkpoint, "check": _check_import}.get(job["tool"], _make_file)
    sidecar = tool(job, models)
    run.emit("checked", takes=sidecar["takes"])
    return "finished"


def _make_file(job: Job, models: Path) -> Sidecar:
    """Merges, resizes or converts into a new file in a folder of its own; returns its entry."""
    out = Path(job["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        sources = _write_file(job, out)
        entry = {
            "origin": job["tool"],
            "of": sources,
            "made": time.time(),
            "takes": compatible_tools(out, models),
            "problem": "",
        }
    except TrainerError:
        shutil.rmtree(out.parent, ignore_errors=True)  # the folder was made for this file alone
        raise
    _write_json(out.parent / ENTRY, entry)  # last: the page lists a folder once it has an entry
    return entry


def _write_file(job: Job, out: Path) -> list[str]:
    """Writes the file of a job; returns the names of the files that it was made of."""
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


def _check_import(job: Job, models: Path) -> Sidecar:
    """Reads an imported file as a whole and adds compatible tools and problems to its entry.

    Raises:
        LoraFileError: the file was deleted meanwhile; its folder is not created again.
    """
    from trainer.lora_file.reader import read_modules
    from trainer.lora_file.scales import file_notice

    file = Path(job["source"])
    previous = read_object(file.parent / ENTRY)
    result: Sidecar = {"takes": [], "problem": ""}
    try:
        read_modules(file)  # raises for a tensor of no module, and for values that are not finite
        result["takes"] = compatible_tools(file, models)
        result["problem"] = file_notice(file)
    except TrainerError as error:
        result["problem"] = str(error)
    entry = {"origin": "check", "of": [], "made": time.time(), **previous, **result}
    try:
        _write_json(file.parent / ENTRY, entry)
    except FileNotFoundError:
        raise LoraFileError(f"{file.name} was deleted while it was being read") from None
    return entry


def _choose_checkpoint(job: Job, models: Path) -> Sidecar:
    """Makes a checkpoint the training's file, with a strength as its preferred weight; returns the choice."""
    run, step = Run(Path(job["run"])), int(job["step"])
    final = recognise(run.lora_file).metadata if run.lora_file.is_file() else {}
    file = run.lora_file
    if final.get("ss_steps") != str(step):
        from trainer.training.export_checkpoint import export_checkpoint

        file = run.path / f"{run.config.name}-{step}.safetensors"
        export_checkpoint(run, step, file, models)
    strength = float(job["strength"])
    label = Label.of(recognise(file).metadata)
    relabel(file, dataclasses.replace(label, weight=strength).changes())
    choice = {
        "step": step,
        "strength": strength,
        "file": file.name,
        "takes": compatible_tools(file, models),
        "made": time.time(),
    }
    _write_json(run.path / CHOICE, choice)
    return choice


def compatible_tools(file: Path, models: Path) -> list[str]:
    """Names of the tools that read every tensor of a file. Raises LoraFileError where it is no LoRA."""
    from trainer.lora_file.compatibility.check import check_file

    return [verdict.tool for verdict in check_file(file, bases=models).verdicts if verdict.is_complete]


def _write_json(path: Path, content: Sidecar) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False).encode())
