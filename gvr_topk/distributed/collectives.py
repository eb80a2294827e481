# SPDX-License-Identifier: Apache-2.0
"""The two collectives that sharded selection is made of, in torch.distributed's own forms.

Eager calls run on the current stream and may be captured in a CUDA graph; under torch.compile the
functional collectives take their place, which the compiler sees through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

__all__ = ["Communicator", "Traffic", "count_traffic"]


@dataclass
class Traffic:
    """What one rank has sent to collectives: (kind, bytes of its own operand), in order."""

    operations: list[tuple[str, int]] = field(default_factory=list)


_counters: list[Traffic] = []


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Counts the operands of every collective of eager calls in this process (not thread-safe).

    For tests and benchmarks. Agreements of debug mode, which move Python objects, are not counted.

        >>> with count_traffic() as traffic:
        ...     gvr_topk.distributed.topk(scores, 2048, layout=offsets)
    """
    counter = Traffic()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


class Communicator:
    """This process's place in a process group, and that group's collectives."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "group: torch.distributed has no process group, "
                "need torch.distributed.init_process_group first"
            )
        member = dist.group.WORLD if group is None else group
        assert member is not None  # initialised, see above
        self.group: dist.ProcessGroup = member
        self.rank = dist.get_rank(self.group)
        self.world = dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError("group: this process is not a member of the group")

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[...] of every rank -> [world, ...], on every rank."""
        flat = tensor.reshape(-1)
        if torch.compiler.is_compiling():
            gathered = functional.wait_tensor(functional.all_gather_tensor(flat, 0, self.group))
        else:
            self._count("all_gather", flat)
            gathered = flat.new_empty(self.world * flat.numel())
            dist.all_gather_into_tensor(gathered, flat, self.group)
        return gathered.view(self.world, *tensor.shape)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, of integers. May reuse the memory of `tensor`."""
        if torch.compiler.is_compiling():
            return functional.wait_tensor(functional.all_reduce(tensor, "sum", self.group))
        self._count("all_reduce", tensor)
        dist.all_reduce(tensor, group=self.group)
        return tensor

    @staticmethod
    def _count(kind: str, tensor: Tensor) -> None:
        for counter in _counters:
            counter.operations.append((kind, tensor.numel() * tensor.element_size()))
