"""Golden trainings: their settings, their pictures and the process that runs them.

Only the command line and the files that it writes are used here, so that modules of the trainer can move
freely.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.conftest import INK, ROOT

RECORDED = Path(__file__).resolve().parent / "recorded"
PICTURES = ("airplane", "bell", "cactus", "key", "owl", "star")
PLACEHOLDER = "@DATASET@"  # the folder of pictures in a recorded manifest.json
STEPS = 20
STOPPED_AFTER = 7  # the signal comes while the step after this one is computed

# Kernels that every x86-64 machine has, and one thread: sums are then taken in the same order on all of them.
PINNED = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
}
# Packages that compute; another version of one may change the last bits.
NUMERICAL = ("torch", "diffusers", "transformers", "pillow")

_SAMPLE = ("--sample-prompt", "a star --w 64 --h 64 --s 1")
_SIZE = ("--steps", str(STEPS), "--batch", "2", "--resolution", "64", "--precision", "fp32", "--rank", "2")
# Settings left at auto depend on the machine's free memory.
_FIXED = ("gradient_checkpointing=none", "quantised_base=none", "compile=off", "keep_checkpoints=1")
_CHARACTER = ("--preset", "character", "--alpha", "1")  # alpha / rank as in the preset
_FEW_LAYERS = ("--set", 'include_layers=["*.attn2.*"]')  # these networks take several times as long
CASES: dict[str, tuple[str, ...]] = {
    "style": ("--preset", "style", "--alpha", "2", "--set", "conv_rank=1", "--set", "conv_alpha=1"),
    "character": _CHARACTER,
    "dora": (*_CHARACTER, *_FEW_LAYERS, "--set", "network=dora"),
    "loha": (*_CHARACTER, *_FEW_LAYERS, "--set", "network=loha"),
    "lokr": (*_CHARACTER, *_FEW_LAYERS, "--set", "network=lokr"),
    "text-encoders": (
        *(*_CHARACTER, "--train-text-encoder-1", "--train-text-encoder-2"),
        *("--set", "text_encoder_1_rank=1", "--set", "text_encoder_2_rank=1"),
    ),
    "masks": (
        *(*_CHARACTER, "--set", "mask=file", "--set", "mask_outside=0.1"),
        *("--set", "mask_normalisation=none"),  # as version 0.1, which recorded the files
    ),
    "validation": (*_CHARACTER, "--set", "validation_share=0.17", "--set", "validation_every=5"),
}
OPENED = ("style", "character", "dora", "loha", "lokr", "text-encoders")  # one file for each network
RUN_CASE = "validation"  # the case whose run directory is recorded, finished and stopped


@dataclass(frozen=True, kw_only=True)
class Command:
    """One `python -m trainer ...`, stopped by SIGTERM after a step of its run when `stop_after` is set."""

    arguments: list[str]
    stop_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """The end of a command."""

    status: int
    out: str
    err: str


def make_dataset(folder: Path) -> Path:
    """Copies a few bundled pictures with their captions and draws a mask for each; returns the folder."""
    folder.mkdir(parents=True)
    for number, name in enumerate(PICTURES):
        for suffix in (".png", ".txt"):
            shutil.copyfile(INK / f"{name}{suffix}", folder / f"{name}{suffix}")
        mask = Image.new("L", (512, 512), 0)
        ImageDraw.Draw(mask).rectangle((32 * number, 64, 255 + 32 * number, 383), fill=255)
        mask.save(folder / f"{name}.mask.png")
    return folder


def train_command(case: str, dataset: Path, output: Path, *, stop_after: int | None = None) -> Command:
    """The training of a case into the run directory `output`."""
    fixed = [word for setting in _FIXED for word in ("--set", setting)]
    words = ["train", str(dataset), "--output", str(output), "--trigger", "ink", "--name", case]
    return Command(arguments=[*words, *_SIZE, *_SAMPLE, *fixed, *CASES[case]], stop_after=stop_after)


def opening_commands(file: Path, pictures: Path) -> dict[str, Command]:
    """The commands that open a LoRA file: inspect, check, and a small preview into `pictures`."""
    look = ["--prompt", "a star", "--strengths", "1", "--size", "64x64", "--steps", "4"]
    return {
        "inspect": Command(arguments=["lora", "inspect", str(file)]),
        "check": Command(arguments=["lora", "check", str(file)]),
        "preview": Command(arguments=["preview", str(file), *look, "--out-dir", str(pictures)]),
    }


def convert_command(file: Path, out: Path, form: str) -> Command:
    """The conversion of a LoRA file to the names of other tools."""
    return Command(arguments=["lora", "convert", str(file), str(out), "--to", form])


def run_commands(commands: dict[str, Command], workspace: Path, *, pinned: bool = True) -> dict[str, Done]:
    """Runs the commands in turn in a single process with pinned kernels, so that torch loads once."""
    asked, answered = workspace / "commands.json", workspace / "done.json"
    asked.write_text(json.dumps({name: asdict(command) for name, command in commands.items()}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IMPASTO_", "PYTEST_"))}
    environment = {**kept, **(PINNED if pinned else {"OMP_NUM_THREADS": "1"})}
    worker = [sys.executable, "-m", "tests.golden.worker", str(asked), str(answered)]
    subprocess.run(worker, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {name: Done(**facts) for name, facts in json.loads(answered.read_text()).items()}


def curves(run: Path) -> dict[str, list[list[float]]]:
    """`loss` and `validation` of a run directory as lists of [step, loss], from its events."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {"loss": "step", "validation": "validation"}
    return {
        name: [[event["step"], event["loss"]] for event in events if event["kind"] == kind]
        for name, kind in kinds.items()
    }


def tensor_digest(path: Path) -> str:
    """SHA-256 of the tensors of a .safetensors file: name, dtype, shape and bytes, in order of names."""
    import torch

    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def largest_difference(found: Path, recorded: Path) -> float:
    """The largest |a - b| / |b| (Frobenius norms) of two files' tensors.

    Infinite if names or shapes differ.
    """
    with safe_open(found, framework="pt") as one, safe_open(recorded, framework="pt") as other:
        if set(one.keys()) != set(other.keys()):
            return float("inf")
        names = sorted(other.keys())
        pairs = [(one.get_tensor(name).double(), other.get_tensor(name).double()) for name in names]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)


def versions() -> dict[str, str]:
    """The architecture and the versions of the packages that compute, without build tags such as `+cpu`."""
    return {"machine": platform.machine(), **{name: version(name).partition("+")[0] for name in NUMERICAL}}


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, facts: Any) -> None:
    """Writes a JSON file with sorted keys, one value a line."""
    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def relocate(run: Path, old: str, new: str) -> None:
    """Replaces the folder of pictures in a run's manifest.json."""
    path = run / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
