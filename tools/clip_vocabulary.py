"""CLIP's tokenizer (49,408 tokens) as the two folders of an SDXL pipeline.

The merges are OpenAI's `bpe_simple_vocab_16e6.txt` (MIT) from the package open-clip-torch. The vocabulary has
the order of the reference tokenizer: bytes, bytes at the end of a word, merges, start token, end token.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "open-clip-torch==3.3.0"
MERGES = 49152 - 256 - 2


def write_tokenizers(base: Path, cache: Path) -> None:
    """Writes tokenizer/ and tokenizer_2/, which differ in their padding token as in SDXL.

    Args:
        base: the folder in which they are written.
        cache: keeps the downloaded package.
    """
    merges = _merges(cache)
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == 49408
    for folder, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        target = base / folder
        target.mkdir(parents=True, exist_ok=True)
        vocabulary = {token: index for index, token in enumerate(tokens)}
        (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        special["pad_token"] = padding
        (target / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        settings |= {"add_prefix_space": False, "errors": "replace", **special}
        (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _merges(cache: Path) -> list[str]:
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("open_clip_torch-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), PACKAGE]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(cache.glob("open_clip_torch-*.whl"))) as wheel:
        text = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode("utf-8")
    return text.split("\n")[1 : MERGES + 1]


def _byte_symbols() -> list[str]:
    """Returns a printable symbol for each byte.

    Printable bytes first, then the others as characters above 255.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
