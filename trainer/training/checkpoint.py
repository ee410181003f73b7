"""Checkpoints: adapter, optimizer and step, from which a resumed run continues to the same bytes.

    checkpoints/step-100/
      adapter.safetensors      fp32 master weights
      optimizer.safetensors    moments
      average.safetensors      the weights of the file, where they are an average (trainer/training/ema.py)
      state.json               step, the optimizer's numbers, fp16's loss scale, version, SHA-256 of all files

Random generators are not stored, since each step seeds its own from the run's seed and the step's number. A
checkpoint is written under a temporary name, synced and renamed; only then are older ones removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainer import __version__
from trainer.adapter.flat_parameters import join_state, split_state
from trainer.adapter.lora import Adapter
from trainer.atomic_files import replacing
from trainer.errors import NotFiniteError
from trainer.runs.run import Run
from trainer.training.ema import EmaWeights

_ADAPTER, _OPTIMIZER, _AVERAGE = "adapter.safetensors", "optimizer.safetensors", "average.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint as a copy in the CPU's memory: training goes on while it is written."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]  # by file
    optimizer: dict[str, Any]  # the optimizer's state without its tensors
    scaler: dict[str, Any]  # the loss scale and its age in steps; empty without a scaler


@dataclass
class TrainingState:
    """Everything that the next step depends on.

    Attributes:
        optimizer: the optimizer itself, not accelerate's wrapper.
        scaler: fp16's loss scaler.
        first_step: steps done before this process.
    """

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    ema: EmaWeights | None = None
    scaler: torch.amp.GradScaler | None = None
    first_step: int = 0

    def snapshot(self, step: int) -> Snapshot:
        """Returns a copy of the state after `step` steps."""
        tensors, numbers = _flat(split_state(self.optimizer, self.adapter.flat_vectors))
        files = {_ADAPTER: self.adapter.tensors(), _OPTIMIZER: tensors}
        averaged = self.ema.tensors() if self.ema else None
        if averaged is not None:
            files[_AVERAGE] = averaged
        return Snapshot(step, files, numbers, self.scaler.state_dict() if self.scaler else {})

    def load_newest(self, run: Run) -> tuple[int, list[str]]:
        """Restores the newest undamaged checkpoint; returns (step, 0 for none; names of damaged ones)."""
        damaged = []
        for path in checkpoints(run):
            try:
                state, files = _read(path)
            except (OSError, ValueError, KeyError, SafetensorError):
                damaged.append(path.name)
                continue
            self.adapter.load(load(files[_ADAPTER]))
            optimizer_state = _unflat(load(files[_OPTIMIZER]), state["optimizer"])
            self.optimizer.load_state_dict(
                join_state(optimizer_state, self.optimizer, self.adapter.flat_vectors)
            )
            if self.ema and _AVERAGE in files:
                self.ema.load(load(files[_AVERAGE]), state["step"])
            if self.scaler and state.get("scaler"):  # checkpoints of version 0.1 have none
                self.scaler.load_state_dict(state["scaler"])
            self.first_step = state["step"]
            break
        return self.first_step, damaged

    def is_finite(self) -> bool:
        """Returns True when no weight of the adapter is NaN or infinite."""
        return all(bool(torch.isfinite(vector).all()) for vector in self.adapter.vectors())


def resume(run: Run, state: TrainingState) -> int:
    """Restores the newest undamaged checkpoint; returns its step, 0 for none. Emits damaged ones."""
    step, damaged = state.load_newest(run)
    for name in damaged:
        run.emit("problem", message=f"checkpoint {name} is damaged and was skipped")
    if step:
        run.emit("stage", stage="resuming", done=step, total=run.config.steps)
    return step


class CheckpointWriter:
    """Writes checkpoints in a thread beside the training, one at a time.

    An error in the thread is raised by the next call. A checkpoint appears complete or not at all, so a kill
    while one is written costs the steps since the one before.
    """

    def __init__(self, run: Run, state: TrainingState, keep: int) -> None:
        """Creates the thread.

        Args:
            keep: the number of newest checkpoints that are not removed.
        """
        self.run, self.state, self.keep = run, state, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def write(self, step: int, always_keep: int | None = None) -> None:
        """Copies the state after `step` steps and begins to write it, once the last checkpoint is written.

        Args:
            always_keep: a step whose checkpoint is not removed, however old it is.
        """
        snapshot = self.state.snapshot(step)
        self.wait()
        self._pending = self._thread.submit(_write, self.run, snapshot, self.keep, always_keep)

    @contextlib.contextmanager
    def saved_on_divergence(self, step: int, always_keep: int | None) -> Iterator[None]:
        """Writes a checkpoint of step `step` when the block raises NotFiniteError, which is raised again.

        It is written only where this process has trained a step and all weights are finite. Without it, the
        user would lose the steps since the last checkpoint.
        """
        try:
            yield
        except NotFiniteError:
            if self.run.is_main_process and step > self.state.first_step and self.state.is_finite():
                self.write(step, always_keep)
            self.wait()
            raise

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk; raises the error of its writing."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.wait()
        self._thread.shutdown()


def _write(run: Run, snapshot: Snapshot, keep: int, always_keep: int | None) -> Path:
    """Writes `step-N` and removes all others but the newest `keep` and step `always_keep`."""
    files = {name: save(tensors) for name, tensors in snapshot.tensors.items()}
    state = {
        "version": __version__,
        "step": snapshot.step,
        "optimizer": snapshot.optimizer,
        "scaler": snapshot.scaler,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files["state.json"] = json.dumps(state).encode()
    target = run.checkpoints / f"step-{snapshot.step}"
    with replacing(target) as temporary:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        if target.exists():  # a damaged one that `load_newest` skipped
            shutil.rmtree(target)
    for old in checkpoints(run)[keep:]:
        if old.name != f"step-{always_keep}":
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Run) -> list[Path]:
    """Returns the folders of a run's checkpoints, the newest first."""
    folders = [path for path in run.checkpoints.glob("step-*") if path.name[5:].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def load_adapter(path: Path, adapter: Adapter) -> None:
    """Loads only the weights of a checkpoint, the averaged ones where the file would have them."""
    adapter.load(read_adapter(path))


def read_adapter(path: Path) -> dict[str, torch.Tensor]:
    """Returns a checkpoint's fp32 matrices by `part/path.role`, averaged where the file would have them so.

    Raises:
        OSError, ValueError, KeyError, SafetensorError: the checkpoint is missing or damaged.
    """
    _, files = _read(path)
    return load(files.get(_AVERAGE, files[_ADAPTER]))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    state = json.loads((path / "state.json").read_text())
    files = {name: (path / name).read_bytes() for name in state["sha256"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != state["sha256"][name]:
            raise ValueError(f"{path.name}/{name} is damaged")
    return state, files


def _flat(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Splits an optimizer's state into tensors (`3.exp_avg`, `group0.k`) and the rest, for JSON."""
    tensors: dict[str, torch.Tensor] = {}

    def without_tensors(owner: str, values: dict[str, Any]) -> dict[str, Any]:
        plain = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{owner}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                plain[name] = value
        return plain

    numbers = {
        "state": {
            str(index): without_tensors(str(index), values) for index, values in state["state"].items()
        },
        "param_groups": [
            without_tensors(f"group{number}", group) for number, group in enumerate(state["param_groups"])
        ],
    }
    return tensors, numbers


def _unflat(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    """Joins what `_flat` has split."""
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers["state"].items()
    }
    # JSON turns tuples into lists; some optimizers unpack or compare `betas` as a tuple.
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
