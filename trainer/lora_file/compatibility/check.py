"""The check of a LoRA file: what other tools do with each tensor, and faults that they don't report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BaseError, LoraFileError
from trainer.headers.lora import bundled_notice
from trainer.lora_file.base_weights import layout_of
from trainer.lora_file.compatibility.keys import Entry, Keys, Verdict
from trainer.lora_file.compatibility.shapes import fits
from trainer.lora_file.compatibility.tools import TOOLS
from trainer.lora_file.compatibility.web_uis import FORGE_LIMIT
from trainer.lora_file.modules import PART_LABELS, LoraModule
from trainer.lora_file.reader import Tensors, modules_by_name, read_tensors
from trainer.lora_file.scales import METADATA_KEY, Scales, read_scales, scale_notice
from trainer.lora_file.sdxl_modules import Layout, sdxl
from trainer.lora_file.tensor_names import ALPHA, split_key

_HEADER_LIMIT = 1 << 20  # bytes; ComfyUI shows no metadata of a longer header
_HALF_LIMIT = 65504.0  # largest number of fp16


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        base: name of the base whose modules the file was compared with.
        modules: number of modules by part.
        scales: lowest and highest alpha / rank by part.
        kinds: networks of the modules in words.
        verdicts: how each tool reads the file.
        faults: what is wrong for every tool.
        warnings: what works, but not as the file's maker may expect.
    """

    file: str
    base: str
    modules: Mapping[str, int]
    scales: Mapping[str, tuple[float, float]]
    kinds: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when every tool reads every tensor as it was trained, and the file has no fault."""
        return not self.faults and all(verdict.is_complete for verdict in self.verdicts)

    def lines(self) -> list[str]:
        """The report as lines for a person."""
        parts = [
            f"{PART_LABELS[part]} {count} modules{self._scale(part)}" for part, count in self.modules.items()
        ]
        kinds = " and ".join(self.kinds) or "unknown network"
        summary = ", ".join(parts) or "no module of SDXL"
        lines = [f"{self.file}: {kinds}, {summary}; compared with {self.base}"]
        width = max(len(verdict.tool) for verdict in self.verdicts)
        for verdict in self.verdicts:
            needs = f" with {verdict.needs}" if verdict.needs else ""
            state = (
                f"refuses the file: {verdict.refusal}"
                if verdict.refusal
                else f"takes {verdict.taken} of {verdict.total} tensors{needs}"
            )
            lines.append(f"{verdict.tool:<{width}}  {state}")
            lines += [f"{'':<{width}}  wrong result: {text}" for text in verdict.wrong]
            lines += [
                f"{'':<{width}}  drops {len(drop.keys)} ({drop.keys[0]}): {drop.reason}"
                for drop in verdict.drops
            ]
        lines += [f"fault: {text}" for text in self.faults]
        return lines + [f"warning: {text}" for text in self.warnings]

    def _scale(self, part: str) -> str:
        """The scale of a part in words; "" where it is 1 throughout."""
        low, high = self.scales.get(part, (1.0, 1.0))
        if low == high:
            return "" if low == 1 else f" at scale {low:g}"
        return f" at scales {low:g} to {high:g}"

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True)
class _Checked:
    """A file with what the warnings are computed from."""

    file: Tensors
    keys: Keys
    modules: Mapping[str, LoraModule]  # by name as spelled, with the scale as the reader finds it
    scales: Scales | None


def check_file(path: Path, *, base: Path | None = None, bases: Path | None = None) -> Report:
    """Compares a file with the rules of other tools.

    Args:
        base: a diffusers folder or checkpoint whose modules the file is for.
        bases: a folder of diffusers folders; without `base`, the file is compared with the one that its
            shapes fit best, or with SDXL 1.0.

    Raises:
        LoraFileError: the file is no LoRA for SDXL; the message names what it is.
    """
    file = read_tensors(path, as_arrays=True)
    scales, modules, faults = _modules(file)
    layout = layout_of(base) if base else _best_layout(modules, bases)
    fitting = {name: fits(module, layout) for name, module in modules.items()}
    keys = Keys(
        [_entry(key, modules, fitting, layout) for key in file.tensors],
        file.header.metadata,
        {key: tuple(tensor.shape) for key, tensor in file.tensors.items()},
        layout.name == sdxl().name,
        **_scaling(file, modules, scales),
    )
    by_part = {part: [name for name in keys.places if keys.places[name][0] == part] for part in PART_LABELS}
    checked = _Checked(file, keys, modules, scales)
    return Report(
        file=file.path.name,
        base=layout.name,
        modules={part: len(names) for part, names in by_part.items() if names},
        scales={
            part: _scale_range([modules[name] for name in names]) for part, names in by_part.items() if names
        },
        kinds=tuple(sorted({module.kind for module in modules.values()})),
        verdicts=tuple(tool.read(keys) for tool in TOOLS),
        faults=(*faults, *_faults(file, modules)),
        warnings=tuple(_warnings(checked)),
    )


def _modules(file: Tensors) -> tuple[Scales | None, dict[str, LoraModule], list[str]]:
    """(scales, modules by spelled name, problems); a scale that can't be read is None and a problem."""
    try:
        scales = read_scales(file.path, file.header)
        return scales, modules_by_name(file, scales, strict=False), []
    except LoraFileError as error:
        return None, modules_by_name(file, None, strict=False), [str(error)]


