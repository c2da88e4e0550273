"""One run in a folder at a time.

Two runs that know nothing of each other would do the same work twice, and each would say what the folder is. The lock
is the system's, which takes it back from a process that ends, however it ends: a run that crashed keeps nobody out.
"""

import os
import platform
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tl_edit.processes import Processes
from tl_edit.sweep.folder import OPERATION

LOCK, HOLDER = ".lock", ".running"


@contextmanager
def alone(folder: Path, own: Processes) -> Generator[None, None, None]:
    """Keep other runs out of a folder for the duration of the block; of several processes the first does, for all.

    Raises:
        ValueError: In every process, if another run is there.
    """
    with ExitStack() as stack:
        refused = own.rank == 0 and not stack.enter_context(_held(folder))
        if own.total(int(refused)):
            raise ValueError(
                f"{OPERATION}: another run works in the folder {folder} ({_holder(folder)}); expected one at a time; "
                "wait for it or end it, or choose another folder (accelerate launch shares one run among processes)."
            )
        yield


@contextmanager
def _held(folder: Path) -> Generator[bool, None, None]:
    """Whether the lock is ours while the block lasts, or there is none to be had."""
    lock = FileLock(folder / LOCK, timeout=0)
    free = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        free = False
    except (OSError, NotImplementedError):
        # A folder that can only be read has room for many; some file systems know no locks.
        pass
    if not lock.is_locked:
        yield free
        return
    try:
        # In a file of its own, as some systems let nobody read one that is locked.
        with suppress(OSError):
            now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
            (folder / HOLDER).write_text(f"process {os.getpid()} on {platform.node()}, since {now}", "utf-8")
        yield True
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Who holds the lock."""
    try:
        return (folder / HOLDER).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "its process is not known"
