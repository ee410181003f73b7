"""Whole trainings as a user starts them: start, caching, growth with the dataset, and other trainers."""

from __future__ import annotations

import contextlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image

from benchmarks import BUNDLED, INK, ROOT
from benchmarks.report import Figure
from trainer.config import TrainConfig
from trainer.dataset.scan import scan
from trainer.hardware.device import find_device
from trainer.runs import events
from trainer.runs.commands import CommandInbox
from trainer.runs.inputs import Inputs
from trainer.runs.run import create
from trainer.sdxl.base import open_base
from trainer.sdxl.latents import encode_image
from trainer.training.caching import FeatureExtractor
from trainer.training.feature_cache import FeatureCache

_PLAIN = (
    "network=lora",
    "train_feed_forward=false",
)  # a preset may adapt more layers than another trainer does
_README = ["-m", "trainer", "train", str(INK), "--preset", "style"]


@dataclass(frozen=True)
class Watched:
    """A command that has run to its end."""

    seconds: float
    peak: int  # bytes, of it and all its children together


def watched(command: list[str], folder: Path = ROOT) -> Watched:
    """Runs a command to its end; raises CalledProcessError if it fails."""
    begun, peak = time.monotonic(), 0
    child = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(
                peak, sum(process.memory_info().rss for process in (child, *child.children(recursive=True)))
            )
        with contextlib.suppress(psutil.TimeoutExpired):
            child.wait(0.05)
    if child.returncode:
        raise subprocess.CalledProcessError(
            child.returncode, command, stderr=child.stderr.read() if child.stderr else b""
        )
    return Watched(time.monotonic() - begun, peak)


def own_command(folder: Path, base: Path, output: Path, steps: int, more: list[str]) -> list[str]:
    """Returns the command of a training without preview images and with one checkpoint."""
    quiet = [
        f"steps={steps}",
        "sample_steps=1",
        f"checkpoint_every={steps}",
        "log_with=none",
        "thumbnail=none",
    ]
    options = [word for setting in (*quiet, *more) for word in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "trainer",
        "train",
        str(folder),
        "--output",
        str(output),
        "--base",
        str(base),
        *options,
    ]


def start(folder: Path, *, repeat: int = 3) -> list[Figure]:
    """Measures the time from the command to the end of the first step, with empty caches."""
    found = []
    for number in range(repeat):
        output, begun = folder / str(number) / "run", time.time()
        watched(own_command(INK, BUNDLED, output, 2, []))
        first = next(event for event in events.read(output / "events.jsonl")[0] if event["kind"] == "step")
        found.append(first["time"] - begun)
    whole = [
        watched([sys.executable, *_README, "--output", str(folder / f"whole-{number}" / "ink")])
        for number in range(repeat)
    ]
    help_seconds = statistics.median(
        watched([sys.executable, "-m", "trainer", "--help"]).seconds for _ in range(repeat)
    )
    return [
        Figure(
            group="start",
            what="first step after the command, nothing cached",
            value=statistics.median(found),
            unit="s",
            floor=12.0,
            all=tuple(found),
        ),
        Figure(
            group="start",
            what="README's training, from nothing to file and strip",
            value=statistics.median(run.seconds for run in whole),
            unit="s",
            floor=120.0,
            all=tuple(run.seconds for run in whole),
        ),
        Figure(
            group="start",
            what="README's training, most memory held",
            value=max(run.peak for run in whole) / 1e9,
            unit="GB",
            floor=1.5,
        ),
        Figure(group="start", what="python -m trainer --help", value=help_seconds, unit="s", floor=0.5),
    ]


