"""Duration of the commands that read files and compute little, beside the start of Python with numpy and Pillow."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import INK, ROOT
from benchmarks.report import Figure

_START = ("-c", "import numpy, PIL.Image")


def figures(folder: Path, *, repeat: int = 3) -> list[Figure]:
    """Measures each command `repeat` times in turns with the start of Python; the median and its ratio.

    Args:
        folder: for the LoRA file that the commands read.
        repeat: number of rounds.
    """
    file = folder / "ink.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "tests" / "golden" / "recorded" / "files" / "style.safetensors", file)
    commands = {
        "lora inspect": ("-m", "trainer", "lora", "inspect", str(file)),
        "lora check": ("-m", "trainer", "lora", "check", str(file)),
        "base check": ("-m", "trainer", "base", "check", "tiny-sdxl"),
        "dataset check of 24 pictures": ("-m", "trainer", "dataset", "check", str(INK)),
        "device": ("-m", "trainer", "device"),
    }
    floor: list[float] = []
    durations: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeat + 1):  # the first round reads the files from the disk and is not counted
        floor.append(_seconds(_START))
        for name, command in commands.items():
            durations[name].append(_seconds(command))
    python = statistics.median(floor[1:])
    return [
        Figure(
            group="commands",
            what=f"python -m trainer {name}, beside the start of Python with numpy and Pillow",
            value=statistics.median(seconds[1:]),
            unit="s",
            floor=python,
            all=tuple(seconds[1:]),
        )
        for name, seconds in durations.items()
    ]


def _seconds(arguments: tuple[str, ...]) -> float:
    """Returns the duration of a Python process. `lora check` may exit with 1, which is its verdict."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False, text=True)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - begun
