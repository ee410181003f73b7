"""The description of a LoRA file that `lora inspect` prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from trainer.headers.lora import lora_path
from trainer.lora_file.arrays import Array
from trainer.lora_file.modules import PART_LABELS, LoraFile, LoraModule
from trainer.lora_file.reader import read_modules
from trainer.lora_file.scales import file_notice
from trainer.lora_file.tensor_names import ALPHA, DOWN, MID, UP

_SHOWN = ("modelspec.", "sshs_", "ss_base", "ss_output", "ss_network_", "ss_sd_model_name")


def describe(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (label, value) lines. Raises LoraFileError for a file that is no LoRA for SDXL or is damaged."""
    path = lora_path(path)
    file = read_modules(path, as_arrays=True)
    yield "file", f"{path.name}, {path.stat().st_size:,} bytes"
    yield "network", _networks(file)
    for part, label in PART_LABELS.items():
        modules = [module for module in file.modules if module.part == part]
        if modules:
            yield label, _summary(modules)
    parameters = sum(
        tensor.numel() for module in file.modules for role, tensor in module.tensors.items() if role != ALPHA
    )
    yield "parameters", f"{parameters:,}"
    computed = [module for module in file.modules if module.network]
    if computed:
        change = sum(norms(path, computed)) / len(computed)
        yield "mean change", f"{change:.4g} (Frobenius norm of alpha/rank B A)"
    if notice := file_notice(path):
        yield "note", notice
    for key, value in file.metadata.items():
        if key.startswith(_SHOWN):
            yield _on_one_line(key), _shortened(_on_one_line(value))


def norms(path: Path, modules: Sequence[LoraModule]) -> Iterator[float]:
    """Frobenius norms of the changes of a file's modules, of a DoRA before it is normalised.

    That of B A is the root of the sum of the elements of (B^T B) * (A A^T), which needs R x R values only. The
    other networks are computed by PyTorch.
    """
    if not all({DOWN, UP} <= set(module.tensors) and MID not in module.tensors for module in modules):
        by_layer = read_modules(path).by_layer
        yield from (float(by_layer[module.place].product().norm()) for module in modules)
        return
    for module in modules:
        up, down = (np.asarray(cast("Array", m).values, np.float64) for m in module.matrices())
        square = float(((up.T @ up) * (down @ down.T)).sum())
        yield abs(module.scale) * math.sqrt(max(square, 0.0))


def _on_one_line(text: str) -> str:
    """The text of another program without line ends and control characters, which could move the cursor."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text):,} characters)"


def _networks(file: LoraFile) -> str:
    """The networks of a file, with counts where there are several."""
    kinds = Counter(module.kind for module in file.modules)
    if set(kinds) == {"LoRA", "LoCon"}:  # a LoCon is a LoRA that also adapts convolutions
        return "LoCon"
    counts = [f"{kind} ({count} modules)" for kind, count in kinds.most_common()]
    return ", ".join(counts) if len(kinds) > 1 else next(iter(kinds))


def _summary(modules: list[LoraModule]) -> str:
    """Number of modules, ranks and alphas of a part."""
    ranked = [module for module in modules if module.rank]
    text = f"{len(modules)} modules"
    if ranked:
        alphas = [module.rank if module.alpha is None else module.alpha for module in ranked]
        text += f", rank {_span([module.rank for module in ranked])}, alpha {_span(alphas)}"
    if len(ranked) < len(modules):
        text += f", {len(modules) - len(ranked)} of whole matrices"
    return text


def _span(values: Collection[float | None]) -> str:
    """One value, or the lowest and the highest."""
    numbers = [value for value in values if value is not None]
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