def _entry(key: str, modules: Mapping[str, LoraModule], fitting: Mapping[str, bool], layout: Layout) -> Entry:
    name, role, suffix = split_key(key) or (key.rpartition(".")[0], key.rpartition(".")[2], "")
    place = modules[name].place if name in modules and split_key(key) else None
    weight = layout.shape(*place) if place else None
    return Entry(key, name, role, suffix, place, weight is not None, fitting.get(name, True), weight or ())


def _scaling(file: Tensors, modules: Mapping[str, LoraModule], scales: Scales | None) -> dict[str, Any]:
    """The fields of `Keys` about alphas, ranks and scales."""
    elsewhere = {}
    for name, module in modules.items():
        source = scales.source(module, name) if scales and f"{name}.alpha" not in file.tensors else None
        if source and module.scale != 1:
            elsewhere[name] = source
    return {
        "alphas": {
            name: module.alpha
            for name, module in modules.items()
            if module.alpha is not None and f"{name}.alpha" in file.tensors
        },
        "ranks": {name: module.rank for name, module in modules.items() if module.rank},
        "elsewhere": elsewhere,
    }


def _scale_range(modules: list[LoraModule]) -> tuple[float, float]:
    scales = [module.scale for module in modules]
    return min(scales), max(scales)


def _best_layout(modules: Mapping[str, LoraModule], bases: Path | None) -> Layout:
    """The layout of SDXL 1.0, unless the shapes fit a base on disk better."""
    if all(fits(module, sdxl()) for module in modules.values()):
        return sdxl()
    layouts = [sdxl()]
    for index in sorted(bases.glob("*/model_index.json")) if bases else []:
        try:
            layouts.append(layout_of(index.parent))
        except BaseError:  # a folder that is still being copied is no candidate
            continue
    return max(layouts, key=lambda layout: sum(fits(module, layout) for module in modules.values()))


def _faults(file: Tensors, modules: Mapping[str, LoraModule]) -> list[str]:
    """Sentences about values that no tool can compute with."""
    faults = []
    # ai-toolkit writes 9999999999, in fp16 infinity, beside a LoKr of two whole matrices: no tool uses it.
    unused = {f"{name}.{ALPHA}" for name, module in modules.items() if module.network and not module.rank}
    used = {key: tensor for key, tensor in file.tensors.items() if key not in unused}
    broken = [key for key, tensor in used.items() if not bool(tensor.float().isfinite().all())]
    if broken:
        faults.append(
            f"{len(broken)} tensors hold values that are no numbers, such as {broken[0]}; pictures come out "
            "black: use an earlier checkpoint"
        )
    wide = [
        key
        for key, tensor in used.items()
        if file.header.tensors[key].dtype in ("F32", "BF16", "F64")
        and tensor.numel()
        and float(tensor.nan_to_num().abs().max()) > _HALF_LIMIT
    ]
    if wide:
        faults.append(
            f"{len(wide)} tensors hold values beyond fp16, such as {wide[0]}; pictures come out black in "
            "tools that work in fp16: use an earlier checkpoint"
        )
    return faults


