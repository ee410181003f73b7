"""What a resumed run goes on from: adapter, optimizer and step. Random numbers need no saving: each step draws its own.

    checkpoints/step-100/
      adapter.safetensors      fp32 masters
      optimizer.safetensors    moments
      average.safetensors      the weights that the file takes, when they are an average
      state.json               step, the optimizer's numbers, fp16's loss scale, SHA-256 of all files

A checkpoint is written under a temporary name, synced, renamed, and only then are older ones removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainer.adapter.flat_parameters import join_state, split_state
from trainer.adapter.lora import Adapter
from trainer.atomic_files import replacing
from trainer.runs.run import Run
from trainer.training.ema import EmaWeights
from trainer.version import __version__

Scaler = torch.amp.GradScaler


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint keeps, copied into the CPU's memory: training may go on while it is written."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]  # of each file
    optimizer: dict[str, Any]  # what of the optimizer is no tensor
    scaler: dict[str, Any]  # the loss scale and how long it has held; empty without one


def snapshot(
    step: int,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    average: EmaWeights | None = None,
    scaler: Scaler | None = None,
) -> Snapshot:
    tensors, numbers = _flat(split_state(optimizer, adapter.flats))
    files = {"adapter.safetensors": adapter.tensors(), "optimizer.safetensors": tensors}
    averaged = average.tensors() if average else None
    files = files if averaged is None else {**files, "average.safetensors": averaged}
    return Snapshot(step, files, numbers, scaler.state_dict() if scaler else {})


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time; what went wrong in one is raised by the next call.

    A checkpoint is there whole or not at all, so a kill while one is written costs the steps since the one before.
    """

    def __init__(self, run: Run, keep: int) -> None:
        self.run, self.keep = run, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def write(self, kept: Snapshot, spare: int | None = None) -> None:
        """Begins to write, once the checkpoint before is safe."""
        self.settle()
        self._writing = self._writer.submit(_write, self.run, kept, keep=self.keep, spare=spare)

    def settle(self) -> None:
        """Returns when all is on the disk. Raises what the writing raised."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        self.settle()
        self._writer.shutdown()


def _write(run: Run, kept: Snapshot, *, keep: int, spare: int | None) -> Path:
    """Writes `step-N` and removes all but the newest `keep` and step `spare`."""
    step = kept.step
    files = {name: save(tensors) for name, tensors in kept.tensors.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["state.json"] = json.dumps(
        {
            "version": __version__,
            "step": step,
            "optimizer": kept.optimizer,
            "scaler": kept.scaler,
            "sha256": digests,
        }
    ).encode()
    target = run.checkpoints / f"step-{step}"
    with replacing(target) as temporary:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        if target.exists():  # a damaged one that resume passed over
            shutil.rmtree(target)
    for old in checkpoints(run)[keep:]:
        if spare is not None and old.name == f"step-{spare}":
            continue
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Run) -> list[Path]:
    """Newest first."""
    named = [path for path in run.checkpoints.glob("step-*") if path.name[5:].isdigit()]
    return sorted(named, key=lambda path: int(path.name[5:]), reverse=True)


def load_newest(
    run: Run,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    average: EmaWeights | None = None,
    scaler: Scaler | None = None,
) -> tuple[int, list[str]]:
    """Puts the newest whole checkpoint back: (step, names of damaged ones passed over); (0, ...) when there is none."""
    damaged = []
    for path in checkpoints(run):
        try:
            state, files = _read(path)
        except (OSError, ValueError, KeyError, SafetensorError):
            damaged.append(path.name)
            continue
        adapter.load(load(files["adapter.safetensors"]))
        kept = _unflat(load(files["optimizer.safetensors"]), state["optimizer"])
        optimizer.load_state_dict(join_state(kept, optimizer, adapter.flats))
        if average and "average.safetensors" in files:
            average.load(load(files["average.safetensors"]), state["step"])
        if scaler and state.get("scaler"):  # an earlier version kept none
            scaler.load_state_dict(state["scaler"])
        return state["step"], damaged
    return 0, damaged


def load_adapter(path: Path, adapter: Adapter) -> int:
    """Only the weights of one checkpoint, averaged when the file would take them so; its step."""
    step, tensors = read_adapter(path)
    adapter.load(tensors)
    return step


def read_adapter(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """(step, `part/path.role` -> fp32 matrix) of one checkpoint, as the file would take them. OSError or ValueError when damaged."""
    state, files = _read(path)
    return state["step"], load(files.get("average.safetensors", files["adapter.safetensors"]))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    state = json.loads((path / "state.json").read_text())
    files = {name: (path / name).read_bytes() for name in state["sha256"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != state["sha256"][name]:
            raise ValueError(f"{path.name}/{name} is damaged")
    return state, files


def _flat(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors (`3.exp_avg`) and what JSON can hold."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {"state": {}, "param_groups": []}
    for index, entries in state["state"].items():
        numbers["state"][str(index)] = {}
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers["state"][str(index)][name] = value
    for number, group in enumerate(state["param_groups"]):
        plain = {}
        for name, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"group{number}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                plain[name] = value
        numbers["param_groups"].append(plain)
    return tensors, numbers


def _unflat(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in numbers["state"].items()
    }
    groups = [
        {**group, **({"betas": tuple(group["betas"])} if "betas" in group else {})}
        for group in numbers["param_groups"]
    ]
    for key, tensor in tensors.items():
        owner, name = key.split(".", 1)
        if owner.startswith("group"):
            groups[int(owner[5:])][name] = tensor
        else:
            state.setdefault(int(owner), {})[name] = tensor
    return {"state": state, "param_groups": groups}
