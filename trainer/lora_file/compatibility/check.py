"""Whether other tools will take the whole of a LoRA file: every key by the rules of each, and what else goes wrong silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.errors import BaseError
from trainer.headers.lora import bundled_notice
from trainer.lora_file.base_weights import layout_of
from trainer.lora_file.compatibility.keys import Entry, Keys, Verdict
from trainer.lora_file.compatibility.tools import FORGE_LIMIT, TOOLS
from trainer.lora_file.container import Container, open_lora
from trainer.lora_file.modules import ALPHA, DORA, DOWN, PART_LABELS, UP, Module, split_key
from trainer.lora_file.sdxl_modules import Layout, names, sdxl

HEADER_LIMIT = 1 << 20  # beyond it ComfyUI shows no metadata
HALF_LIMIT = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Report:
    file: str
    base: str  # whose modules the names were compared with
    modules: Mapping[str, int]  # by part
    kinds: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    faults: tuple[str, ...]  # wrong everywhere
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every tool takes every tensor, and every value is a number."""
        return not self.faults and all(verdict.whole for verdict in self.verdicts)

    def lines(self) -> list[str]:
        """For a person to read."""
        parts = (
            ", ".join(f"{PART_LABELS[part]} {count} modules" for part, count in self.modules.items())
            or "no module of SDXL"
        )
        told = [
            f"{self.file}: {' and '.join(self.kinds) or 'unknown network'}, {parts}; compared with {self.base}"
        ]
        width = max(len(verdict.tool) for verdict in self.verdicts)
        for verdict in self.verdicts:
            needs = f" with {verdict.needs}" if verdict.needs else ""
            state = (
                f"refuses the file: {verdict.refusal}"
                if verdict.refusal
                else f"takes {verdict.taken} of {verdict.total} tensors{needs}"
            )
            told.append(f"{verdict.tool:<{width}}  {state}")
            told += [
                f"{'':<{width}}  drops {len(drop.keys)} ({drop.keys[0]}): {drop.reason}"
                for drop in verdict.drops
            ]
        told += [f"fault: {text}" for text in self.faults]
        return told + [f"warning: {text}" for text in self.warnings]

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def check_file(path: Path, *, base: Path | None = None, bases: Path | None = None) -> Report:
    """Compares a file with the rules of other tools.

    Args:
        base: a diffusers folder whose modules it is for.
        bases: a folder of such; without `base`, the one that the file's shapes fit best, or the true SDXL.

    Raises:
        LoraFileError: the file is no LoRA for SDXL; the sentence says what it is.
    """
    container = open_lora(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in container.tensors.items()}
    grouped, loose = _grouped(container)
    layout = layout_of(base) if base else _best_layout(grouped, bases)
    fits = {name: _fits(module, layout) for name, module in grouped.items()}
    entries = []
    for key in container.tensors:
        name, role, ending = split_key(key) or (key.rpartition(".")[0], key.rpartition(".")[2], "")
        place = None if key in loose else names().find(name)
        exists = place is not None and layout.shape(*place) is not None
        entries.append(Entry(key, name, role, ending, place, exists, fits.get(name, True)))
    keys = Keys(entries, container.facts, shapes, layout.name == sdxl().name)
    modules: dict[str, int] = {}
    for entry in {entry.name: entry for entry in entries}.values():
        if entry.place and entry.exists:
            modules[entry.place[0]] = modules.get(entry.place[0], 0) + 1
    return Report(
        file=path.name,
        base=layout.name,
        modules=dict(sorted(modules.items(), key=lambda item: list(PART_LABELS).index(item[0]))),
        kinds=tuple(sorted({module.kind for module in grouped.values()})),
        verdicts=tuple(tool.read(keys) for tool in TOOLS),
        faults=tuple(_faults(container)),
        warnings=tuple(_warnings(container, keys, list(grouped.values()))),
    )


def _grouped(container: Container) -> tuple[dict[str, Module], set[str]]:
    """Modules by their name as spelled, and the keys of no known module."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    loose = set()
    for key, tensor in container.tensors.items():
        split = split_key(key)
        if split is None or names().find(split[0]) is None:
            loose.add(key)
        else:
            found.setdefault(split[0], {})[split[1]] = tensor
    places = {name: place for name in found if (place := names().find(name))}
    return {name: Module(*places[name], tensors) for name, tensors in found.items()}, loose


def _best_layout(grouped: Mapping[str, Module], bases: Path | None) -> Layout:
    """The true SDXL unless the shapes fit a base on disk better."""
    if all(_fits(module, sdxl()) for module in grouped.values()):
        return sdxl()
    layouts = [sdxl()]
    for index in sorted(bases.glob("*/model_index.json")) if bases else []:
        try:
            layouts.append(layout_of(index.parent))
        except BaseError:  # half copied, or a single file's neighbour: it is simply no candidate
            continue
    return max(layouts, key=lambda layout: sum(_fits(module, layout) for module in grouped.values()))


def _fits(module: Module, layout: Layout) -> bool:
    """Whether the matrices have the sides of the base's weight (True for forms that say nothing of them)."""
    shape = layout.shape(module.part, module.path)
    if shape is None:
        return False
    sides = shape[0], torch.Size(shape[1:]).numel()
    pairs = [(UP, DOWN), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]
    found = module.tensors
    for left, right in pairs:
        if left in found and right in found and module.network in ("lora", "dora", "loha"):
            a, b = found[left], found[right]
            if (
                a.dim() < 2
                or b.dim() < 2
                or not a.numel()
                or a.shape[1] != b.shape[0]
                or (a.shape[0], b.shape[1:].numel()) != sides
            ):
                return False
    if module.network == "lokr":
        try:
            return tuple(module.change().shape) == sides
        except (RuntimeError, KeyError):
            return False
    return True


