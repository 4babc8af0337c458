"""The command line. Commands hand over to the module that does the work, imported only then.

Exit statuses: 0 good; 1 a case failed, a figure is short; 2 the caller is wrong; 3 the bench failed;
70 a fault in xenlab itself; 130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TextIO

import typer
from typer.exceptions import TyperException

from lab.base.errors import BenchError, LabError, UsageError
from lab.cli import (
    coverage,
    elsewhere,
    holding,
    known,
    machine,
    mutation,
    racking,
    results,
    runs,
    selfcheck,
    services,
    sharing,
)

app = typer.Typer(
    name="xenlab",
    help="A hardware-in-the-loop test lab for the Xen hypervisor.",
    epilog="Exit statuses: 0 good, 1 a case failed, 2 wrong use, 3 bench failed, 70 fault in xenlab, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for room in (
    runs,
    results,
    coverage,
    mutation,
    known,
    sharing,
    holding,
    racking,
    services,
    machine,
    selfcheck,
):  # the order of the help
    app.add_typer(room.app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(machine.version_text())
        raise typer.Exit


@app.callback()
def options(
    lab: Annotated[
        str,
        typer.Option(
            elsewhere.OPTION,
            metavar="USER@HOST",
            help="Run the command at this lab's machine, over SSH. It goes before the command.",
            show_default=False,
        ),
    ] = "",
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Write a log to stderr; give it twice for more.")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if lab:
        raise UsageError(f"{elsewhere.OPTION} must be the first word")
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: handled as an interrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


# What a command can do nothing about, and is no fault of it: of OSError.errno.
_OF_THE_MACHINE = {
    errno.EROFS: "the file system is read-only",
    errno.EIO: "a disk has failed",
    errno.ENOMEM: "the machine has no memory left",
    errno.EMFILE: "too many files are open, see `ulimit -n`",
    errno.ENFILE: "the machine has too many files open",
}


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. All errors end here; only unexpected ones leave a traceback, in a file."""
    _open_closed_streams()
    # A core file would hold passwords; what is started from here inherits that.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get("_XENLAB_COMPLETE"):  # the shell asks for completions
        typer.main.get_command(app).main(words, prog_name="xenlab")
    try:
        there = elsewhere.asked(words)
        status = elsewhere.run(*there) if there else _invoke(words or ["--help"])
        sys.stdout.flush()
    except TyperException as error:
        # Empty where a group without a command has shown its help; pydantic judges the values of options.
        from lab.base.files import plain

        said = ": ".join(plain(part) for part in error.format_message().split(": "))
        context = getattr(error, "ctx", None)
        status = _complain(f"{said} (see {context.command_path if context else 'xenlab'} -h)", 2) if said else 2
    except UsageError as error:
        status = _complain(str(error), 2)
    except BenchError as error:
        status = _complain(str(error), 3)
    except LabError as error:  # a missing capability or a crash, outside a case
        status = _complain(str(error), 1)
    except _Terminated as error:
        status = _complain(f"ended by {error}", error.status)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    except BrokenPipeError:  # `xenlab ... | head`
        _silence(sys.stdout)
        status = 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            status = _complain(f"the disk is full: {error}; `xenlab clean` removes old runs", 3)
        elif error.errno in _OF_THE_MACHINE:
            status = _complain(f"{_OF_THE_MACHINE[error.errno]}: {error}", 3)
        else:
            status = _fault(error)
    except Exception as error:
        status = _fault(error)
    sys.exit(status)


def _open_closed_streams() -> None:
    """Python has no sys.stdout when it was started with it closed (``>&-``): nothing is shown then, and nothing fails.

    The descriptor is taken, too: else the next file that is opened would get its number, and what subprocesses print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))


def _fault(error: Exception) -> int:
    where = _write_traceback()
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return _complain(f"fault in xenlab: {told[:300]} (traceback in {where})", 70)


def _invoke(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("xenlab", words) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _complain(message: str, status: int) -> int:
    """Say what is wrong; control characters in it, as of a compiler that shows the source, are shown and not obeyed."""
    from lab.results.run_folder import visible

    for stream, text in ((sys.stdout, ""), (sys.stderr, f"xenlab: {visible(message)}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # nobody reads it, or its disk is full: the exit status is still right
            _silence(stream)
    return status


def _silence(stream: TextIO) -> None:
    """What the stream still holds goes nowhere, or Python would fail on it at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write_traceback() -> str:
    import tempfile
    import traceback

    from lab.base import paths

    text = f"{sys.argv}\n{traceback.format_exc()}"
    try:
        folder = paths.state() / "faults"
        folder.mkdir(exist_ok=True)
    except (OSError, UsageError):
        folder = Path(tempfile.gettempdir())
    try:
        handle, name = tempfile.mkstemp(prefix="fault-", suffix=".log", dir=folder)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # the fault may be that nothing can be written
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
        return "the lines above"
    return name
