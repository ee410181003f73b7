"""From a file to an adapter: LoRA, LoCon, DoRA, LoHa and LoKr in any spelling, with every tensor accounted for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trainer.adapter.layer import Layer
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.adapter.lycoris import is_whole, product
from trainer.errors import LoraFileError
from trainer.headers.lora import BUNDLED, MAX_HEADER, bundled_notice
from trainer.headers.safetensors import read_header
from trainer.lora_file.matrices import Matrices, fitted, mixed, scale_of
from trainer.lora_file.module_names import accepted_names
from trainer.lora_file.tensor_names import split_key

LABELS = {
    "lora": "LoRA",
    "locon": "LoCon",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "diff": "whole matrices",
}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR = [
    first | second
    for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
    for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
]


def read_lora(path: Path) -> dict[str, Matrices]:
    """Module name -> matrices; embeddings that the file bundles are left out.

    Raises LoraFileError when the file is no such network or does not hold together.
    """
    read_header(path, LoraFileError, most=MAX_HEADER)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise LoraFileError(f"{path.name} can't be read ({error}); download or save it again") from None
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLED)}
    if not tensors:
        raise LoraFileError(f"{path.name} holds no tensors of a LoRA; save it again")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None:
            raise LoraFileError(
                f"{path.name} holds {key!r}, which is no part of a LoRA, LoCon, DoRA, LoHa or LoKr; look at it: lora check"
            )
        if split[1] in modules.setdefault(split[0], {}):
            raise LoraFileError(f"{path.name} holds the {split[1]} of {split[0]} twice; save it again")
        if not (tensor.dtype.is_floating_point or split[1] == "alpha"):
            raise LoraFileError(
                f"{path.name} holds {key} as {str(tensor.dtype).removeprefix('torch.')}, not as fractions; save it as fp16"
            )
        modules[split[0]][split[1]] = tensor.float()
    return {module: _matrices(module, found, path) for module, found in modules.items()}


def _matrices(module: str, found: dict[str, torch.Tensor], path: Path) -> Matrices:
    unfit = LoraFileError(
        f"{path.name}: the matrices of {module} are missing or don't fit; save the file again"
    )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise LoraFileError(
            f"{path.name}: {module} holds values that are no numbers; use an earlier checkpoint"
        )
    alpha = found.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise LoraFileError(f"{path.name}: {module} has an alpha of several numbers; save the file again")
    rank = next(
        (
            found[role].shape[0]
            for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
            if role in found and found[role].dim()
        ),
        0,
    )
    roles = set(found) - {"dora_scale"}
    scale = 1.0 if alpha is None or not rank else float(alpha) / rank
    if roles == {"down", "up"}:
        network = "dora" if "dora_scale" in found else "lora"
    elif roles == _LOHA or roles in _LOKR or roles == {"diff"}:
        network = "loha" if roles == _LOHA else "diff" if roles == {"diff"} else "lokr"
    else:
        try:
            found, network, rank = _multiplied_out(found, scale), "diff", 0
        except (KeyError, RuntimeError, IndexError):
            raise unfit from None
    if any(0 in tensor.shape for tensor in found.values()) or (
        network != "diff" and network != "lokr" and not rank
    ):
        raise unfit
    return Matrices(
        network, found, float(alpha) if alpha is not None and rank else float(rank or 1), rank or 1
    )


def _multiplied_out(found: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Tucker's form of a convolution (a core of k x k between the matrices, as LyCORIS has it) as one whole matrix.

    KeyError or RuntimeError where matrices are missing or don't fit.
    """
    extra = set(found)

    def core(name: str, left: str, right: str) -> torch.Tensor:
        extra.difference_update((name, left, right))
        return torch.einsum("abkl,ao,bi->oikl", found[name], found[left], found[right]).contiguous()

    if "mid" in found:  # its up and down are (O, R, 1, 1) and (R, I, 1, 1)
        extra -= {"mid", "up", "down"}
        whole = torch.einsum(
            "abkl,oa,bi->oikl", found["mid"], found["up"].flatten(1), found["down"].flatten(1)
        )
    elif "hada_t1" in found:
        whole = core("hada_t1", "hada_w1_a", "hada_w1_b") * core("hada_t2", "hada_w2_a", "hada_w2_b")
    else:
        first = found["lokr_w1"] if "lokr_w1" in found else found["lokr_w1_a"] @ found["lokr_w1_b"]
        extra -= {"lokr_w1", "lokr_w1_a", "lokr_w1_b"}
        whole = torch.kron(first[..., None, None], core("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
    if extra - {"dora_scale"}:
        raise KeyError(extra)
    return {"diff": whole * scale, **({"dora_scale": found["dora_scale"]} if "dora_scale" in found else {})}


def attach_lora(path: Path, models: dict[str, nn.Module]) -> Adapter:
    """An adapter of the file's matrices in `models` (part -> model). Raises LoraFileError, as `attach_mix` does."""
    return attach_mix([(path, 1.0)], models)


def attach_mix(files: Sequence[tuple[Path, float]], models: dict[str, nn.Module]) -> Adapter:
    """One adapter of several files, each at its weight; a layer that only some of them change gets theirs.

    Raises LoraFileError when a module of a file is not in the models: a LoRA that is only half applied looks wrong
    without a word.
    """
    adapter = Adapter()
    try:
        _attach_all(files, adapter, models)
    except BaseException:
        for part in list(adapter.layers):  # the models are themselves again
            adapter.detach(part, models[part])
        raise
    return adapter


def _attach_all(files: Sequence[tuple[Path, float]], adapter: Adapter, models: dict[str, nn.Module]) -> None:
    held = [(path, weight, read_lora(path)) for path, weight in files]
    for part, model in models.items():
        sizes, chosen = {}, {}
        for module_path, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            parts = [
                (weight, taken)
                for path, weight, of in held
                if (taken := _taken(of, part, module_path, module, path))
            ]
            if parts:
                found = parts[0][1] if len(files) == 1 and parts[0][0] == 1 else mixed(parts, module)
                shapes = {role: tuple(tensor.shape) for role, tensor in found.tensors.items()}
                sizes[module_path] = LayerSpec(
                    rank=found.rank, alpha=found.alpha, network=found.network, shapes=shapes
                )
                chosen[module_path] = found
        if sizes:
            adapter.attach(part, model, sizes)
            for module_path, found in chosen.items():
                _copy(found.tensors, adapter.layers[part][module_path].tensors())
    for path, _, left in held:
        if left:
            raise LoraFileError(
                f"{path.name} holds {len(left)} modules that this base lacks, such as {next(iter(left))}; choose its base"
            )


def refill(files: Sequence[tuple[Path, float]], adapter: Adapter) -> bool:
    """Puts the matrices of files in the place of those that `attach_mix` gave, when all are made alike; otherwise leaves them."""
    held = [(path, weight, read_lora(path)) for path, weight in files]
    found: list[tuple[Matrices, Layer]] = []
    for part, module_path, layer in adapter.walk():
        try:
            parts = [
                (weight, taken)
                for path, weight, of in held
                if (taken := _taken(of, part, module_path, layer.base, path))
            ]
        except LoraFileError:  # told when it is attached
            return False
        if not parts:
            return False
        made = parts[0][1] if len(files) == 1 and parts[0][0] == 1 else mixed(parts, layer.base)
        shapes = {role: tensor.shape for role, tensor in layer.tensors().items()}
        is_alike = (
            made.network == layer.network
            and {role: tensor.shape for role, tensor in made.tensors.items()} == shapes
        )
        if not is_alike or made.alpha != layer.alpha:
            return False
        found.append((made, layer))
    if any(left for _, _, left in held):
        return False
    for made, layer in found:
        _copy(made.tensors, layer.tensors())
    return True


def _taken(
    matrices: dict[str, Matrices], part: str, module_path: str, module: nn.Linear | nn.Conv2d, path: Path
) -> Matrices | None:
    """What a file holds for one layer, taken out of `matrices`; None when that is nothing."""
    names = [name for name in _names(part, module_path) if name in matrices]
    if len(names) > 1:
        raise LoraFileError(f"{path.name} holds {names[0]} twice, also as {names[1]}; save it again")
    if not names:
        return None
    return fitted(
        matrices.pop(names[0]), module, f"{path.name} was trained on a base of another shape ({names[0]})"
    )


def _names(part: str, path: str) -> list[str]:
    """Every spelling of a module; PEFT's files of a UNet alone have its bare path."""
    return list(dict.fromkeys([*accepted_names(part, path), *([path] if part == "unet" else [])]))


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, nn.Parameter]) -> None:
    for role, parameter in target.items():
        parameter.copy_(source[role])


