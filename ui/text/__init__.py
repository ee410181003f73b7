"""Every sentence that a visitor reads, per language: `<language>/<tab>.toml`, flat keys, `{name}` for what is put in.

Labels are translated in the browser (`gr.I18n`); what the server writes as HTML is translated here, by the browser's
wish in `Accept-Language`.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "es", "ja", "zh", "de", "fr")
_HERE = Path(__file__).resolve().parent


@functools.cache
def sentences(language: str) -> dict[str, str]:
    """`tab.key` -> sentence, of all tabs."""
    found: dict[str, str] = {}
    for path in sorted((_HERE / language).glob("*.toml")):
        found |= {
            f"{path.stem}.{key}": text
            for key, text in tomllib.loads(path.read_text(encoding="utf-8")).items()
        }
    if language == "en":  # findings are declared where they are made, since the command line prints them too
        from trainer.dataset.checks import SENTENCES

        found |= {f"artwork.found_{kind}": text for kind, text in SENTENCES.items()}
    return found


def preferred(accept_language: str) -> str:
    """The best of LANGUAGES for an `Accept-Language` header; English when it names none of them."""
    wishes: list[tuple[float, str]] = []
    for wish in accept_language.split(","):
        tag, _, quality = wish.strip().partition(";q=")
        try:
            wishes.append((-float(quality or 1), tag[:2].lower()))
        except ValueError:
            continue
    return next((tag for _, tag in sorted(wishes, key=lambda wish: wish[0]) if tag in LANGUAGES), "en")


@dataclass(frozen=True)
class Words:
    """Sentences of one language; a key that it lacks comes in English."""

    language: str = "en"

    def __call__(self, key: str, **values: Any) -> str:
        text = sentences(self.language).get(key) or sentences("en")[key]
        return text.format(**values) if values else text
