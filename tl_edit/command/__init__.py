"""The command line: ``python -m tl_edit``, alone or with a command.

Alone it tells a fact's whole story on the bundled model, offline: locate, edit, check, undo. The commands are `trace`,
`edit`, `evaluate`, `sweep` and `reproduce`, one file each; options that several have are in `options`.

Exit codes: 0, all went well; 1, the edit did not take, or the weights were not restored; 2, the input cannot be used;
130, stopped by the user.

With ``--json`` a command writes exactly one JSON object to standard output, and everything else to standard error.
Numbers that are not finite are null; rates are from 0 to 1, in the metric's own unit. All objects have ``command`` and
``tl_edit`` (the version); each command's file says what else is in its own.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.markup import escape

from tl_edit.command import edit, evaluate, reproduce, sweep, tell, trace
from tl_edit.command.inputs import first_process
from tl_edit.command.models import processes_said

COMMANDS = {"trace": trace, "edit": edit, "evaluate": evaluate, "sweep": sweep, "reproduce": reproduce}
TOGETHER = ("sweep", "reproduce rome-counterfact", "reproduce memit-scaling")
"""What several processes do together."""
SHOWN_WARNINGS = 3
"""Of those that begin alike; a sweep may have thousands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        _make_lenient(stream)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in COMMANDS:
            return _run(command_parser().parse_args(given))
        story = tell.parser(", ".join(COMMANDS))
        if given and not given[0].startswith("-"):
            story.error(f"no command {given[0]!r}; expected one of {', '.join(COMMANDS)}, or none for the story")
        return tell.run(story.parse_args(given))
    except (ValueError, MemoryError, ImportError) as error:
        Console(stderr=True, highlight=False).print(f"[bold red]tl_edit:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print("tl_edit: stopped; what is in a --folder stays there.")
        return 130


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m tl_edit", allow_abbrev=False)
    found = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS.values():
        module.add(found)
    return parser


def _run(options: argparse.Namespace) -> int:
    name = " ".join(filter(None, (options.command, getattr(options, "table", None))))
    processes = processes_said()
    if processes > 1 and name not in TOGETHER:
        raise ValueError(
            f"{name}: started as {processes} processes, each of which would do all of it; expected one; start it "
            f"without a launcher (those that share their work are {', '.join(TOGETHER)})."
        )
    out = sys.stdout
    # Libraries below say on standard output what they load.
    with redirect_stdout(sys.stderr), _short_warnings():
        report = options.run(options)
    if first_process():
        report.write(out, name, as_json=options.json)
    return report.code


@contextmanager
def _short_warnings() -> Generator[None, None, None]:
    """Warnings in a line each, without the code that gave them, and the first ones of those that begin alike."""
    seen: Counter[str] = Counter()

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if issubclass(category, DeprecationWarning | FutureWarning):
            return
        kind = " ".join(str(message).split()[:3])
        seen[kind] += 1
        if seen[kind] <= SHOWN_WARNINGS:
            sys.stderr.write(f"tl_edit: warning: {message}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
    for kind, number in seen.items():
        if number > SHOWN_WARNINGS:
            sys.stderr.write(f"tl_edit: {number - SHOWN_WARNINGS} more warnings like {kind!r} ...\n")


def _make_lenient(stream: Any) -> None:
    """Let a console that is not UTF-8 show question marks for what it lacks, such as an arrow, instead of failing."""
    if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
        stream.reconfigure(errors="replace")
