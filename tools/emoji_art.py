"""The open emoji art that the bundled base is trained on: where it comes from, its names, its pictures.

Five sets teach the base; a sixth, `fluent-emoji-high-contrast`, stays out of it, because it is the sample style
that an artist's first LoRA learns.

    art = load(cache)                  # fetches from npm once, renders once
    art.pictures[i]                    # (128, 128, 3) uint8, on white
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
HELD_OUT_SHARE = 50  # every 50th name is kept away from the autoencoder, to measure it on


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
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
    """Rendered pictures and their names; row i of each belongs together."""

    pictures: np.ndarray  # (n, 128, 128, 3) uint8
    names: list[str]
    sets: list[str]

    def held_out(self) -> np.ndarray:
        """(n,) bool: pictures whose name is kept away from training, in every set alike."""
        kept_away = set(sorted(set(self.names))[::HELD_OUT_SHARE])
        return np.array([name in kept_away for name in self.names])


def load(cache: Path, sets: tuple[EmojiSet, ...] = TRAINING_SETS, size: int = SIZE) -> Art:
    """All pictures of `sets`, rendered once and then read from `cache`."""
    known = {squeeze(name) for emoji in sets if emoji.package != "fxemoji" for name in icons(emoji, cache)}
    pictures, names, owners = [], [], []
    for emoji in sets:
        drawn_names, drawn = _rendered(emoji, cache, size)
        for name, picture in zip(drawn_names, drawn, strict=True):
            # fxemoji writes names without spaces; those that no other set explains would teach nonsense.
            if emoji.package == "fxemoji" and known and squeeze(name) not in known:
                continue
            names.append(name)
            owners.append(emoji.package)
            pictures.append(picture)
    if any(emoji.package == "fxemoji" for emoji in sets):
        spaced = {squeeze(name): name for name in names if " " in name}
        names = [spaced.get(squeeze(name), name) for name in names]
    return Art(np.stack(pictures), names, owners)


def icons(emoji: EmojiSet, cache: Path) -> dict[str, str]:
    """Name -> SVG text of one set, skin tones and flags left out."""
    package = _fetched(emoji, cache)
    bodies, width, height = package["icons"], package.get("width", 16), package.get("height", 16)
    chosen = {}
    for key, icon in bodies.items():
        if _SKIN.search(key) or "flag" in key:
            continue
        if _SKIN_SUFFIX.search(key) and _SKIN_SUFFIX.sub("", key) in bodies and key != "police-car-light":
            continue
        w, h = icon.get("width", width), icon.get("height", height)
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"].replace("currentColor", "#000")
        chosen[key.replace("-", " ")] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {w} {h}">{body}</svg>'
        )
    return chosen


def squeeze(name: str) -> str:
    return name.replace(" ", "").lower()


def article(name: str) -> str:
    """`a red apple`, `an owl`, and names that take none."""
    if (name.endswith("s") and not name.endswith("ss")) or name[0].isdigit():
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def render(svg: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8 on white, with a margin of one sixteenth."""
    import resvg_py

    inner = size - 2 * (size // 16)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", (size, size), "white")
    page.alpha_composite(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return np.asarray(page.convert("RGB"))


def _render_one(job: tuple[str, int]) -> np.ndarray | None:
    try:
        return render(*job)
    except ValueError:  # a few icons use SVG that resvg doesn't draw
        return None


def _rendered(emoji: EmojiSet, cache: Path, size: int) -> tuple[list[str], np.ndarray]:
    store = cache / f"{emoji.package}-{emoji.version}-{size}.npz"
    if not store.exists():
        drawings = icons(emoji, cache)
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_render_one, [(svg, size) for svg in drawings.values()], chunksize=32))
        kept = [(name, picture) for name, picture in zip(drawings, drawn, strict=True) if picture is not None]
        part = store.with_suffix(".part.npz")
        np.savez(
            part,
            names=np.array([name for name, _ in kept]),
            pictures=np.stack([picture for _, picture in kept]),
        )
        part.rename(store)
    with np.load(store) as saved:
        return [str(name) for name in saved["names"]], saved["pictures"]


def _fetched(emoji: EmojiSet, cache: Path) -> dict:
    """icons.json of a set; `npm pack` brings the package the first time."""
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
