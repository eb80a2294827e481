# SPDX-License-Identifier: Apache-2.0
"""Where each rank's keys stand in the whole row: local index <-> global index.

In every layout a rank's local order is the global order of its keys. Global indices are int32: the
whole row has fewer than 2^31 keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..ops import check_int, type_name
from .collectives import Communicator

__all__ = ["Interleaved", "LayoutSpec", "Placement", "describe", "place"]

INT32_MAX = 2**31 - 1
# A length beyond every row: clamped there, no sum below overflows an int64.
_ENDLESS = 2**62


@dataclass(frozen=True)
class Interleaved:
    """Pages of `page` keys dealt out in turn: key g is on rank (g // page) % world."""

    page: int = 1

    def __post_init__(self) -> None:
        check_int("page", self.page)
        if not 1 <= self.page <= INT32_MAX:
            raise ValueError(f"page: got {self.page}, need 1 <= page < 2^31")


LayoutSpec: TypeAlias = Literal["contiguous", "interleaved"] | Interleaved | Sequence[int]


@dataclass(frozen=True)
class Window:
    """Which local scores of each row are valid, in the operators' own terms."""

    lengths: Tensor | None = None
    starts: Tensor | None = None
    next_n: int = 1
    compress_ratio: int = 1

    def options(self) -> dict[str, Any]:
        return {
            "lengths": self.lengths,
            "starts": self.starts,
            "next_n": self.next_n,
            "compress_ratio": self.compress_ratio,
        }


class Placement(ABC):
    """A layout as one rank sees it."""

    # Ranks by the global index of their shards; None where shards are not one block each.
    rank_order: tuple[int, ...] | None = None

    @abstractmethod
    def to_global(self, local: Tensor) -> Tensor:
        """int32 local indices -> int32 global indices; -1 stays."""

    @abstractmethod
    def formula(self) -> dict[str, Any]:
        """`to_global` as the arguments of torch.ops.gvr.pack_winners."""

    @abstractmethod
    def to_local(self, window: Window, rows: int) -> Window:
        """A window of the whole row -> the part of it on this rank."""


class Blocks(Placement):
    """One block per rank, whose first global index may be known on the device only."""

    def __init__(
        self, comm: Communicator, size: int, device: torch.device, offsets: tuple[int, ...] | None
    ) -> None:
        self._comm, self._size, self._device = comm, size, device
        ranks = range(comm.world)
        # An empty shard shares its offset with the next one: which of them goes first is free.
        self.rank_order = tuple(sorted(ranks, key=lambda r: offsets[r]) if offsets else ranks)
        self._first: int | Tensor | None = offsets[comm.rank] if offsets else None
        if comm.world == 1 and offsets is None:
            self._first = 0

    def _offset(self) -> int | Tensor:
        if self._first is None:
            # No rank knows the others' sizes: one gather of a number, and never a host copy.
            size = torch.full((1,), self._size, dtype=torch.int64, device=self._device)
            self._first = self._comm.all_gather(size)[: self._comm.rank].sum(0)
        return self._first

    def to_global(self, local: Tensor) -> Tensor:
        return torch.where(local < 0, -1, local + self._offset()).to(torch.int32)

    def formula(self) -> dict[str, Any]:
        offset = self._offset()
        return {"device_offset" if isinstance(offset, Tensor) else "offset": offset}

    def to_local(self, window: Window, rows: int) -> Window:
        offset = self._offset()
        lengths, starts = window.lengths, window.starts
        if lengths is not None:
            lengths = _bounded(lengths) - offset * window.compress_ratio
        if starts is not None:
            starts = _bounded(starts) - offset
        return Window(lengths, starts, window.next_n, window.compress_ratio)


class Pages(Placement):
    """Pages of keys dealt out in turn."""

    def __init__(self, comm: Communicator, page: int) -> None:
        self.page, self._rank, self._world = page, comm.rank, comm.world

    def to_global(self, local: Tensor) -> Tensor:
        if self.page == 1:
            index = local * self._world + self._rank
        else:
            index = (local // self.page * self._world + self._rank) * self.page + local % self.page
        return torch.where(local < 0, -1, index)

    def formula(self) -> dict[str, Any]:
        return {"page": self.page, "rank": self._rank, "world": self._world}

    def count_before(self, bound: Tensor) -> Tensor:
        """How many of this rank's keys have a global index below each bound (int64, >= 0)."""
        cycle = self.page * self._world
        rest = (bound % cycle - self._rank * self.page).clamp(0, self.page)
        return bound // cycle * self.page + rest

    def to_local(self, window: Window, rows: int) -> Window:
        lengths, starts = window.lengths, window.starts
        next_n, ratio = window.next_n, window.compress_ratio
        if starts is not None:
            starts = self.count_before(_bounded(starts))
        if lengths is None:
            return Window(None, starts, next_n, ratio)
        lengths = _bounded(lengths)
        if self.page == 1:
            # ceil((x // ratio - rank) / world) as the operators' own formula, drafts included.
            shift = ratio * (self._world - 1 - self._rank)
            return Window(lengths + shift, starts, next_n, ratio * self._world)
        if next_n == 1:
            return Window(self.count_before(lengths // ratio), starts)
        draft = torch.arange(rows, device=lengths.device) % next_n
        ends = lengths.repeat_interleave(next_n) - next_n + draft + 1
        ends = self.count_before(ends.clamp(min=0) // ratio)
        return Window(ends, None if starts is None else starts.repeat_interleave(next_n))


def describe(layout: LayoutSpec) -> str:
    """The same words for every way to write a checked layout."""
    if isinstance(layout, str):
        return layout
    if isinstance(layout, Interleaved):
        return "interleaved" if layout.page == 1 else repr(layout)
    return f"offsets {[int(offset) for offset in layout]}"


def _bounded(bound: Tensor) -> Tensor:
    return bound.to(torch.int64).clamp(0, _ENDLESS)


def place(layout: LayoutSpec, comm: Communicator, size: int, device: torch.device) -> Placement:
    """The placement of this rank's `size` keys; ValueError or TypeError for an impossible one."""
    if layout == "contiguous":
        return Blocks(comm, size, device, None)
    if layout == "interleaved":
        layout = Interleaved()
    if isinstance(layout, Interleaved):
        cycles, rest = divmod(max(size - 1, 0), layout.page)
        last = (cycles * comm.world + comm.rank) * layout.page + rest
        _check_last(last, comm)
        return Pages(comm, layout.page)
    if isinstance(layout, str):
        raise ValueError(
            f"layout: got {layout!r}, need 'contiguous', 'interleaved', Interleaved(page) or "
            "one offset per rank"
        )
    if not isinstance(layout, Sequence):
        raise TypeError(
            f"layout: got {type_name(layout)}, need a str, Interleaved or a sequence of ints"
        )
    return Blocks(comm, size, device, _checked_offsets(layout, comm, size))  # type: ignore[arg-type]


def _checked_offsets(layout: Sequence[int], comm: Communicator, size: int) -> tuple[int, ...]:
    for offset in layout:
        check_int("layout", offset)
    offsets = tuple(layout)
    if len(offsets) != comm.world or min(offsets) < 0:
        raise ValueError(
            f"layout: got offsets {offsets}, need {comm.world} offsets >= 0, one per rank"
        )
    if size == 0:
        return offsets
    first = offsets[comm.rank]
    _check_last(first + size - 1, comm)
    # Two shards of scores cannot begin at one place; which ranks are empty, only they know.
    following = [offset for offset in offsets if offset > first]
    if following and first + size > min(following):
        raise ValueError(
            f"layout: got offsets {offsets} and {size} keys on rank {comm.rank}, which reach "
            f"beyond the next offset {min(following)}; need shards that do not overlap"
        )
    return offsets


def _check_last(last: int, comm: Communicator) -> None:
    if last >= INT32_MAX:
        raise ValueError(
            f"scores: the last key of rank {comm.rank} has the global index {last}, "
            "need a whole row of fewer than 2^31 keys"
        )
