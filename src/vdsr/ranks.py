"""What the ranks of a training tell one another beside gradients."""

from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.utilities.rank_zero import rank_zero_only


def rank() -> int:
    """This process's rank, before the ranks know one another too: by what its launcher says."""
    return int(getattr(rank_zero_only, "rank", 0))


class Ranks:
    """A group of its own, over gloo: talking in it does not wait for a GPU. Alone, a rank agrees with itself."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self._group = dist.new_group(backend="gloo") if together else None

    def most(self, number: int) -> int:
        """The greatest of the ranks' numbers."""
        if self._group is None:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self._group)
        return int(numbers)

    def all(self, thing: Any) -> list[Any]:
        """Every rank's thing, in the order of the ranks."""
        if self._group is None:
            return [thing]
        things: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(things, thing, self._group)
        return things
