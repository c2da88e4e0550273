"""Ctrl-C while the command line is still being imported: one line and exit code 130, as later."""

import os
import signal
import sys
from typing import Any

CODE = 130
PROGRAMS = ("tl-edit", "tl-edit.exe")
"""What pip installs the command line as."""


def is_program() -> bool:
    """Whether Python was started for the command line, and has not yet come to it."""
    called = sys.argv[:1]
    return (called == ["-m"] and "tl_edit" in sys.orig_argv) or os.path.basename("".join(called)) in PROGRAMS


def ends_quietly() -> None:
    """From now on, Ctrl-C ends the program at once, as there is nothing yet to tidy up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def becomes_exception() -> None:
    """From now on, Ctrl-C is `KeyboardInterrupt` again, which the command line catches."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    os.write(2, b"tl_edit: stopped.\n")
    os._exit(CODE)


if is_program():
    # At import, since that is the time it is for.
    ends_quietly()
