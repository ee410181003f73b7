"""Open emoji art, the training data of the bundled base: sources, names and rendered images.

The base is trained on five sets. A sixth, `fluent-emoji-high-contrast`, is excluded, because it is the style
of the sample set, which a first LoRA learns.

    art = load(cache)                  # downloads from npm once, renders once
    art.images[i]                      # (128, 128, 3) uint8, on white
    art.names[i], art.sets[i]          # "red apple", "noto"
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
HELD_OUT_EVERY = 50  # every 50th name is excluded from the autoencoder's training, for validation


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """A set of emoji: its npm package, its licence, and the words for its style in captions."""

    package: str
    version: str
    licence: str
    author: str
    source: str
    style: str


TRAINING_SETS = (
    EmojiSet(
        package="noto",
        version="1.2.9",
        licence="Apache-2.0",
        author="Google Inc",
        source="https://github.com/googlefonts/noto-emoji",
        style="noto style",
    ),
    EmojiSet(
        package="noto-v1",
        version="1.2.5",
        licence="Apache-2.0",
        author="Google Inc",
        source="https://github.com/googlefonts/noto-emoji",
        style="blob style",
    ),
    EmojiSet(
        package="fxemoji",
        version="1.2.2",
        licence="Apache-2.0",
        author="Mozilla",
        source="https://github.com/mozilla/fxemoji",
        style="firefox style",
    ),
    EmojiSet(
        package="fluent-emoji",
        version="1.2.7",
        licence="MIT",
        author="Microsoft Corporation",
        source="https://github.com/microsoft/fluentui-emoji",
        style="glossy style",
    ),
    EmojiSet(
        package="fluent-emoji-flat",
        version="1.2.6",
        licence="MIT",
        author="Microsoft Corporation",
        source="https://github.com/microsoft/fluentui-emoji",
        style="flat style",
    ),
)
SAMPLE_SET = EmojiSet(
    package="fluent-emoji-high-contrast",
    version="1.2.6",
    licence="MIT",
    author="Microsoft Corporation",
    source="https://github.com/microsoft/fluentui-emoji",
    style="ink style",
)

_SKIN = re.compile(r"skin-tone|-tone\d|(^|-)(medium-light|medium-dark|medium)(-|$)")
_SKIN_SUFFIX = re.compile(r"-(light|dark|default)$")


@dataclass(frozen=True)
class Art:
    """Rendered images with the name and the set of each."""

    images: np.ndarray  # (n, 128, 128, 3) uint8
    names: list[str]
    sets: list[str]

    def held_out(self) -> np.ndarray:
        """Returns (n,) bool: images whose name is excluded from training, in all sets alike."""
        excluded = set(sorted(set(self.names))[::HELD_OUT_EVERY])
        return np.array([name in excluded for name in self.names])


def load(cache: Path, sets: tuple[EmojiSet, ...] = TRAINING_SETS, size: int = SIZE) -> Art:
    """Returns all images of some sets, rendered once and then read from the cache.

    Args:
        cache: folder of downloaded packages and rendered images.
        size: side of an image in px.
    """
    known = {squeeze(name) for emoji in sets if emoji.package != "fxemoji" for name in icons(emoji, cache)}
    images, names, owners = [], [], []
    for emoji in sets:
        for name, image in zip(*_rendered(emoji, cache, size), strict=True):
            # fxemoji has names without spaces. Those that are in no other set can't be separated into words.
            if emoji.package == "fxemoji" and known and squeeze(name) not in known:
                continue
            names.append(name)
            owners.append(emoji.package)
            images.append(image)
    if any(emoji.package == "fxemoji" for emoji in sets):
        spaced = {squeeze(name): name for name in names if " " in name}
        names = [spaced.get(squeeze(name), name) for name in names]
    return Art(np.stack(images), names, owners)


def icons(emoji: EmojiSet, cache: Path) -> dict[str, str]:
    """Returns the SVG text of each icon of a set by name, without skin tones and flags."""
    package = _download(emoji, cache)
    bodies, width, height = package["icons"], package.get("width", 16), package.get("height", 16)
    texts = {}
    for key, icon in bodies.items():
        if _SKIN.search(key) or "flag" in key:
            continue
        if _SKIN_SUFFIX.search(key) and _SKIN_SUFFIX.sub("", key) in bodies and key != "police-car-light":
            continue
        w, h = icon.get("width", width), icon.get("height", height)
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"].replace("currentColor", "#000")
        texts[key.replace("-", " ")] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {w} {h}">{body}</svg>'
        )
    return texts


def squeeze(name: str) -> str:
    """Returns a name without spaces, in lower case."""
    return name.replace(" ", "").lower()


def article(name: str) -> str:
    """Returns a name with its article: `a red apple`, `an owl`, `scissors`."""
    if (name.endswith("s") and not name.endswith("ss")) or name[0].isdigit():
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def render(svg: str, size: int) -> np.ndarray:
    """Returns an SVG as (size, size, 3) uint8 on white, with a margin of one sixteenth."""
    import resvg_py

    inner = size - 2 * (size // 16)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner))
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", (size, size), "white")
    page.alpha_composite(icon, ((size - icon.width) // 2, (size - icon.height) // 2))
    return np.asarray(page.convert("RGB"))


def _render_one(job: tuple[str, int]) -> np.ndarray | None:
    try:
        return render(*job)
    except ValueError:  # a few icons use features of SVG that resvg does not support
        return None


def _rendered(emoji: EmojiSet, cache: Path, size: int) -> tuple[list[str], np.ndarray]:
    store = cache / f"{emoji.package}-{emoji.version}-{size}.npz"
    if not store.exists():
        texts = icons(emoji, cache)
        with ProcessPoolExecutor() as pool:
            images = list(pool.map(_render_one, [(svg, size) for svg in texts.values()], chunksize=32))
        rendered = [(name, image) for name, image in zip(texts, images, strict=True) if image is not None]
        part = store.with_suffix(".part.npz")
        np.savez(
            part,
            names=np.array([name for name, _ in rendered]),
            pictures=np.stack([image for _, image in rendered]),
        )
        part.rename(store)
    with np.load(store) as saved:
        return [str(name) for name in saved["names"]], saved["pictures"]


def _download(emoji: EmojiSet, cache: Path) -> dict:
    """Returns icons.json of a set; the first call downloads the package with `npm pack`."""
    store = cache / f"{emoji.package}-{emoji.version}.json"
    if not store.exists():
        cache.mkdir(parents=True, exist_ok=True)
        name = f"@iconify-json/{emoji.package}@{emoji.version}"
        packed = subprocess.run(
            ["npm", "pack", "--silent", name], cwd=cache, check=True, capture_output=True, text=True
        )
        archive = cache / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/icons.json")
            assert member is not None
            store.write_bytes(member.read())
        archive.unlink()
    return json.loads(store.read_text())
