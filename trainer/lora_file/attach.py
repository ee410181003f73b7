"""Adapters from LoRA files: attached to models to generate images, or copied into a training as its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from trainer.adapter.layer import Layer
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.adapter.roles import is_whole
from trainer.errors import LoraFileError
from trainer.headers.lora import lora_path, recognise
from trainer.lora_file.modules import NETWORK_LABELS, LoraFile, LoraModule, side_by_side
from trainer.lora_file.reader import read_modules
from trainer.lora_file.scales import file_notice
from trainer.lora_file.sdxl_modules import find_module
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, LOHA, UP, split_key
from trainer.lora_file.text_encoder_alone import text_encoder_of
from trainer.sdxl.protocols import Module

LayerBase = nn.Linear | nn.Conv2d


def attach_lora(path: Path, models: Mapping[str, Module]) -> Adapter:
    """Attaches a LoRA file to `models` (part -> model). Raises LoraFileError, as `attach_mix` does."""
    return attach_mix([(path, 1.0)], models)


def attach_mix(files: Sequence[tuple[Path, float]], models: Mapping[str, Module]) -> Adapter:
    """Attaches the weighted sum of several LoRA files as one adapter; each file may change other layers.

    Raises:
        LoraFileError: a file can't be read, or has a module that the models lack: a LoRA that is applied in
            part generates wrong images without any other sign. The models are then as before.
    """
    mix = _Mix(files)
    adapter = Adapter()
    try:
        attached: set[tuple[str, str]] = set()
        for part, model in models.items():
            attached |= _attach_part(mix, adapter, part, model)
        mix.expect_attached(attached)
    except BaseException:
        for part in list(adapter.layers):
            adapter.detach(part, models[part])
        raise
    return adapter


def _attach_part(mix: _Mix, adapter: Adapter, part: str, model: Module) -> set[tuple[str, str]]:
    """Attaches the modules of one part; returns the layers that they change."""
    modules = {
        path: module
        for path, base in model.named_modules()
        if isinstance(base, LayerBase) and (module := mix.module(part, path, base))
    }
    if modules:
        adapter.attach(part, model, {path: _layer_spec(module) for path, module in modules.items()})
        for path, module in modules.items():
            _copy(module, adapter.layers[part][path].tensors())
    return {(part, _file_path(path)) for path in modules}


def try_swap_weights(files: Sequence[tuple[Path, float]], adapter: Adapter) -> bool:
    """Replaces the matrices of an adapter from `attach_mix` by those of other files.

    Returns False, and changes nothing, unless the files have the same networks, shapes and alphas in the same
    layers.
    """
    mix = _Mix(files)
    swaps: list[tuple[LoraModule, Layer]] = []
    try:
        for part, path, layer in adapter.walk():
            module = mix.module(part, path, layer.base)
            if module is None or not _is_alike(module, layer):
                return False
            swaps.append((module, layer))
        mix.expect_attached({(part, _file_path(path)) for part, path, _ in adapter.walk()})
    except LoraFileError:  # `attach_mix` raises it again
        return False
    for module, layer in swaps:
        _copy(module, layer.tensors())
    return True


class _Mix:
    """LoRA files with their weights."""

    def __init__(self, files: Sequence[tuple[Path, float]]) -> None:
        self.files = [(read_modules(path), weight) for path, weight in files]

    def module(self, part: str, path: str, base: LayerBase) -> LoraModule | None:
        """The weighted sum of the files' modules for a layer, in the shapes of its weight, or None."""
        place = part, _file_path(path)
        terms = [
            (weight, fitted(file.by_layer[place], base, file))
            for file, weight in self.files
            if place in file.by_layer
        ]
        if len(self.files) == 1 and terms and terms[0][0] == 1:
            return terms[0][1]
        return _weighted_sum(terms, base) if terms else None

    def expect_attached(self, layers: set[tuple[str, str]]) -> None:
        """Raises LoraFileError unless `layers` contains all layers that the files change."""
        for file, _ in self.files:
            if missing := [place for place in file.by_layer if place not in layers]:
                raise LoraFileError(
                    f"{file.path.name} holds {len(missing)} modules that this base lacks, such as "
                    f"{missing[0][0]}.{missing[0][1]}; choose its base"
                )


def fitted(module: LoraModule, base: LayerBase, file: LoraFile) -> LoraModule:
    """The module in fp32 with its matrices in the shapes that a layer of the adapter has.

    Raises:
        LoraFileError: the module is of a layer with another shape, or of no network that is computed with.
    """
    shape = tuple(base.weight.shape)
    if module.network is None:
        raise LoraFileError(f"{file.path.name}: {module.unsupported()}")
    if module.sides != (shape[0], torch.Size(shape[1:]).numel()):
        raise LoraFileError(
            f"{file.path.name} was trained on a base of another shape ({module.part}.{module.path}); choose "
            "that base"
        )
    module = module.as_lora()
    tensors = {role: tensor.float() for role, tensor in module.tensors.items()}
    ones = [1] * len(shape[2:])
    if module.network == "tucker":  # the adapter has no layer for it: the core is multiplied out
        tensors = {"diff": module.product().reshape(shape)} | {
            role: tensor for role, tensor in tensors.items() if role == DORA
        }
    elif DOWN in tensors:  # the matrices of a linear layer may be written as those of a 1 x 1 convolution
        tensors[DOWN] = tensors[DOWN].reshape(-1, *shape[1:])
        tensors[UP] = tensors[UP].reshape(shape[0], -1, *ones)
    elif module.network == "loha":  # OneTrainer's matrices of a convolution have four dimensions
        tensors |= {role: tensors[role].flatten(1) for role in LOHA}
    if DORA in tensors:
        tensors[DORA] = tensors[DORA].reshape(*tensors[DORA].shape[:2], *ones)
    return replace(module, tensors=tensors)


