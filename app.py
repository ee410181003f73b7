"""Serves the studio: `python app.py`, then open the address that it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Impasto: teach SDXL your style, in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--datasets", type=Path, default=ROOT / "datasets", help="where picture folders are")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="where trainings land")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="where base models are")
    options = parser.parse_args()
    from ui.server import serve

    return serve(**vars(options))


if __name__ == "__main__":
    sys.exit(main())
