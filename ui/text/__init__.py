"""All sentences of the page: `<language>/<tab>.toml` with flat keys and `{name}` for values.

The browser translates the labels of components (`gr.I18n`). HTML is translated here, in the language that the
browser prefers (`Accept-Language`).
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
    """Returns `tab.key` -> sentence of all tabs."""
    texts: dict[str, str] = {}
    for path in sorted((_HERE / language).glob("*.toml")):
        declared = tomllib.loads(path.read_text(encoding="utf-8"))
        texts |= {f"{path.stem}.{key}": text for key, text in declared.items()}
    if language == "en":
        # English findings are declared by the checks, because the command line prints them too.
        from trainer.dataset.checks import SENTENCES

        texts |= {f"artwork.found_{kind}": text for kind, text in SENTENCES.items()}
    return texts


def preferred(accept_language: str) -> str:
    """Returns the preferred one of LANGUAGES in an `Accept-Language` header; English if there is none."""
    weighted: list[tuple[float, str]] = []  # (negative weight, language)
    for part in accept_language.split(","):
        tag, _, weight = part.strip().partition(";q=")
        try:
            weighted.append((-float(weight or 1), tag[:2].lower()))
        except ValueError:
            continue
    weighted.sort(key=lambda pair: pair[0])
    return next((language for _, language in weighted if language in LANGUAGES), "en")


@dataclass(frozen=True)
class Words:
    """The sentences of one language, in English where a translation is missing."""

    language: str = "en"

    def __call__(self, key: str, **values: Any) -> str:
        """Returns the sentence of a key with its values filled in."""
        text = sentences(self.language).get(key) or sentences("en")[key]
        return text.format(**values) if values else text
