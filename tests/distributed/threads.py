# SPDX-License-Identifier: Apache-2.0
"""Ranks that are threads of this process: the methods' arithmetic without any transport."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Exchange:
    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=60)
        self.slots: list[Any] = [None] * world


class ThreadCommunicator:
    """Has what the methods use of gvr_topk.distributed's Communicator."""

    def __init__(self, exchange: _Exchange, rank: int, world: int) -> None:
        self._exchange, self.rank, self.world = exchange, rank, world
        self.operands: list[tuple[str, int]] = []

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._swap("all_gather", tensor))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        total = torch.stack(self._swap("all_reduce", tensor)).sum(0)
        return total.to(tensor.dtype)

    def _swap(self, kind: str, tensor: Tensor) -> list[Tensor]:
        self.operands.append((kind, tensor.numel() * tensor.element_size()))
        self._exchange.slots[self.rank] = tensor.clone()
        self._exchange.barrier.wait()
        found = list(self._exchange.slots)
        self._exchange.barrier.wait()
        return found


def run_threads(world: int, job: Callable[[ThreadCommunicator], T]) -> list[T]:
    """What the job returns on each rank."""
    exchange = _Exchange(world)

    def enter(rank: int) -> T:
        try:
            return job(ThreadCommunicator(exchange, rank, world))
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(enter, range(world)))
