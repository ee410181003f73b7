"""Figures with their floors, as JSON, a Markdown table and a picture."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value with its floor, the best possible value or that of another method."""

    group: str
    what: str
    value: float
    unit: str
    floor: float | None = None  # in the same unit: counted work by measured rate, or what a slower way takes
    all: tuple[float, ...] = ()  # single measurements

    @property
    def ratio(self) -> float | None:
        """Measured value / floor, or None without a floor."""
        return self.value / self.floor if self.floor else None


def machine() -> str:
    """Returns a description of the device, the processor, the memory and the versions."""
    import torch

    from trainer.hardware.device import describe, find_device
    from trainer.hardware.precision import has_bf16_instructions

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (
                line.split(":")[1].strip()
                for line in cpuinfo.read_text().splitlines()
                if line.startswith("model name")
            ),
            model,
        )
    memory = psutil.virtual_memory().total / 2**30
    wide = (
        torch.backends.cpu.get_cpu_capability() + " BF16" * has_bf16_instructions()
    )  # processors of one name can differ in this
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{describe(find_device())}, {model} {wide}, {os.cpu_count()} cores, {memory:.0f} GiB, {versions}"


def file_stem(words: str) -> str:
    """Returns the name of a machine's files without suffix, such as `cpu-amd-epyc-2-cores`."""
    device, model, cores = words.split(", ")[:3]
    return re.sub(
        r"[^a-z0-9]+",
        "-",
        f"{device.split(' (')[0] if device.startswith('CPU') else device} {model} {cores}".lower(),
    ).strip("-")


def save(figures: list[Figure], words: str, folder: Path) -> Path:
    """Writes `<machine>.json`, `.md` and `.png`, and returns the path of the Markdown table.

    Saved figures of other groups are retained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / file_stem(words)
    now = {figure.group for figure in figures}
    figures = [*figures, *(figure for figure in _saved(stem.with_suffix(".json")) if figure.group not in now)]
    rows = [{**dataclasses.asdict(figure), "ratio": figure.ratio} for figure in figures]
    stem.with_suffix(".json").write_text(
        json.dumps({"machine": words, "figures": rows}, indent=1) + "\n", encoding="utf-8"
    )
    stem.with_suffix(".md").write_text(f"{words}\n\n{table(figures)}", encoding="utf-8")
    picture(figures).save(stem.with_suffix(".png"))
    return stem.with_suffix(".md")


def _saved(path: Path) -> list[Figure]:
    """Returns the figures of an earlier measurement, if there is one."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return [
        Figure(**{**row, "all": tuple(row["all"])})
        for row in ({k: v for k, v in row.items() if k != "ratio"} for row in rows)
    ]


def table(figures: list[Figure]) -> str:
    """Returns the figures as a Markdown table, by group."""
    lines = ["| what | measured | floor or other way | ratio |", "|---|---|---|---|"]
    for group in dict.fromkeys(figure.group for figure in figures):
        lines.append(f"| **{group}** | | | |")
        for figure in (figure for figure in figures if figure.group == group):
            floor = "" if figure.floor is None else f"{short(figure.floor)} {figure.unit}"
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
            lines.append(f"| {figure.what} | {short(figure.value)} {figure.unit} | {floor} | {ratio} |")
    return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """Returns a number with three significant digits, or as an integer from 1000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def picture(figures: list[Figure]) -> Image.Image:
    """Returns a chart with a bar of the ratio for each figure that has a floor."""
    shown = [figure for figure in figures if figure.ratio]
    line, left, width = 22, 420, 900
    sheet = Image.new("RGB", (width, line * (len(shown) + 2)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    longest = max((figure.ratio or 0 for figure in shown), default=1.0)
    for number, figure in enumerate(shown, start=1):
        top, ratio = number * line, figure.ratio or 0
        length = int((width - left - 150) * ratio / longest)
        pen.text(
            (left - 8, top + line // 2),
            f"{figure.group}: {figure.what}"[:60],
            fill="black",
            anchor="rm",
            font=font,
        )
        pen.rectangle((left, top + 4, left + length, top + line - 4), fill="#4455aa")
        words = f"{ratio:.2f}  ({short(figure.value)} {figure.unit})"
        pen.text((left + length + 6, top + line // 2), words, fill="black", anchor="lm", font=font)
    return sheet
