"""Measures this machine, prints a table and saves it in benchmarks/results.

python -m benchmarks                      all groups, half an hour on two cores; on a GPU, at SDXL's size
python -m benchmarks --quick              each measurement once and small, to check that it runs
python -m benchmarks --only training      one group: training, start, commands, caching,
                                          preview, growth, studio
python -m benchmarks --against 'COMMAND'  another trainer on the same images and base; COMMAND can contain
                                          {folder}, {base}, {output} and {steps}
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import BUNDLED, ROOT, commands, drawing, recipe, studio, training
from benchmarks.bases import write_wide
from benchmarks.report import Figure, machine, save, table

GROUPS = ("training", "preview", "caching", "start", "commands", "growth", "studio")
_GROWTH, _QUICK_GROWTH = (10, 100, 1_000, 10_000), (4,)


def measured(
    only: tuple[str, ...], folder: Path, *, quick: bool, card: bool, repeat: int
) -> Iterator[list[Figure]]:
    """Yields the figures of each group as soon as they are measured."""
    ways: dict[str, Callable[[], list[Figure]]] = {
        "training": lambda: training.figures(
            training.cases(quick=quick, card=card), 1 if quick or card else repeat
        ),
        "preview": lambda: drawing.figures(folder, quick=quick, repeat=repeat),
        "caching": lambda: recipe.caching(folder / "caching", 4 if quick else 200),
        "start": lambda: recipe.start(folder / "start", repeat=1 if quick else repeat),
        "commands": lambda: commands.figures(folder / "commands", repeat=1 if quick else repeat),
        "growth": lambda: recipe.growth(folder / "growth", _QUICK_GROWTH if quick else _GROWTH),
        "studio": lambda: studio.figures(folder / "studio", quick=quick),
    }
    for name in only:
        print(f"{name} ...", file=sys.stderr)
        yield ways[name]()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=GROUPS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--against", metavar="COMMAND")
    parser.add_argument(
        "--base", default="bundled", help="of --against: bundled, wide64, or the path of a folder"
    )
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(10, 40), help="of --against: two lengths of a training"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of --against: a setting of ours"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    words, card = machine(), training.has_card()
    with tempfile.TemporaryDirectory() as folder:
        if options.against:
            base = _base(options.base, Path(folder))
            found = recipe.against(
                options.against, base, steps=tuple(options.steps), repeat=options.repeat, more=options.set
            )
        else:
            # On a GPU these two groups take nine minutes; `--only` selects the others.
            only = tuple(options.only or (("training", "preview") if card and not options.quick else GROUPS))
            found = []
            for figures in measured(
                only, Path(folder), quick=options.quick, card=card, repeat=options.repeat
            ):
                found += figures
                print(
                    f"saved as {save(figures, words, options.out)}", file=sys.stderr
                )  # each: a later one may fail
    print(f"{words}\n\n{table(found)}")


def _base(name: str, folder: Path) -> Path:
    if name == "bundled":
        return BUNDLED
    return (
        write_wide(folder, int(name.removeprefix("wide")))
        if name.startswith("wide")
        else Path(name).absolute()
    )


if __name__ == "__main__":
    main()
