"""Serves the studio: `python app.py`, then open the address that it prints. `python app.py add-user NAME` makes an account."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
GB = 1_000_000_000


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Impasto: teach SDXL your style, in the browser.",
        epilog="Accounts: `python app.py add-user NAME [--auth users.toml]` asks for a password (or reads it from what is piped in).",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on; others than this machine's own need --auth or --open",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--datasets", type=Path, default=ROOT / "datasets", help="where picture folders are")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="where trainings land")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="where base models are")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--auth",
        type=Path,
        metavar="users.toml",
        help="ask for a login; each user has pictures and trainings of their own",
    )
    access.add_argument(
        "--open",
        action="store_true",
        help="serve on --host without a login: whoever reaches it may see and delete everything",
    )
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name too, as behind a reverse proxy",
    )
    access.add_argument(
        "--share",
        action="store_true",
        help="not offered: a public tunnel is another company's server; says what to do instead",
    )
    room = parser.add_argument_group("room")
    room.add_argument("--max-picture-mb", type=float, default=200, help="one dropped picture (%(default)s)")
    room.add_argument("--max-file-gb", type=float, default=4, help="one dropped zip or LoRA (%(default)s)")
    room.add_argument(
        "--max-project-gb",
        type=float,
        default=20,
        help="all pictures of a project, and one drop (%(default)s)",
    )
    room.add_argument(
        "--max-project-pictures", type=int, default=5000, help="pictures in a project (%(default)s)"
    )
    room.add_argument(
        "--max-studio-gb", type=float, default=200, help="all projects of all users (%(default)s)"
    )
    room.add_argument("--keep-free-gb", type=float, default=2, help="stay free on the disk (%(default)s)")
    return parser


def main() -> int:
    if sys.argv[1:2] == ["add-user"]:
        return add_user(sys.argv[2:])
    options = arguments().parse_args()
    from ui.access.hosts import is_loopback
    from ui.server import serve
    from ui.store.limits import Limits

    if options.share:
        return refuse(
            "--share is not offered: it would lead your pictures through another company's server. Serve on your own network with "
            "--host 0.0.0.0 --auth users.toml, or put a reverse proxy with https before the studio."
        )
    if not is_loopback(options.host) and not options.auth and not options.open:
        return refuse(
            f"on {options.host} everybody in your network could see and delete your pictures. Add a login: python app.py add-user "
            "NAME, then --auth users.toml; or give --open if you trust everybody there."
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
    )


def add_user(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="app.py add-user", description="Makes an account, or gives one a new password."
    )
    parser.add_argument("name")
    parser.add_argument(
        "--auth",
        type=Path,
        default=Path("users.toml"),
        metavar="users.toml",
        help="file of users (%(default)s)",
    )
    options = parser.parse_args(words)
    from trainer.errors import TrainerError
    from ui.access import accounts

    try:
        name = accounts.add_user(options.auth, options.name, accounts.prompt_password(options.name))
    except (TrainerError, OSError, KeyboardInterrupt) as error:
        return refuse(str(error) or "nothing was changed")
    print(f"{name} may log in: python app.py --auth {options.auth}")
    return 0


def refuse(sentence: str) -> int:
    print(f"impasto: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
