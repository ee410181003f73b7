"""Modules that a tool applies without a message, but with another change than the trained one."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator

from trainer.lora_file.compatibility.keys import Keys

LABELS = {"unet": "the UNet", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj")
BAKE = "bake the file instead: lora bake"
_CONVERT = "lora convert --to kohya mends it"


def scales_elsewhere(keys: Keys, taken: Collection[str], known: str = "") -> Iterator[str]:
    """Sentences about scales that a tool does not find, because they are not beside the matrices.

    Args:
        taken: names of the modules that the tool applies.
        known: the place of scales that the tool reads too.
    """
    places = Counter(keys.elsewhere[name] for name in keys.elsewhere if name in taken)
    for place, count in places.items():
        if place != known:
            yield f"{count} modules get scale 1 instead of the one in {place}; {_CONVERT}"


def diffusers_alphas(keys: Keys, taken: Collection[str]) -> Iterator[str]:
    """Sentences about parts with several alphas in kohya's names, of which diffusers uses one.

    It applies the most frequent alpha of a part to all modules of the part, those without an alpha included.
    Its table of exceptions uses names that match its own modules only outside of attention, and in text
    encoder 1 nowhere (utils/peft_utils.py and loaders/lora_conversion_utils.py of 0.42).
    """
    for part, label in LABELS.items():
        names = [name for name in taken if keys.places.get(name, ("", ""))[0] == part and name in keys.ranks]
        own = [keys.alphas[name] for name in keys.alphas if name in names]
        if not own:
            continue
        common = Counter(own).most_common(1)[0][0]
        wrong = [
            name
            for name in names
            if keys.alphas.get(name, keys.ranks[name]) != common and not _is_exception(keys, name)
        ]
        if wrong:
            yield (
                f"{len(wrong)} modules of {label} get alpha {common:g} instead of their own, such as "
                f"{wrong[0]}; {_CONVERT}"
            )


def _is_exception(keys: Keys, name: str) -> bool:
    """True if diffusers finds the module's own alpha beside another one that is more frequent."""
    part, path = keys.places[name]
    return name in keys.alphas and part != "text_encoder" and not path.endswith(_ATTENTION)


def output_lengths(keys: Keys, taken: Collection[str], reading: str) -> Iterator[str]:
    """Sentences about DoRAs with a length for each output, for a tool that computes them in another way.

    Args:
        reading: the tool's own way, as the rest of a sentence.
    """
    names = [name for name in _by_output(keys) if name in taken]
    if names:
        yield f"{reading} in {len(names)} modules, such as {names[0]}; {BAKE}"


def _by_output(keys: Keys) -> Iterator[str]:
    """Names of the modules whose `dora_scale` has a length for each output."""
    for name in keys.roles:
        shape = keys.shapes.get(f"{name}.dora_scale")
        if shape and (shape[0] != 1 or shape[:2] == (1, 1)):
            yield name


@functools.lru_cache(maxsize=1)  # called for every key of a file
def flat_lengths(keys: Keys) -> frozenset[str]:
    """Names of modules whose `dora_scale` has one dimension, which no tool can divide by a norm.

    Where outputs and inputs are as many, the division works, but along the wrong axis.
    """
    return frozenset(
        name
        for name, weight in keys.weights.items()
        if len(keys.shapes.get(f"{name}.dora_scale", ())) == 1
        and (len(weight) != 2 or weight[0] != weight[1])
    )


@functools.lru_cache(maxsize=1)
def tucker_lokrs(keys: Keys) -> frozenset[str]:
    """Names of modules of LoKr with a Tucker core.

    torch.kron fails on the core's product, whose values are not in the order of its dimensions, unless the
    first matrix is a single number.
    """
    return frozenset(
        name
        for name, roles in keys.roles.items()
        if "lokr_t2" in roles and keys.shapes.get(f"{name}.lokr_w1") != (1, 1)
    )