def start_from(path: Path, adapter: Adapter) -> str:
    """Puts a file's matrices into the adapter, their scale folded into it; layers that the file lacks start as usual.

    Returns what of the file is left out, in a sentence, or "". Raises LoraFileError where networks or ranks differ, or the file has a layer that the adapter lacks.
    """
    matrices = read_lora(path)
    for part, layer_path, layer in adapter.walk():
        name = next((name for name in _names(part, layer_path) if name in matrices), None)
        if name is None:
            continue
        found, own = (
            fitted(
                matrices.pop(name), layer.base, f"{path.name} was trained on a base of another shape ({name})"
            ),
            layer.tensors(),
        )
        if found.network != layer.network:
            raise LoraFileError(
                f"{path.name} is a {LABELS[found.network]}, and this training makes a {LABELS[layer.network]}; set network"
            )
        if found.rank != layer.rank and not is_whole(own):
            wanted = f"rank {found.rank} in {part}.{layer_path}, and this training rank {layer.rank}"
            raise LoraFileError(f"{path.name} has {wanted}; set the file's ranks, or resize it first")
        other = [
            role for role in own if role not in found.tensors or found.tensors[role].shape != own[role].shape
        ]
        if other:
            raise LoraFileError(
                f"{path.name} has another {other[0]} in {part}.{layer_path} than this training; start from a file made like it"
            )
        _copy(
            {
                **found.tensors,
                layer.zero_init_role: found.tensors[layer.zero_init_role] * (scale_of(found) / layer.scale),
            },
            own,
        )
    if matrices:
        raise LoraFileError(
            f"{path.name} adapts {len(matrices)} layers that this training does not, such as {next(iter(matrices))}; "
            "adapt them too (network, train_feed_forward, train_text_encoder_1 and 2, include_layers)"
        )
    return bundled_notice(path, read_header(path, LoraFileError, most=MAX_HEADER).tensors)


