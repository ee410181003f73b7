"""Several LoRAs as one: sum of weight_i * alpha_i / rank_i * up_i down_i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.edit.convert import expect_free, network_facts, tensors_of, write_lora
from trainer.lora_file.edit.svd import of_matrix, of_product
from trainer.lora_file.modules import LoraFile, Module, lora_module, read_modules

METHODS = ("concat", "svd")


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
    joined = _side_by_side if method == "concat" else _approximated
    modules = [joined(part, path, shared[part, path], rank, dtype) for part, path in sorted(shared)]
    write_lora(
        out, tensors_of(modules, "kohya", out.name), _facts(out, files, terms, modules), overwrite=overwrite
    )
    return modules


def _widest(files: Sequence[LoraFile]) -> torch.dtype:
    dtype = files[0].dtype
    for file in files[1:]:
        dtype = torch.promote_types(dtype, file.dtype)
    return dtype


def _side_by_side(
    part: str, path: str, found: list[tuple[float, Module]], rank: int | None, dtype: torch.dtype
) -> Module:
    """up = [w1 s1 up1, w2 s2 up2], down = [down1; down2]; alpha = rank, so that the scale is 1."""
    ups, downs = [], []
    for weight, module in found:
        if module.network != "lora":
            raise LoraFileError(
                f"{part}.{path} is a {module.kind}, and concat joins LoRAs only; take --method svd --rank 32"
            )
        up, down = module.matrices()
        ups.append(weight * module.scale * up)
        downs.append(down)
    _expect_same_shape(
        part, path, [(up.shape[0], down.shape[1]) for up, down in zip(ups, downs, strict=True)]
    )
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=dtype)


def _approximated(
    part: str, path: str, found: list[tuple[float, Module]], rank: int | None, dtype: torch.dtype
) -> Module:
    assert rank
    if all(module.network == "lora" for _, module in found):
        pairs = [
            (weight * module.scale * module.matrices()[0], module.matrices()[1]) for weight, module in found
        ]
        _expect_same_shape(part, path, [(up.shape[0], down.shape[1]) for up, down in pairs])
        spectrum = of_product(
            torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])
        )
        sides = pairs[0][0].shape[0], pairs[0][1].shape[1]
    else:
        changes = [weight * module.change() for weight, module in found]
        _expect_same_shape(part, path, [(change.shape[0], change.shape[1]) for change in changes])
        spectrum = of_matrix(torch.stack(changes).sum(0))
        sides = changes[0].shape
    up, down = spectrum.factors(rank)
    if not up.shape[1]:  # the terms cancel: a module of zeros says so
        up, down = torch.zeros(sides[0], 1), torch.zeros(1, sides[1])
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=dtype)


def _expect_same_shape(part: str, path: str, shapes: list[tuple[int, int]]) -> None:
    if len(set(shapes)) > 1:
        raise LoraFileError(
            f"{part}.{path} is {shapes[0]} in one file and {shapes[1]} in another; merge LoRAs of one base"
        )


def _facts(
    out: Path, files: Sequence[LoraFile], terms: Sequence[Term], modules: list[Module]
) -> dict[str, str]:
    """What all files agree on about their base, and what was merged."""
    kept = {
        key: value
        for key, value in files[0].facts.items()
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
        and all(file.facts.get(key) == value for file in files)
    }
    sum_ = " ".join(f"{each.weight:+g} {each.file.stem}" for each in terms)
    return {
        **kept,
        **network_facts(modules, kept),
        "ss_output_name": out.stem,
        "ss_training_comment": f"merged: {sum_}",
        "modelspec.title": out.stem,
        "modelspec.merged_from": ", ".join(each.file.stem for each in terms),
    }
