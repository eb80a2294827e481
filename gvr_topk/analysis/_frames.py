# SPDX-License-Identifier: Apache-2.0
"""What all analyses share: rows in, pandas frames out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from ..traces import DenseTrace, Row, Trace

if TYPE_CHECKING:
    import pandas

Source: TypeAlias = Trace | DenseTrace | Iterable[Row]
Counts: TypeAlias = int | Sequence[int]

SEQUENCE = ("layer", "request", "draft", "step")


def frame(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> pandas.DataFrame:
    """Records as a frame with these columns, also where there are no records."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "gvr_topk.analysis needs pandas: pip install 'gvr-topk[notebooks]'"
        ) from error
    return pandas.DataFrame.from_records(records, columns=list(columns))


def each_row(source: Source) -> Iterator[Row]:
    if isinstance(source, Trace | DenseTrace):
        return source.rows()
    return iter(source)


def counts(name: str, given: Counts) -> list[int]:
    values = [given] if isinstance(given, int) else list(given)
    if not values or any(value < 1 for value in values):
        raise ValueError(f"{name}: got {given}, need one or more numbers of at least 1")
    return values


def tail(row: Row, n: int | None) -> Row | None:
    """The row's last n scores (all for None); None where it has fewer."""
    length = len(row.scores)
    if n is None or n == length:
        return row
    if n > length:
        return None
    return row._replace(scores=row.scores[length - n :], first_key=row.first_key + length - n)


def tails(row: Row, n: Counts | None) -> Iterator[tuple[int, Row]]:
    """(n, the row's last n scores) for every n that the row is long enough for.

    With several lengths asked for, the n is the one asked for, so that frames can be grouped by it.
    """
    for wanted in [None] if n is None else counts("n", n):
        part = tail(row, wanted)
        if part is not None:
            yield len(part.scores), part


def winners(row: Row, k: int) -> Tensor:
    """Positions in the context of the row's exact Top-K, best first; int64 [min(k, n)]."""
    from .. import topk_indices

    found = topk_indices(row.scores[None], min(k, len(row.scores)), sorted=True)[0]
    return found.long() + row.first_key


def about(row: Row) -> dict[str, int]:
    return {name: getattr(row, name) for name in SEQUENCE}