def caching(folder: Path, pictures: int) -> list[Figure]:
    """Measures images cached in a second; the floor is the VAE alone on images in memory."""
    made, base, device = (
        some_pictures(folder / "pictures", pictures),
        open_base(BUNDLED.name, BUNDLED.parent),
        find_device(),
    )
    run = create(folder / "run", TrainConfig(), scan(made))
    begun = time.perf_counter()
    cache = FeatureCache(folder / "cache", base.fingerprint)
    extractor = FeatureExtractor(run, run.config, base, cache, device, CommandInbox(run), Inputs({}))
    extractor.latents(run.manifest.items)
    cached = pictures / (time.perf_counter() - begun)
    vae, picture = base.vae(device), torch.rand(1, 3, 128, 128) * 2 - 1
    begun = time.perf_counter()
    for _ in range(pictures):
        encode_image(vae, picture)
    alone = pictures / (time.perf_counter() - begun)
    return [
        Figure(
            group="caching",
            what=f"{pictures} pictures of 128 px",
            value=cached,
            unit="pictures/s",
            floor=alone,
        )
    ]


def growth(folder: Path, counts: tuple[int, ...]) -> list[Figure]:
    """Measures a training of two steps for each number of images, with caches that are already filled."""
    found = []
    for count in counts:
        made = some_pictures(folder / f"pictures-{count}", count)
        output = folder / f"runs-{count}"
        watched(own_command(made, BUNDLED, output / "first", 1, ["batch=4"]))
        again = watched(own_command(made, BUNDLED, output / "again", 2, ["batch=4"]))
        found += [
            Figure(
                group="growth",
                what=f"{count:,} pictures, cached: command to end",
                value=again.seconds,
                unit="s",
            ),
            Figure(
                group="growth",
                what=f"{count:,} pictures, cached: peak memory",
                value=again.peak / 1e9,
                unit="GB",
            ),
        ]
    return found


def some_pictures(folder: Path, count: int) -> Path:
    """Writes `count` different images of 128 px with twenty different captions; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        coarse = torch.randint(0, 256, (8, 8, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((128, 128), Image.Resampling.BICUBIC).save(
            folder / f"{number:05d}.png"
        )
        (folder / f"{number:05d}.txt").write_text(f"pattern {number % 20}")
    return folder


def against(
    command: str, base: Path, *, steps: tuple[int, int], repeat: int, more: list[str]
) -> list[Figure]:
    """Measures another trainer and this one in turn, on the same images and base.

    Args:
        command: split as by a shell; {folder}, {base}, {output} and {steps} in it are replaced.
        steps: two lengths of a training; the difference of their times excludes the start.
        more: settings of this trainer, as `name=value`.
    """

    def theirs(output: Path, count: int) -> list[str]:
        facts = {"{folder}": str(INK), "{base}": str(base), "{output}": str(output), "{steps}": str(count)}
        words = shlex.split(command)
        for key, value in facts.items():
            words = [word.replace(key, value) for word in words]
        return words

    ways: dict[str, Callable[[Path, int], list[str]]] = {
        "theirs": theirs,
        "ours": lambda out, count: own_command(INK, base, out, count, [*_PLAIN, *more]),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for _ in range(repeat):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                runs = [watched(way(Path(folder) / str(count) / "run", count)) for count in steps]
            taken[name].append((runs[1].seconds - runs[0].seconds) / (steps[1] - steps[0]))
            peaks[name] = max(peaks[name], *(run.peak for run in runs))
    theirs_seconds, ours = (statistics.median(taken[name]) for name in ("theirs", "ours"))
    return [
        Figure(
            group="against",
            what="seconds a step: the other",
            value=theirs_seconds,
            unit="s",
            all=tuple(taken["theirs"]),
        ),
        Figure(
            group="against",
            what="seconds a step: Impasto",
            value=ours,
            unit="s",
            floor=theirs_seconds,
            all=tuple(taken["ours"]),
        ),
        Figure(group="against", what="times as fast", value=theirs_seconds / ours, unit="x"),
        Figure(group="against", what="peak memory: the other", value=peaks["theirs"] / 1e9, unit="GB"),
        Figure(
            group="against",
            what="peak memory: Impasto",
            value=peaks["ours"] / 1e9,
            unit="GB",
            floor=peaks["theirs"] / 1e9,
        ),
    ]
