"""Speed and peak memory of training by base, resolution, batch, precision and recomputation."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.counted import flops_of_step
from benchmarks.report import Figure
from benchmarks.step import Case
from trainer.hardware.device import find_device, resolve_dtype
from trainer.hardware.precision import has_bf16_instructions
from trainer.planning.memory import WorkloadShape

GROUP = "training"

CPU_CASES = (
    Case(base="bundled", resolution=128, batch=1),
    Case(base="bundled", resolution=128, batch=4),
    Case(base="bundled", resolution=128, batch=4, level="all"),
    Case(base="wide64", resolution=256, batch=1),
    Case(base="wide64", resolution=256, batch=4),
    Case(base="wide64", resolution=256, batch=1, level="all"),
    Case(base="wide64", resolution=256, batch=1, compile="default"),
    Case(base="wide64", resolution=256, batch=1, way="peft"),
    Case(base="wide64", resolution=256, batch=4, way="peft"),
)
# For processors with bf16 instructions.
_WIDE = Case(base="wide64", resolution=256, precision="bf16")
BF16_CASES = (
    _WIDE,
    dataclasses.replace(_WIDE, batch=4),
    dataclasses.replace(_WIDE, way="peft"),
    dataclasses.replace(_WIDE, batch=4, way="peft"),
    dataclasses.replace(_WIDE, feed_forward=True),
    dataclasses.replace(_WIDE, feed_forward=True, way="peft"),
)
_CARD = Case(base="sdxl", resolution=1024, precision="bf16", steps=8)
CARD_CASES = (
    _CARD,
    dataclasses.replace(_CARD, batch=4),
    dataclasses.replace(_CARD, level="all"),
    dataclasses.replace(_CARD, level="feed-forward"),
    dataclasses.replace(_CARD, compile="default"),
    dataclasses.replace(_CARD, batch=4, compile="default"),
    dataclasses.replace(_CARD, compile="reduce-overhead"),
    dataclasses.replace(_CARD, resolution=512, batch=8),
)
QUICK_CASES = (
    Case(base="bundled", resolution=64, batch=1, steps=1),
    Case(base="bundled", resolution=64, batch=2, steps=1),
)


def cases(*, quick: bool, card: bool) -> tuple[Case, ...]:
    """Returns the cases for a quick run, a GPU or a CPU."""
    if quick or card:
        return QUICK_CASES if quick else CARD_CASES
    return CPU_CASES + BF16_CASES * has_bf16_instructions()


def figures(wanted: tuple[Case, ...], repeat: int = 1) -> list[Figure]:
    """Measures each case in a separate process.

    All cases are measured once before the first is repeated, so that slow phases of a machine affect all.
    """
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in wanted}
    for _ in range(repeat):
        for case in wanted:
            measured = _in_child(case)
            if measured:
                found[case].append(measured)
    shown = [figure for case, runs in found.items() if runs for figure in _figures(case, runs)]
    return shown + _against_peft({case: runs for case, runs in found.items() if runs})


def _against_peft(found: dict[Case, list[dict[str, Any]]]) -> list[Figure]:
    """Compares speed and memory of a training step with PEFT's on the same layers."""
    compared = []
    for theirs, runs in found.items():
        ours = found.get(dataclasses.replace(theirs, way="impasto"))
        if theirs.way != "peft" or not ours:
            continue
        times = [one["seconds"] / another["seconds"] for one, another in zip(runs, ours, strict=False)]
        peaks = [max(run["peak"] for run in side) / 1e9 for side in (ours, runs)]
        words = theirs.words.removesuffix(", by PEFT")
        compared += [
            Figure(
                group="against PEFT",
                what=f"times as fast, {words}",
                value=statistics.median(times),
                unit="x",
                all=tuple(times),
            ),
            Figure(
                group="against PEFT", what=f"peak memory, {words}", value=peaks[0], unit="GB", floor=peaks[1]
            ),
        ]
    return compared


def _in_child(case: Case) -> dict[str, Any] | None:
    """Returns the measurement, or None if the case can't run here, such as without enough memory."""
    command = [sys.executable, "-m", "benchmarks.step", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"left out: {case.words}: {last}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def _figures(case: Case, runs: list[dict[str, Any]]) -> list[Figure]:
    times = sorted(seconds for run in runs for seconds in run["all"])
    seconds, rate = times[len(times) // 2], max(run["rate"] for run in runs)
    dtype = resolve_dtype(case.precision, find_device())
    shape = WorkloadShape(configs=case.configs, dtype=dtype, width=case.resolution, height=case.resolution)
    _, flops = flops_of_step(case.settings, shape)
    floor = flops / rate
    return [
        Figure(
            group=GROUP,
            what=case.words,
            value=case.batch / seconds,
            unit="pictures/s",
            floor=case.batch / floor,
            all=tuple(times),
        ),
        Figure(
            group="memory",
            what=f"peak, {case.words}",
            value=max(run["peak"] for run in runs) / 1e9,
            unit="GB",
        ),
    ]


def has_card() -> bool:
    """True if there is a CUDA device."""
    return torch.cuda.is_available()
