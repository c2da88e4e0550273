"""The command line: ``python -m tl_edit``, alone or with a command.

Alone it tells a fact's whole story on the bundled model, offline: locate, edit, check, undo. The commands are `trace`,
`edit`, `evaluate`, `sweep` and `reproduce`, one file each; options that several have are in `options`.

Exit codes: 0, all went well; 1, the edit did not take, or the weights were not restored; 2, the input cannot be used,
or the output not be written; 130, stopped by the user.

With ``--json`` a command writes exactly one JSON object to standard output, and everything else to standard error.
Numbers that are not finite are null. Probabilities, effects, rates and magnitudes are from 0 to 1 there, KL is in nats
and GE in bits; tables for a person have metrics in per cent (KL in nats, GE in bits times 100), and probabilities and
effects from 0 to 1. Only ``reproduce`` has the papers' units in its JSON, too. All objects have ``command`` and
``tl_edit`` (the version); each command's file says what else is in its own.
"""

import argparse
import difflib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from tl_edit.command import edit, evaluate, reproduce, sweep, tell, trace
from tl_edit.command.checks import check
from tl_edit.command.inputs import first_process
from tl_edit.command.models import processes_said
from tl_edit.command.parsing import Parser
from tl_edit.command.words import as_options

COMMANDS = {"trace": trace, "edit": edit, "evaluate": evaluate, "sweep": sweep, "reproduce": reproduce}
TOGETHER = ("sweep", "reproduce rome-counterfact", "reproduce memit-scaling")
"""What several processes do together."""
SHOWN_WARNINGS = 3
"""Of those that begin alike; a sweep may have thousands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            # A full disk or a closed pipe shows here at the latest, and not when Python ends.
            sys.stdout.flush()
    except (ValueError, MemoryError, ImportError) as error:
        _say(as_options(str(error)))
        return 2
    except OSError as error:
        _close(sys.stdout)
        _say("standard output was closed early" if isinstance(error, BrokenPipeError) else str(error))
        return 2
    except KeyboardInterrupt:
        _say("stopped; what is in a --folder stays there.", style="")
        return 130


def command_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m tl_edit", allow_abbrev=False)
    found = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS.values():
        module.add(found)
    return parser


def _main(given: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        _make_lenient(stream)
    if given and given[0] in COMMANDS:
        return _run(command_parser().parse_args(given))
    story = tell.parser(", ".join(COMMANDS))
    if given and not given[0].startswith("-"):
        near = difflib.get_close_matches(given[0], COMMANDS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        story.error(f"no command {given[0]!r}; expected one of {', '.join(COMMANDS)}, or none for the story{meant}")
    found, unknown = story.parse_known_args(given, refuse=False)
    late = next((word for word in unknown if word in COMMANDS), None)
    if late is not None:
        story.error(f"the command {late} comes first, and its options behind it: python -m tl_edit {late} ...")
    if unknown:
        story.refuse(unknown)
    return tell.run(found)


def _say(message: str, *, style: str = "bold red") -> None:
    """One line of ours on standard error."""
    Console(stderr=True, highlight=False).print(Text.assemble(("tl_edit: ", style), message), soft_wrap=True)


def _close(stream: Any) -> None:
    """Let Python find nothing to write when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(options: argparse.Namespace) -> int:
    name = " ".join(filter(None, (options.command, getattr(options, "table", None))))
    processes = processes_said()
    if processes > 1 and name not in TOGETHER:
        raise ValueError(
            f"{name}: started as {processes} processes, each of which would do all of it; expected one; start it "
            f"without a launcher (those that share their work are {', '.join(TOGETHER)})."
        )
    check(options)
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
            sys.stderr.write(f"tl_edit: warning: {as_options(str(message))}\n")

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
