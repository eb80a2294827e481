# SPDX-License-Identifier: Apache-2.0
"""Telemetry of a call, typed. Columns and paths mirror csrc/common/params.h."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from rich.table import Table


class Path(IntEnum):
    """How a row was answered."""

    EMPTY = 0  # no valid score
    SHORT = 1  # n <= K: every valid index, nothing to select
    GVR = 2  # guess, verify by whole-row counts, collect, refine
    STREAM = 3  # guess, collect under a threshold that only rises, refine
    RADIX = 4  # histogram passes over the row, no hint
    RESIDENT = 5  # the row stays in shared memory, one histogram; more passes: divided by its keys

    @property
    def label(self) -> str:
        return self.name.lower()


class RowStats(NamedTuple):
    """Telemetry of one row, in the order of the columns."""

    path: int  # enum Path
    passes: int  # how often the row's scores were read, the collecting pass included
    survivors: int  # scores above the guess: staged, or counted by "resident"
    hint_valid: int  # hinted positions inside the window
    hint_hits: int  # hinted positions that are part of the answer
    overflows: int  # continuations because the staging area was full
    undershoots: int  # continuations because the guess admitted fewer than K
    refine_rounds: int  # of the exact selection: histograms; on the CPU halvings of the key range

    @property
    def path_name(self) -> str:
        return Path(self.path).label


COLUMNS: tuple[str, ...] = RowStats._fields


class Stats:
    """Named columns over the int32 tensor [rows, 8] that the operators return."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 2 or tensor.shape[1] != len(COLUMNS):
            raise ValueError(
                f"stats: got shape {list(tensor.shape)}, need [rows, {len(COLUMNS)}] "
                f"({', '.join(COLUMNS)})"
            )
        self.tensor = tensor

    def column(self, name: str) -> Tensor:
        """One column for all rows, an int32 view [rows]."""
        if name not in COLUMNS:
            raise ValueError(f"name: got {name!r}, need one of {', '.join(COLUMNS)}")
        return self.tensor[:, COLUMNS.index(name)]

    @property
    def path(self) -> Tensor:
        return self.column("path")

    @property
    def path_names(self) -> list[str]:
        return [Path(value).label for value in self.path.tolist()]

    @property
    def passes(self) -> Tensor:
        return self.column("passes")

    @property
    def survivors(self) -> Tensor:
        return self.column("survivors")

    @property
    def hint_valid(self) -> Tensor:
        return self.column("hint_valid")

    @property
    def hint_hits(self) -> Tensor:
        return self.column("hint_hits")

    @property
    def overflows(self) -> Tensor:
        return self.column("overflows")

    @property
    def undershoots(self) -> Tensor:
        return self.column("undershoots")

    @property
    def refine_rounds(self) -> Tensor:
        return self.column("refine_rounds")

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, row: int) -> RowStats:
        return RowStats(*self.tensor[row].tolist())

    def __iter__(self) -> Iterator[RowStats]:
        return (RowStats(*row) for row in self.tensor.tolist())

    def __repr__(self) -> str:
        paths = self.path_names
        counts = ", ".join(f"{name}={paths.count(name)}" for name in dict.fromkeys(paths))
        return f"Stats(rows={len(self)}{', ' if counts else ''}{counts})"

    def table(self, *, title: str | None = None, max_rows: int = 32) -> Table:
        """A rich table, one line per row; `rich.print(stats.table())` shows it."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("row", justify="right")
        table.add_column("path", min_width=6)
        for name in COLUMNS[1:]:
            table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
        for number, row in enumerate(Stats(self.tensor[:max_rows])):
            table.add_row(str(number), row.path_name, *map(str, row[1:]))
        if len(self) > max_rows:
            table.caption = f"first {max_rows} of {len(self)} rows"
        return table


class Explanation(NamedTuple):
    """A Top-K answer with the telemetry of how each row was found."""

    values: Tensor
    indices: Tensor
    stats: Stats
