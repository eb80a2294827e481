# SPDX-License-Identifier: Apache-2.0
"""What the library did with the rows, from its own telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..traces import Replayed, Row, replay
from ._frames import Counts, Source, counts, each_row, frame, tail

if TYPE_CHECKING:
    import pandas

ALGORITHMS = ("gvr", "stream", "radix")


def survivors(
    source: Source,
    k: Counts | None = None,
    n: Counts | None = None,
    *,
    algorithms: Sequence[str] = ALGORITHMS,
    use_hint: bool = True,
    check: bool = False,
) -> pandas.DataFrame:
    """Passes over the row and staged scores of every answer, by algorithm.

    Rows are selected in order, each hinted with its sequence's previous answer. k None takes what
    was recorded (2048 where nothing was). A row's device is where it is selected, and CPU and GPU
    differ: their plans do. With several n or k, rows are kept in memory.

    Columns: those of `gvr_topk.traces.Replayed`, among them n, k, algorithm, overlap, path, passes,
    survivors, hint_hits. passes counts reads of the row, survivors the scores that were staged
    for the exact selection; K of them are the least that can be staged.
    """
    lengths: list[int | None] = [None] if n is None else [*counts("n", n)]
    sizes: list[int | None] = [None] if k is None else [*counts("k", k)]
    once = len(lengths) * len(sizes) == 1
    rows = each_row(source) if once else list(each_row(source))
    records: list[dict[str, object]] = []
    for length in lengths:
        for size in sizes:
            answers = replay(
                _tails(rows, length), size, algorithms=algorithms, use_hint=use_hint, check=check
            )
            records += [answer._asdict() for answer in answers]
    return frame(records, Replayed._fields)


def _tails(rows: Iterator[Row] | list[Row], n: int | None) -> Iterator[Row]:
    for row in rows:
        part = tail(row, n)
        if part is not None:
            yield part