def _warnings(checked: _Checked) -> list[str]:
    """Sentences about what other tools do without a message."""
    file, keys = checked.file, checked.keys
    warnings = [
        *_scale_warnings(checked),
        bundled_notice(file.path, file.tensors),
        _dora_warning(keys),
        *_metadata_warnings(file),
    ]
    flat = [entry for entry in keys.entries if entry.style in ("flat", "dotted-flat")]
    if flat:
        warnings.append(
            f"{len(flat)} keys of text encoders lack text_model ({flat[0].key}); only diffusers takes them, "
            f"and only those of the first text encoder; Forge refuses the file for more than {FORGE_LIMIT}"
        )
    if any(entry.style == "diffusers" for entry in keys.entries):
        warnings.append(
            "with diffusers' block names, sd-scripts' sdxl_merge_lora.py --sd_model and --network_weights "
            "drop the UNet's modules; lora convert --to kohya mends it"
        )
    for part in ("text_encoder", "text_encoder_2"):
        paths = {entry.place[1] for entry in keys.entries if entry.place and entry.place[0] == part}
        lacking = [p for p in paths if p.endswith(".q_proj") and p.replace("q_proj", "out_proj") not in paths]
        if lacking:
            warnings.append(
                f"{PART_LABELS[part]} has no out_proj beside {lacking[0]}; diffusers may then refuse the "
                "file, and A1111 drops the attention of text encoder 2"
            )
    return [warning for warning in warnings if warning]


def _dora_warning(keys: Keys) -> str:
    lengths = {key: shape for key, shape in keys.shapes.items() if key.endswith(".dora_scale")}
    if any(entry.suffix.startswith(".lora_magnitude_vector") for entry in keys.entries):
        read = "only diffusers reads PEFT's lengths"
    elif not lengths:
        return ""
    elif all(shape[:1] == (1,) for shape in lengths.values()):
        read = "ComfyUI, Forge, A1111 and InvokeAI read it as it was trained, sd-scripts and diffusers do not"
    else:
        read = "only LyCORIS reads lengths of outputs as they were trained"
    return f"DoRA is not read by every tool: {read}; to be sure, bake it: lora bake"


def _metadata_warnings(file: Tensors) -> list[str]:
    metadata, header_bytes = file.header.metadata, file.header.start - 8
    warnings = []
    if metadata and not metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        warnings.append(
            "the metadata lacks ss_base_model_version = sdxl_…, so A1111 hides the file while an SDXL "
            "model is loaded"
        )
    if header_bytes > _HEADER_LIMIT:
        warnings.append(
            f"the header has {header_bytes:,} bytes; beyond 1 MiB ComfyUI shows no metadata: make the "
            "thumbnail smaller"
        )
    return warnings


def _scale_warnings(checked: _Checked) -> list[str]:
    keys = checked.keys
    warnings = _warnings_of_places(checked)
    boxed = [key for key, shape in keys.shapes.items() if key.endswith(".alpha") and shape != ()]
    if boxed:
        warnings.append(
            f"alpha has a shape ({boxed[0]}: {keys.shapes[boxed[0]]}); sd-scripts can't merge such a file: "
            "lora convert mends it"
        )
    return warnings


def _warnings_of_places(checked: _Checked) -> list[str]:
    """Sentences about modules without `.alpha`, whose scale other tools may not find."""
    keys = checked.keys
    without = {
        name: module
        for name, module in checked.modules.items()
        if module.rank and ALPHA not in keys.roles[name]
    }
    scales = checked.scales
    sources = {name: scales.source(module, name) if scales else None for name, module in without.items()}
    warnings = []
    for source in ("ss_network_alpha", "adapter_config.json", METADATA_KEY):
        scaled = [name for name, place in sources.items() if place == source and without[name].scale != 1]
        if scaled:
            warnings.append(
                f"the scale of {len(scaled)} modules is only in {source}, which "
                f"{'only diffusers reads' if source == METADATA_KEY else 'other tools do not read'}; "
                "elsewhere they have scale 1: lora convert --to kohya writes the scale beside the matrices"
            )
    unscaled = [name for name, place in sources.items() if place is None]
    if unscaled and any(entry.is_kohya for entry in keys.entries):
        warnings.append(
            f"{len(unscaled)} modules have no alpha; every tool then uses scale 1 (alpha = rank), whatever "
            "the training used"
        )
    if scales:
        warnings.append(scale_notice(checked.file.path, checked.file.header))
    return warnings
