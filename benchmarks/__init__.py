"""Benchmarks of speed and memory, each beside its target: see `python -m benchmarks --help`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "models" / "tiny-sdxl"
INK = ROOT / "datasets" / "ink-emoji"
