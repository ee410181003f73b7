"""Several LoRAs as one: sum of weight_i * alpha_i / rank_i * up_i down_i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.svd import of_matrix, of_product
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import LoraFile, Module, lora_module, side_by_side
from trainer.lora_file.reader import read_modules


@dataclass(frozen=True)
class Term:
    file: Path
    weight: float


def term(text: str) -> Term:
    """`FILE:WEIGHT`, read from the right since file names may hold colons; weight 1 without one. Raises LoraFileError."""
    name, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else math.nan
    except ValueError:
        weight = math.nan
    if colon and name and not math.isnan(weight):
        if weight == 0 or math.isinf(weight):
            raise LoraFileError(
                f"{text!r} has the weight {number}, which takes nothing or everything; give a number such as 0.5 or -1"
            )
        return Term(Path(name), weight)
    return Term(Path(text), 1.0)


def merge(
    out: Path,
    terms: Sequence[Term],
    *,
    method: str = "concat",
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[Module]:
    """Writes the sum of LoRA files; a module that only some of them have is kept as it is there.

    Args:
        method: `concat` puts the matrices side by side, exact, its ranks add up; `svd` is the best approximation of `rank`.
        dtype: of the new file; the widest of the given ones by default.

    Raises:
        LoraFileError: a file can't be read, or holds what can't be added up.
    """
    expect_free(out, overwrite)
    if method == "svd" and not rank:
        raise LoraFileError(
            "merging by svd needs the rank of the new file; add --rank 32, or take --method concat"
        )
    if method == "concat" and rank:
        raise LoraFileError(
            "concat keeps every rank, so --rank has no place there; take --method svd, or leave --rank out"
        )
    files = [read_modules(each.file) for each in terms]
    weights = [each.weight for each in terms]
    dtype = dtype or _widest(files)
    shared: dict[tuple[str, str], list[tuple[float, Module]]] = {}
    for file, weight in zip(files, weights, strict=True):
        for module in file.modules:
            shared.setdefault((module.part, module.path), []).append((weight, module))
    if rank:
        modules = [
            _approximated(part, path, shared[part, path], rank, dtype) for part, path in sorted(shared)
        ]
    else:
        modules = [_joined(part, path, shared[part, path], dtype) for part, path in sorted(shared)]
    write_lora(
        out, tensors_of(modules, "kohya", out.name), _facts(out, files, terms, modules), overwrite=overwrite
    )
    return modules


def _widest(files: Sequence[LoraFile]) -> torch.dtype:
    dtype = files[0].dtype
    for file in files[1:]:
        dtype = torch.promote_types(dtype, file.dtype)
    return dtype


def _joined(part: str, path: str, terms: list[tuple[float, Module]], dtype: torch.dtype) -> Module:
    """The exact sum; its alpha is its rank, so that the scale is 1."""
    for _, module in terms:
        if module.network != "lora":
            raise LoraFileError(
                f"{part}.{path} is a {module.kind}, and concat joins LoRAs only; take --method svd --rank 32"
            )
    _expect_same_shape(terms)
    up, down = side_by_side(terms)
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=dtype)


def _approximated(
    part: str, path: str, terms: list[tuple[float, Module]], rank: int, dtype: torch.dtype
) -> Module:
    """The best approximation of the sum by a LoRA of `rank`."""
    outputs, inputs = _expect_same_shape(terms)
    if all(module.network == "lora" for _, module in terms):
        spectrum = of_product(*side_by_side(terms))
    else:
        changes = [weight * module.change() for weight, module in terms]
        spectrum = of_matrix(torch.stack(changes).sum(0))
    up, down = spectrum.factors(rank)
    if not up.shape[1]:  # the terms cancel: a module of zeros keeps the layer in the file
        up, down = torch.zeros(outputs, 1), torch.zeros(1, inputs)
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=dtype)


def _expect_same_shape(terms: list[tuple[float, Module]]) -> tuple[int, int]:
    """(O, I) of the modules. Raises LoraFileError where they differ, or where a module is of no known network."""
    sides = []
    for _, module in terms:
        if module.sides is None:
            raise LoraFileError(module.unsupported())
        sides.append(module.sides)
    if len(set(sides)) > 1:
        module = terms[0][1]
        raise LoraFileError(
            f"{module.part}.{module.path} is {sides[0]} in one file and {sides[1]} in another; merge LoRAs of one base"
        )
    return sides[0]


def _facts(
    out: Path, files: Sequence[LoraFile], terms: Sequence[Term], modules: list[Module]
) -> dict[str, str]:
    """What all files agree on about their base, and what was merged."""
    kept = {
        key: value
        for key, value in files[0].metadata.items()
        if key.startswith(
            (
                "ss_base_model",
                "ss_v2",
                "ss_sd_model",
                "modelspec.architecture",
                "modelspec.prediction_type",
                "modelspec.resolution",
            )
        )
        and all(file.metadata.get(key) == value for file in files)
    }
    sum_ = " ".join(f"{each.weight:+g} {each.file.stem}" for each in terms)
    return {
        **kept,
        **network_metadata(modules, kept),
        "ss_output_name": out.stem,
        "ss_training_comment": f"merged: {sum_}",
        "modelspec.title": out.stem,
        "modelspec.merged_from": ", ".join(each.file.stem for each in terms),
    }