def _weighted_sum(terms: Sequence[tuple[float, LoraModule]], base: LayerBase) -> LoraModule:
    """The sum of w_i times the change of each module, all `fitted` to one layer.

    LoRAs are put side by side: exact, and their ranks add up. The change of a DoRA, LoHa or LoKr is no
    product that could be joined with others, so the sum is then one whole matrix.
    """
    first = terms[0][1]
    if all(module.network == "lora" for _, module in terms):
        up, down = side_by_side(terms)
        shape = base.weight.shape
        tensors = {
            DOWN: down.reshape(-1, *shape[1:]),
            UP: up.reshape(shape[0], -1, *[1] * len(shape[2:])),
        }
        return replace(first, tensors=tensors)
    weight = base.weight.detach().float().cpu()
    whole = torch.stack([factor * module.change(weight) for factor, module in terms]).sum(0)
    return replace(first, tensors={"diff": whole})


def _layer_spec(module: LoraModule) -> LayerSpec:
    """The description of a layer for a fitted module."""
    rank = module.rank or 1
    alpha = module.alpha if module.rank and module.alpha is not None else float(rank)
    shapes = {role: tuple(tensor.shape) for role, tensor in module.tensors.items() if role != ALPHA}
    return LayerSpec(rank=rank, alpha=alpha, network=module.network or "", shapes=shapes)


def _is_alike(module: LoraModule, layer: Layer) -> bool:
    """True where the matrices of a fitted module can replace those of a layer."""
    spec = _layer_spec(module)
    shapes = {role: tuple(tensor.shape) for role, tensor in layer.tensors().items()}
    return (spec.network, spec.shapes, spec.alpha) == (layer.network, shapes, layer.alpha)


@torch.no_grad()
def _copy(module: LoraModule, parameters: dict[str, nn.Parameter]) -> None:
    """Copies the matrices of a fitted module into the parameters of a layer, by role."""
    for role, parameter in parameters.items():
        parameter.copy_(module.tensors[role])


def _file_path(path: str) -> str:
    """A module path of a model without `text_model.`, which only some versions of transformers have in it."""
    return path.removeprefix("text_model.")


def start_from(path: Path, adapter: Adapter) -> str:
    """Copies the matrices of a file into an adapter that is trained, with the file's scale in them.

    Layers that the file lacks keep their initial values.

    Returns:
        A sentence about the parts of the file that are left out, or "".

    Raises:
        LoraFileError: networks or ranks differ, or the file has a layer that the adapter lacks.
    """
    file = read_modules(path)
    remaining = dict(file.by_layer)
    for part, layer_path, layer in adapter.walk():
        module = remaining.pop((part, _file_path(layer_path)), None)
        if module:
            _start_layer(layer, fitted(module, layer.base, file), file)
    if remaining:
        part, layer_path = next(iter(remaining))
        raise LoraFileError(
            f"{file.path.name} adapts {len(remaining)} layers that this training does not, such as "
            f"{part}.{layer_path}; adapt them too (network, train_feed_forward, train_text_encoder_1 and 2, "
            "include_layers)"
        )
    return file_notice(file.path)


def _start_layer(layer: Layer, module: LoraModule, file: LoraFile) -> None:
    """Copies a fitted module into a layer. Raises LoraFileError where network, rank or shapes differ."""
    own, name, where = layer.tensors(), file.path.name, f"{module.part}.{module.path}"
    if module.network != layer.network:
        raise LoraFileError(
            f"{name} is a {module.kind} ({where}), and this training makes a "
            f"{NETWORK_LABELS[layer.network]}; set network"
        )
    if module.rank != layer.rank and not is_whole(own):
        raise LoraFileError(
            f"{name} has rank {module.rank} in {where}, and this training rank {layer.rank}; "
            "set the file's ranks, or resize it first"
        )
    shapes = {role: tensor.shape for role, tensor in module.tensors.items() if role != ALPHA}
    own_shapes = {role: tensor.shape for role, tensor in own.items()}
    roles = sorted({*shapes, *own_shapes})
    if other := [role for role in roles if shapes.get(role) != own_shapes.get(role)]:
        raise LoraFileError(
            f"{name} has another {other[0]} in {where} than this training; start from a file made like it"
        )
    scaled = module.tensors[layer.zero_init_role] * (module.scale / layer.scale)
    _copy(replace(module, tensors={**module.tensors, layer.zero_init_role: scaled}), own)


def changed_parts(path: Path) -> set[str]:
    """The parts `unet`, `text_encoder` and `text_encoder_2` that a file changes, from its header alone."""
    path = lora_path(path)
    header = recognise(path)
    text_encoder = text_encoder_of(path, header)
    splits = (split_key(key) for key in header.tensors)
    places = (find_module(split[0], text_encoder) for split in splits if split)
    return {place[0] for place in places if place}
