"""Writes `datasets/ink-emoji/`: 24 images in a style that the bundled base was not trained on.

python -m tools.make_sample_set --out datasets/ink-emoji
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from tools import emoji_art

NAMES = (
    "airplane",
    "anchor",
    "balloon",
    "bell",
    "bicycle",
    "cactus",
    "cherries",
    "crown",
    "dolphin",
    "elephant",
    "guitar",
    "house",
    "ice cream",
    "key",
    "light bulb",
    "mushroom",
    "octopus",
    "owl",
    "rocket",
    "sailboat",
    "star",
    "turtle",
    "umbrella",
    "violin",
)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("datasets/ink-emoji"))
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = emoji_art.icons(emoji_art.SAMPLE_SET, options.work / "art")
    for name in NAMES:
        stem = options.out / name.replace(" ", "-")
        Image.fromarray(emoji_art.render(texts[name], 512)).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(f"{emoji_art.article(name)}, ink style\n")
    sample = emoji_art.SAMPLE_SET
    origin = f"Pictures: {sample.package} {sample.version} by {sample.author}, {sample.licence}"
    (options.out / "LICENSE").write_text(f"{origin}\n{sample.source}\n\n{MIT}")


# A backslash at the end joins two lines: the file keeps the lines of the original licence.
MIT = """MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without \
limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, \
and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial \
portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT \
LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL \
THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, \
TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE \
SOFTWARE.
"""

if __name__ == "__main__":
    main()