def parts_of(path: Path) -> set[str]:
    """Which of `unet`, `text_encoder`, `text_encoder_2` a file changes, from its header alone."""
    header = read_header(path, LoraFileError, most=MAX_HEADER).tensors
    marks = {
        "unet": ("lora_unet_", "unet.", "diffusion_model."),
        "text_encoder": ("lora_te1_", "lora_te_", "text_encoder.", "text_encoders.clip_l."),
        "text_encoder_2": ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g."),
    }
    return {part for part, starts in marks.items() if any(key.startswith(starts) for key in header)}


def describe(path: Path) -> Iterator[tuple[str, str]]:
    """(label, value) lines for `lora inspect`."""
    matrices, header = read_lora(path), read_header(path, LoraFileError, most=MAX_HEADER)
    yield "file", f"{path.name}, {path.stat().st_size:,} bytes"
    kinds = Counter(
        "locon" if m.network == "lora" and m.is_convolution else m.network for m in matrices.values()
    )
    if {"lora", "locon"} == set(kinds):
        kinds = Counter(locon=len(matrices))
    yield (
        "network",
        ", ".join(
            f"{LABELS[kind]}{f' ({count} modules)' if len(kinds) > 1 else ''}"
            for kind, count in kinds.most_common()
        ),
    )
    for part, label in (
        ("lora_unet_", "UNet"),
        ("lora_te1_", "text encoder 1"),
        ("lora_te2_", "text encoder 2"),
    ):
        dotted = {"lora_unet_": "unet.", "lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."}[part]
        found = [m for name, m in matrices.items() if name.startswith((part, dotted))]
        if found:
            ranked = [m for m in found if not is_whole(m.tensors)]
            whole = f", {len(found) - len(ranked)} of whole matrices" if len(ranked) < len(found) else ""
            span = (
                f", rank {_span({m.rank for m in ranked})}, alpha {_span({m.alpha for m in ranked})}"
                if ranked
                else ""
            )
            yield label, f"{len(found)} modules{span}{whole}"
    yield "parameters", f"{sum(t.numel() for m in matrices.values() for t in m.tensors.values()):,}"
    change = sum(_norm(path, name, m) for name, m in matrices.items()) / len(matrices)
    yield "mean change", f"{change:.4g} (Frobenius norm of alpha/rank B A)"
    if notice := bundled_notice(path, header.tensors):
        yield "note", notice
    for key, value in header.metadata.items():
        if key.startswith(("modelspec.", "sshs_", "ss_base", "ss_output", "ss_network_", "ss_sd_model_name")):
            yield key, value if len(value) <= 100 else f"{value[:60]}… ({len(value):,} characters)"


def _norm(path: Path, name: str, found: Matrices) -> float:
    """Frobenius norm of the scaled product of matrices, whatever layer it is for."""
    meta = {role: torch.empty(tensor.shape, device="meta") for role, tensor in found.tensors.items()}
    try:
        size = product(found.network, meta, (-1,)).numel()
        if size > 1 << 28:  # no layer of SDXL is a tenth of it
            raise RuntimeError
        return float(product(found.network, found.tensors, (size,)).norm()) * math.fabs(scale_of(found))
    except RuntimeError:
        raise LoraFileError(
            f"{path.name}: the matrices of {name} are missing or don't fit; save the file again"
        ) from None


def _span(values: Collection[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
