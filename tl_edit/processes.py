"""Several processes that share the texts: under ``accelerate launch``, ``torchrun``, or a group that the user made."""

import json
import os
from collections.abc import Generator, Mapping
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

    def agree(self, said: Mapping[str, object], operation: str) -> None:
        """Refuse, in every process, to go on where processes say different things under one of the names.

        Every process must ask with the same names.

        Raises:
            ValueError: naming what differs, and how, for the first process that differs from the first.
        """
        if self.world == 1:
            return
        mine = torch.frombuffer(bytearray(json.dumps(said, default=repr).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.gather(torch.tensor([len(mine)]))]
        padded = self.gather(torch.nn.functional.pad(mine, (0, max(sizes) - len(mine))))
        all_said: list[dict[str, object]] = [
            json.loads(found[:size].numpy().tobytes()) for found, size in zip(padded, sizes, strict=True)
        ]
        first = all_said[0]
        for rank, other in enumerate(all_said):
            changes = [f"{name} {first[name]} and {other[name]}" for name in first if first[name] != other[name]]
            if changes:
                raise ValueError(
                    f"{operation}: processes 1 and {rank + 1} of {self.world} differ: {', '.join(changes)}; expected "
                    "the same model, data and arguments in all of them; give each the same (they are shared out here, "
                    "and not before)."
                )


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
    # Processes are done at different times, and the first to be done waits for the last, with slow devices or after
    # a resumption for hours or days, so the time is long. It costs nothing: one that dies closes its connections, which
    # ends the waiting of the others at once, and one that never comes is noticed while the group is made, which has the
    # time of the user's group (half an hour).
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
