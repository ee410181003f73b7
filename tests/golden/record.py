"""Records the golden files with the present version: `python -m tests.golden.record [--out DIR]`.

recorded/
  versions.json              architecture and versions of the packages that compute
  curves.json                loss of each step and of each validation, by case
  digests.json               SHA-256 of the tensors of each file
  statuses.json              exit status of `lora inspect` and `lora check` on these files
  files/style.safetensors    the file of each case
  previews/style.png         a picture of a file of each network
  true-sdxl/lora.txt         keys, dtypes and shapes of each network for true SDXL
  runs/finished/             a run directory as the version left it
  runs/stopped/              the same training, stopped by SIGTERM
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tests.golden import cases, true_sdxl
from tests.golden.cases import CASES, OPENED, RECORDED, RUN_CASE, Command, Done

CONVERTED = {"diffusers": "text-encoders", "kohya-diffusers": "style"}  # form -> case


def main() -> None:
    """Parses the command line and records into the folder that it names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RECORDED, help="folder to write; its content is replaced")
    parser.add_argument(
        "--unpinned", action="store_true", help="use the machine's own kernels, to measure the difference"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        record(options.out.resolve(), Path(workspace), pinned=not options.unpinned)


def record(out: Path, workspace: Path, *, pinned: bool = True) -> None:
    """Trains all cases, opens their files and writes what the tests compare with."""
    shutil.rmtree(out, ignore_errors=True)
    for name in ("files", "previews", "true-sdxl", "runs"):
        (out / name).mkdir(parents=True)
    done = cases.run_commands(all_commands(workspace), workspace, pinned=pinned)
    check_ends(done)
    runs = {case: workspace / "runs" / case for case in CASES}
    for case, run in runs.items():
        shutil.copyfile(run / f"{case}.safetensors", out / "files" / f"{case}.safetensors")
    for case in OPENED:
        shutil.copyfile(preview_of(workspace, case), out / "previews" / f"{case}.png")
    cases.write_json(out / "versions.json", cases.versions())
    cases.write_json(out / "curves.json", {case: cases.curves(run) for case, run in runs.items()})
    cases.write_json(out / "digests.json", digests(workspace, runs))
    statuses = {name: ended.status for name, ended in done.items() if name.startswith(("inspect", "check"))}
    cases.write_json(out / "statuses.json", statuses)
    for name, settings in true_sdxl.LISTS.items():
        (out / "true-sdxl" / f"{name}.txt").write_text(true_sdxl.key_list(settings), encoding="utf-8")
    for name, run in (("finished", runs[RUN_CASE]), ("stopped", workspace / "runs" / "stopped")):
        shutil.copytree(run, out / "runs" / name)
        cases.relocate(out / "runs" / name, str(workspace / "dataset"), cases.PLACEHOLDER)


def all_commands(workspace: Path) -> dict[str, Command]:
    """The trainings of all cases, the stopped one, and the commands that open and convert their files."""
    dataset, runs = cases.make_dataset(workspace / "dataset"), workspace / "runs"
    commands = {f"train {case}": cases.train_command(case, dataset, runs / case) for case in CASES}
    commands["stop"] = cases.train_command(
        RUN_CASE, dataset, runs / "stopped", stop_after=cases.STOPPED_AFTER
    )
    return commands | file_commands({case: runs / case / f"{case}.safetensors" for case in OPENED}, workspace)


def file_commands(files: dict[str, Path], workspace: Path) -> dict[str, Command]:
    """The commands that open each file and convert some; what they write goes into `workspace`."""
    commands: dict[str, Command] = {}
    for case, file in files.items():
        opening = cases.opening_commands(file, workspace / "previews" / case)
        commands |= {f"{name} {case}": command for name, command in opening.items()}
    for form, case in CONVERTED.items():
        commands[f"convert {form}"] = cases.convert_command(
            files[case], workspace / f"{form}.safetensors", form
        )
    return commands


def preview_of(workspace: Path, case: str) -> Path:
    """The picture that `preview` wrote for a case."""
    (picture,) = (path for path in (workspace / "previews" / case).glob("*.png") if path.name != "strip.png")
    return picture


def digests(workspace: Path, runs: dict[str, Path]) -> dict[str, str]:
    """The digest of each case's file and of each converted file."""
    trained = {case: cases.tensor_digest(run / f"{case}.safetensors") for case, run in runs.items()}
    return trained | {form: cases.tensor_digest(workspace / f"{form}.safetensors") for form in CONVERTED}


def check_ends(done: dict[str, Done]) -> None:
    """Raises RuntimeError for a command that failed.

    `lora check` is excluded: it exits with 1 if a tool ignores a part of a file.
    """
    failed = {name: end.err for name, end in done.items() if end.status and not name.startswith("check")}
    if failed:
        raise RuntimeError(f"commands failed: {failed}")


if __name__ == "__main__":
    main()
