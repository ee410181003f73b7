"""The commands that users type: `impasto`, `impasto studio` and `python app.py`.

impasto COMMAND ...             the trainer's command line, as `python -m trainer COMMAND ...`
impasto studio [OPTIONS]        serves the page, as `python app.py [OPTIONS]`
impasto studio add-user NAME    creates an account, as `python app.py add-user NAME`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer import SOFTWARE
from trainer.data_folders import data_folders
from trainer.text_files import escape_unprintable_output

GB = 1_000_000_000


def studio_options(program: str) -> argparse.ArgumentParser:
    """Options of the web server.

    Args:
        program: the command as the user types it, for help texts.
    """
    folders = data_folders()
    parser = argparse.ArgumentParser(
        prog=program,
        description="Impasto: train SDXL LoRAs on your own pictures, in the browser.",
        epilog=f"Accounts: `{program} add-user NAME [--auth users.toml]` prompts for a password.",
    )
    parser.add_argument("--version", action="version", version=SOFTWARE)
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to serve on; any but a loopback address needs --auth or --open",
    )
    add("--port", type=int, default=7860, help="port to serve on (%(default)s)")
    add("--datasets", type=Path, default=folders.datasets, help="folder of picture folders (%(default)s)")
    add("--outputs", type=Path, default=folders.outputs, help="folder of runs (%(default)s)")
    add("--models", type=Path, default=folders.models, help="folder of base models (%(default)s)")
    _add_access_options(parser)
    _add_limit_options(parser)
    return parser


def _add_access_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("access").add_argument
    add(
        "--auth",
        type=Path,
        metavar="users.toml",
        help="require a login; each user has their own pictures and runs",
    )
    add(
        "--open",
        action="store_true",
        help="serve on --host without a login: everyone who reaches it can see and delete everything",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests for this host name too, as behind a reverse proxy",
    )
    add(
        "--root-path",
        type=_root_path,
        default="",
        metavar="/PATH",
        help="path under which a reverse proxy serves the studio, such as /impasto",
    )
    add("--share", action="store_true", help="not supported; prints the alternatives to a public tunnel")


def _add_limit_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add("--max-picture-mb", type=float, default=200, help="largest uploaded picture (%(default)s)")
    add("--max-file-gb", type=float, default=4, help="largest uploaded zip or LoRA (%(default)s)")
    add(
        "--max-project-gb",
        type=float,
        default=20,
        help="all pictures of a project, and one upload (%(default)s)",
    )
    add("--max-project-pictures", type=int, default=5000, help="pictures of a project (%(default)s)")
    add("--max-studio-gb", type=float, default=200, help="all projects of all users (%(default)s)")
    add("--keep-free-gb", type=float, default=2, help="disk space that uploads leave free (%(default)s)")


def main() -> int:
    """Entry point of `impasto`; returns the exit status."""
    if sys.argv[1:2] == ["studio"]:
        return studio(sys.argv[2:], program="impasto studio")
    from trainer.__main__ import main as train_main

    return train_main()


def studio(arguments: list[str], *, program: str) -> int:
    """Serves the page until it is interrupted, or creates an account; returns the exit status."""
    escape_unprintable_output()
    if arguments[:1] == ["add-user"]:
        return add_user(arguments[1:], program=program)
    options = studio_options(program).parse_args(arguments)
    from ui.access.hosts import is_loopback
    from ui.server import serve
    from ui.store.limits import Limits

    if options.share:
        return refuse(
            "--share is not supported, because a public tunnel sends your pictures through another company's "
            "server. Serve on your own network with --host 0.0.0.0 --auth users.toml, or put a reverse proxy "
            "with HTTPS in front of the studio."
        )
    if not is_loopback(options.host) and not options.auth and not options.open:
        return refuse(
            f"on {options.host}, everyone on your network could see and delete your pictures. Create an "
            f"account with {program} add-user NAME and add --auth users.toml, or add --open if you trust "
            "everyone there."
        )
    try:
        data_folders().prepare()
    except OSError as error:
        return refuse(
            f"{error.filename} can't be written ({error.strerror}); set IMPASTO_HOME to a folder that can"
        )
    limits = Limits(
        picture_bytes=int(options.max_picture_mb * 1e6),
        file_bytes=int(options.max_file_gb * GB),
        project_bytes=int(options.max_project_gb * GB),
        project_pictures=options.max_project_pictures,
        studio_bytes=int(options.max_studio_gb * GB),
        free_bytes=int(options.keep_free_gb * GB),
    )
    return serve(
        host=options.host,
        port=options.port,
        datasets=options.datasets,
        outputs=options.outputs,
        models=options.models,
        limits=limits,
        users=options.auth,
        names=tuple(options.allow_host),
        root_path=options.root_path,
    )


def _root_path(text: str) -> str:
    from ui.access.hosts import root_path_from

    try:
        return root_path_from(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_user(arguments: list[str], *, program: str) -> int:
    """Creates an account, or sets a new password for an existing one; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"{program} add-user",
        description="Creates an account, or sets a new password for an existing one.",
    )
    parser.add_argument("name", help="user name")
    parser.add_argument(
        "--auth",
        type=Path,
        default=Path("users.toml"),
        metavar="users.toml",
        help="file of accounts (%(default)s)",
    )
    options = parser.parse_args(arguments)
    from trainer.errors import TrainerError
    from ui.access import accounts

    try:
        name = accounts.add_user(options.auth, options.name, accounts.prompt_password(options.name))
    except (TrainerError, OSError, KeyboardInterrupt) as error:
        return refuse(str(error) or "cancelled; no account was changed")
    print(f"{name} can log in: {program} --auth {options.auth}")
    return 0


def refuse(sentence: str) -> int:
    """Prints why nothing was done; returns the exit status of a wrong command line."""
    print(f"impasto: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
