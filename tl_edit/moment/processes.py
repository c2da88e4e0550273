"""Several processes that share the texts: under ``accelerate launch``, ``torchrun``, or a group that the user made."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor


class Processes:
    """One process among those that measure together."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank, self.world, self._group = rank, world, group

    def add_up(self, tensor: Tensor) -> None:
        """Make ``tensor`` the sum over all processes, in place; on the CPU, equal in all of them."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor, group=self._group)

    def total(self, number: int) -> int:
        """The sum of whole numbers over all processes."""
        found = torch.tensor([number])
        self.add_up(found)
        return int(found)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks; all of the same shape."""
        if self.world == 1:
            return [tensor]
        import torch.distributed as dist

        found = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(found, tensor.contiguous(), group=self._group)
        return found


@contextmanager
def processes(operation: str) -> Generator[Processes, None, None]:
    """The processes of this run, joined by gloo, as float64 sums on the CPU are not for NCCL.

    Where a launcher has set ``WORLD_SIZE`` and nobody has made a group, one is made and left.

    Raises:
        ValueError: If the launcher's settings do not suffice to join.
    """
    dist = _distributed(operation)
    if dist is None or dist.get_world_size() == 1:
        yield Processes()
        return
    # Processes are done at different times, and the first to be done waits for the last.
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group(group)


def _distributed(operation: str) -> Any:
    """`torch.distributed`, with a group; None for a single process."""
    launched = os.environ.get("WORLD_SIZE", "1")
    import torch.distributed as untyped

    dist = cast(Any, untyped)
    if not dist.is_available():
        return None
    if dist.is_initialized():
        return dist
    if launched in ("", "1"):
        return None
    try:
        dist.init_process_group(backend="gloo")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{operation}: WORLD_SIZE is {launched}, but the processes could not be joined ({reason}); expected the "
            "variables that accelerate launch and torchrun set (RANK, MASTER_ADDR, MASTER_PORT); start it with one of "
            "these, or unset WORLD_SIZE."
        ) from error
    return dist
