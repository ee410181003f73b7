"""Writes a single-file checkpoint of the original layout, from a diffusers folder or with random weights.

    python -m tools.write_checkpoint random.safetensors                        # SDXL, random weights: 6.9 GB
    python -m tools.write_checkpoint tiny.safetensors --of models/tiny-sdxl    # the bundled base as one file

A model of random weights generates noise, but it loads, trains and takes memory as SDXL does. One tensor is
in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from trainer.atomic_files import replacing
from trainer.headers.base_model import TEXT_1, TEXT_2
from trainer.sdxl.base import ORIGINAL
from trainer.sdxl.ldm_names import Source, ldm_source
from trainer.sdxl.weight_files import PARTS, FolderWeights
from trainer.sdxl.weights import build

CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
Lookup = Callable[[str, str, torch.Size], torch.Tensor]  # part, name, shape -> the weight


def write(
    path: Path,
    configs: Path,
    lookup: Lookup,
    *,
    dtype: torch.dtype,
    parts: Iterable[str] = PARTS,
    markers: Iterable[str] = (),
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint.

    Args:
        configs: folder of the base's configuration.
        lookup: returns each weight.
        markers: names of empty tensors such as `v_pred`, by which some models state their prediction type.
    """
    weights = {part: _by_key(part, build(part, configs)) for part in parts}
    plan = {key: (part, pieces) for part, keys in weights.items() for key, pieces in keys.items()}
    shapes = {key: _shape(key, pieces) for key, (_, pieces) in plan.items()}
    extra: dict[str, torch.Tensor] = {marker: torch.zeros(0, dtype=dtype) for marker in markers}
    if "text_encoder" in weights:  # Stability's file has two tensors more than diffusers' modules
        extra[f"{TEXT_1}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if "text_encoder_2" in weights:
        extra[f"{TEXT_2}logit_scale"] = torch.tensor(4.6, dtype=dtype)
    header: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    entries = {key: (dtype, torch.Size(shape)) for key, shape in shapes.items()}
    entries |= {key: (tensor.dtype, tensor.shape) for key, tensor in extra.items()}
    start = 0
    for key, (kind, shape) in entries.items():
        end = start + kind.itemsize * shape.numel()
        header[key] = {"dtype": CODES[kind], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with replacing(path, sync=False) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, (part, pieces) in plan.items():
            file.write(_bytes(_joined(part, pieces, lookup).reshape(shapes[key]).to(dtype)))
        for tensor in extra.values():
            file.write(_bytes(tensor))


Piece = tuple[str, torch.Size, Source]


def _by_key(part: str, model: torch.nn.Module) -> dict[str, list[Piece]]:
    """Returns the parameters of each tensor of the file by its key: one, or q, k and v."""
    keys: dict[str, list[Piece]] = {}
    for name, tensor in model.state_dict().items():
        source = ldm_source(part, name)
        keys.setdefault(source.key, []).append((name, tensor.shape, source))
    return {key: sorted(pieces, key=lambda piece: piece[2].third or 0) for key, pieces in keys.items()}


def _shape(key: str, pieces: list[Piece]) -> tuple[int, ...]:
    _, shape, source = pieces[0]
    if source.transposed:
        return tuple(reversed(shape))
    one_by_one = (1, 1) if ".mid.attn_1." in key and len(shape) == 2 else ()
    return (shape[0] * len(pieces), *shape[1:], *one_by_one)


def _joined(part: str, pieces: list[Piece], lookup: Lookup) -> torch.Tensor:
    parts = [lookup(part, name, shape) for name, shape, _ in pieces]
    joined = torch.cat(parts)
    return joined.T.contiguous() if pieces[0][2].transposed else joined


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def random_weights(seed: int) -> Lookup:
    """Returns random weights that preserve the scale of activations.

    Norms are 1, biases 0, all others normal with deviation 1 / sqrt(inputs).
    """
    generator = torch.Generator().manual_seed(seed)

    def of(part: str, name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        deviation = 0.02 if "embedding" in name and part != "unet" else shape[1:].numel() ** -0.5
        return torch.empty(shape).normal_(std=deviation, generator=generator)

    return of


def folder_weights(folder: Path) -> Lookup:
    """Returns the weights of a diffusers folder; those of one part are in memory at a time."""
    weights = FolderWeights(folder)
    known: dict[str, dict[str, torch.Tensor]] = {}

    def of(part: str, name: str, shape: torch.Size) -> torch.Tensor:
        if part not in known:
            known.clear()
            known[part] = {key: tensor.clone() for key, tensor in weights.tensors(part, build(part, folder))}
        return known[part][name]

    return of


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--of", type=Path, help="a diffusers folder; without it, SDXL with random weights")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--marker", action="append", default=[], help="v_pred, ztsnr")
    parser.add_argument("--without-vae", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = [part for part in PARTS if not (options.without_vae and part == "vae")]
    lookup = folder_weights(options.of) if options.of else random_weights(options.seed)
    write(
        options.out,
        options.of or ORIGINAL,
        lookup,
        dtype=getattr(torch, options.dtype),
        parts=parts,
        markers=options.marker,
    )
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
