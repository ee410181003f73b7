"""`python -m trainer ...`: mounts the commands of `trainer/cli/` and turns errors into exit statuses.

0   finished, or stopped by the user with a checkpoint to resume from
1   failed; one line on stderr says what happened and what to do
2   the command line is wrong
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from typing import Annotated

import typer

from trainer import SOFTWARE
from trainer.cli import base, dataset, lora
from trainer.cli.info import device, print_settings
from trainer.cli.preview import preview
from trainer.cli.train import resume, train
from trainer.cli.workers import WORKERS
from trainer.data_folders import data_folders
from trainer.errors import TrainerError
from trainer.text_files import escape_unprintable_output

app = typer.Typer(
    help="Impasto's trainer: from pictures to a LoRA file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command()(resume)
app.command()(preview)
app.command()(device)
app.command("settings")(print_settings)
for name, worker in WORKERS.items():
    app.command(name, hidden=True)(worker)
app.add_typer(lora.app, name="lora")
app.add_typer(dataset.app, name="dataset")
app.add_typer(base.app, name="base")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(SOFTWARE)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Impasto's trainer: from pictures to a LoRA file."""


def main() -> int:
    """Runs the command line and returns its exit status."""
    escape_unprintable_output()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # xformers' kernels are for CUDA; on other devices it logs a long warning at import.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        data_folders().prepare()
        status = app(standalone_mode=False)
    except (typer.Exit, SystemExit) as ending:
        return int(getattr(ending, "exit_code", getattr(ending, "code", 0)) or 0)
    except (
        Exception,
        KeyboardInterrupt,
    ) as error:  # the edge of the process: nothing above reads a traceback
        if os.environ.get("IMPASTO_DEBUG") and not _is_expected(error):
            raise
        print(f"impasto: {_message(error)}", file=sys.stderr)
        return 2 if _is_usage_error(error) else 1
    # Without standalone mode, typer returns the status of an Exit.
    return status if isinstance(status, int) else 0


def _is_expected(error: BaseException) -> bool:
    expected = (TrainerError, OSError, typer.Abort, KeyboardInterrupt)
    return isinstance(error, expected) or _is_usage_error(error)


def _is_usage_error(error: BaseException) -> bool:
    """True for errors of the command line's parser: recent typer versions bring their own copy of click."""
    return type(error).__module__.startswith(("click", "typer")) and not isinstance(error, typer.Abort)


def _message(error: BaseException) -> str:
    """Returns the message for an error, in one line: the problem and its remedy."""
    if isinstance(error, TrainerError):
        return str(error)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError):
        return f"{_os_error(error)}; {_os_remedy(error)}"
    if _is_usage_error(error):
        text = error.format_message() if hasattr(error, "format_message") else error  # pyright: ignore
        return f"{text}; see python -m trainer --help"
    return f"unexpected error ({type(error).__name__}: {error}); set IMPASTO_DEBUG=1 to see the traceback"


def _os_error(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # from copying a folder: a list of (source, destination, reason)
        first_source, _, first_reason = error.args[0][0]
        return f"{len(error.args[0])} files can't be copied, such as {first_source} ({first_reason})"
    reason = error.strerror or error
    return f"{reason}: {error.filename}" if error.filename else f"a file can't be written or read ({reason})"


def _os_remedy(error: OSError) -> str:
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL):
        return "choose another name or folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the permissions, or choose another folder"
    return "check the disk and try again"


if __name__ == "__main__":
    sys.exit(main())