def _faults(container: Container) -> list[str]:
    told = []
    broken = [
        key for key, tensor in container.tensors.items() if not bool(torch.isfinite(tensor.float()).all())
    ]
    if broken:
        told.append(
            f"{len(broken)} tensors hold values that are no numbers, such as {broken[0]}; pictures come out black: use an earlier checkpoint"
        )
    wide = [
        key
        for key, tensor in container.tensors.items()
        if tensor.dtype in (torch.float32, torch.bfloat16, torch.float64)
        and tensor.numel()
        and float(tensor.nan_to_num().abs().max()) > HALF_LIMIT
    ]
    if wide:
        told.append(
            f"{len(wide)} tensors hold values beyond fp16, such as {wide[0]}; tools that work in fp16 draw black: use an earlier checkpoint"
        )
    return told


def _warnings(container: Container, keys: Keys, modules: list[Module]) -> list[str]:
    told = [*_scale_warnings(keys, modules)]
    if notice := bundled_notice(container.path, container.tensors):
        told.append(notice)
    if any(DORA in module.tensors for module in modules):
        by_input = all(module.tensors[DORA].shape[:1] == (1,) for module in modules if DORA in module.tensors)
        read = (
            "ComfyUI, Forge, A1111 and InvokeAI read it as it was trained"
            if by_input
            else "others divide by norms along different axes"
        )
        told.append(
            f"DoRA is not read by every tool: {read}, sd-scripts and diffusers do not; to be sure, bake it: lora bake"
        )
    facts = container.facts
    if facts and not facts.get("ss_base_model_version", "").startswith("sdxl_"):
        told.append(
            "the metadata lacks ss_base_model_version = sdxl_…, so A1111 hides the file while an SDXL model is loaded"
        )
    if container.header_bytes > HEADER_LIMIT:
        told.append(
            f"the header has {container.header_bytes:,} bytes; beyond 1 MiB ComfyUI shows no metadata: make the thumbnail smaller"
        )
    flat = [entry for entry in keys.entries if entry.style in ("flat", "dotted-flat")]
    if flat:
        told.append(
            f"{len(flat)} keys of text encoders lack text_model ({flat[0].key}); only diffusers takes them, and only of the first; Forge refuses the file for more than {FORGE_LIMIT}"
        )
    if any(entry.style == "diffusers" for entry in keys.entries):
        told.append(
            "with diffusers' block names, sd-scripts' sdxl_merge_lora.py --sd_model and --network_weights drop the UNet's modules; "
            "lora convert --to kohya mends it"
        )
    for part in ("text_encoder", "text_encoder_2"):
        paths = {entry.place[1] for entry in keys.entries if entry.place and entry.place[0] == part}
        lacking = [p for p in paths if p.endswith(".q_proj") and p.replace("q_proj", "out_proj") not in paths]
        if lacking:
            told.append(
                f"{PART_LABELS[part]} has no out_proj beside {lacking[0]}; diffusers then may refuse the file, A1111 drop the second encoder"
            )
    return told


def _scale_warnings(keys: Keys, modules: list[Module]) -> list[str]:
    told = []
    kohya = any(entry.kohya for entry in keys.entries)
    without = [module for module in modules if ALPHA not in module.tensors and module.rank]
    if without and kohya:
        told.append(
            f"{len(without)} modules have no alpha; every tool then takes scale 1 (alpha = rank), whatever the training meant"
        )
    boxed = [key for key, shape in keys.shapes.items() if key.endswith(".alpha") and shape != ()]
    if boxed:
        told.append(
            f"alpha has a shape ({boxed[0]}: {keys.shapes[boxed[0]]}); sd-scripts can't merge such a file: lora convert mends it"
        )
    for part in PART_LABELS:
        alphas = {module.alpha for module in modules if module.part == part and module.alpha is not None}
        if len(alphas) > 1:
            told.append(
                f"{PART_LABELS[part]} has alphas of {min(alphas):g} to {max(alphas):g}; diffusers scales such a part wrongly: lora convert mends it"
            )
    return told
