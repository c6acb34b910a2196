"""The command line `deeplabseg`: its errors and exit codes."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import DeepLabSegLib
from DeepLabSegLib.commands import COMMANDS, training
from DeepLabSegLib.commands.telling import heard_or_not, let_go, warnings_as_notes
from DeepLabSegLib.errors import DeepLabSegError, OutputError
from DeepLabSegLib.startup import wait_briefly

READER_GONE = (errno.EPIPE, errno.EINVAL)  # the latter on Windows
EXIT_CODES = (
    "Exit codes: 0 all done; 1 an error, or a scan or case that failed; 2 wrong arguments; 130 after Ctrl-C, 143 after "
    "SIGTERM."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error or failed cases, which are told, 130 after Ctrl-C.

    SIGTERM ends it as Ctrl-C does, with 143. Wrong arguments are told and raise `SystemExit` with 2, as argparse does;
    `--help` and `--version` with 0.
    """
    _open_streams()
    wait_briefly()
    words = [_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    options = _parser(as_json="--json" in words).parse_args(words)
    options.words = words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have letters that the output can't
    with warnings_as_notes(), _terminable() as signals:
        try:
            data, text = options.run(options)
            # Of several processes that train one network, the first reports.
            if options.run is training.train and os.environ.get("RANK", "0") != "0":
                return 0
            _say(json.dumps(data, indent=2) if options.json else text)
            return 1 if isinstance(data, dict) and data.get("failed") else 0
        except DeepLabSegError as error:
            return _fail(options, str(error), 1)
        except KeyboardInterrupt as error:
            code = 128 + (signals[0] if signals else signal.SIGINT)
            return _fail(options, f"interrupted; {str(error) or 'nothing was written'}", code)
        except OSError as error:
            name = error.filename2 or error.filename
            return _fail(options, f"{name}: {error.strerror}" if name else str(error), 1)


def _open_streams() -> None:
    """Give what is printed somewhere to go where standard output or error is closed, as by `nohup ... >&- 2>&-`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115 to the end
            setattr(sys, name, nowhere)


def _at_home(word: str) -> str:
    """`word` with the home folder for its `~`, which Windows' shells leave to programs."""
    return os.path.expanduser(word) if word.startswith(("~/", f"~{os.sep}")) else word  # noqa: PTH111 no home, no error


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """SIGTERM, as Slurm, Docker and `timeout` send it, is Ctrl-C to what runs within; the list that is given has it."""
    signals: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # somebody else sees to it
        yield signals
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    with heard_or_not(sys.stderr):
        print(f"deeplabseg: {message}", file=sys.stderr, flush=True)  # noqa: T201 its purpose
    if options.json:
        _say_error(message)
    return code


def _say_error(message: str) -> None:
    with suppress(OutputError):
        _say(json.dumps({"error": message}))


def _say(text: str) -> None:
    """Print `text` at once. Raises `OutputError` where it can't be, but not for a reader who went away."""
    try:
        print(text, flush=True)  # noqa: T201 its purpose
    except OSError as error:
        let_go(sys.stdout)
        if error.errno not in READER_GONE:
            raise OutputError(f"all is done but the report can't be printed ({error.strerror})") from None


# --- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """One that tells wrong arguments to programs too."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        if self.as_json:
            _say_error(message)
        super().error(message)


def _parser(as_json: bool) -> argparse.ArgumentParser:
    parser = _Parser("deeplabseg", description="Segment medical images with DeepLabV3+.", epilog=EXIT_CODES)
    parser.as_json = as_json
    parser.add_argument("--version", action="version", version=DeepLabSegLib.__version__)
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, add_arguments in COMMANDS.items():
        summary = (run.__doc__ or "").strip()
        sub = added.add_parser(run.__name__, help=summary, description=summary)
        sub.as_json = as_json
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        add_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
