# SPDX-License-Identifier: Apache-2.0
"""How much of a step's answer earlier answers held, and where the rest came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..traces import Row
from ._frames import SEQUENCE, Counts, Source, about, counts, each_row, frame, tails, winners

if TYPE_CHECKING:
    import pandas


class _Answer(NamedTuple):
    """A row's winners, and those of earlier steps of its sequence: positions in the context."""

    row: Row
    n: int
    k: int
    winners: Tensor
    earlier: dict[int, Tensor]  # by step

    @property
    def previous(self) -> Tensor | None:
        return self.earlier.get(self.row.step - 1)

    @property
    def about(self) -> dict[str, Any]:
        return {**about(self.row), "n": self.n, "k": self.k}


_ABOUT = (*SEQUENCE, "n", "k")


def _answers(source: Source, k: Counts, n: Counts | None, reach: int = 1) -> Iterator[_Answer]:
    """Every row's answers with those of the last `reach` steps; the rows are read once."""
    known: dict[tuple[Any, ...], dict[int, Tensor]] = {}
    sizes = counts("k", k)
    for row in each_row(source):
        for number, (length, part) in enumerate(tails(row, n)):
            for size in sizes:
                if size >= length:
                    continue
                earlier = known.setdefault((row.sequence, number, size), {})
                now = winners(part, size)
                yield _Answer(part, length, size, now, earlier)
                earlier[row.step] = now
                for old in [step for step in earlier if step <= row.step - reach]:
                    del earlier[old]


def _share(now: Tensor, before: Tensor) -> float:
    return torch.isin(now, before).float().mean().item()


def overlap(
    source: Source, k: Counts = 2048, n: Counts | None = None, lags: Counts = 1
) -> pandas.DataFrame:
    """Share of each step's Top-K that the Top-K `lag` steps earlier held, by place in the context.

    source  a trace or an iterable of rows; read once, row by row.
    k, n    one or several numbers; n are the last scores of a row (None: the whole row). Rows
            shorter than an n, and answers with k >= n, are left out.
    lags    steps back; a lag that was not recorded gives no line.

    Columns: layer, request, draft, step, n, k, lag, overlap, and chance = k / n, the share that two
    unrelated answers would have in common.
    """
    back = counts("lags", lags)
    records = [
        {
            **answer.about,
            "lag": lag,
            "overlap": _share(answer.winners, answer.earlier[answer.row.step - lag]),
            "chance": answer.k / answer.n,
        }
        for answer in _answers(source, k, n, max(back))
        for lag in back
        if answer.row.step - lag in answer.earlier
    ]
    return frame(records, (*_ABOUT, "lag", "overlap", "chance"))


def hint_offsets(
    source: Source,
    offsets: tuple[int, ...] = (-2, -1, 0, 1, 2),
    k: Counts = 2048,
    n: Counts | None = None,
) -> pandas.DataFrame:
    """The overlap with the previous answer moved by `offset` keys.

    Offset 0 hints the keys themselves; 1 their right neighbours, as if winners kept their distance
    from the query. The best one is what `hint_offset` should add (in a context whose column 0 is
    always the same key).

    Columns: layer, request, draft, step, n, k, offset, overlap.
    """
    records = [
        {**answer.about, "offset": offset, "overlap": _share(answer.winners, before + offset)}
        for answer in _answers(source, k, n)
        if (before := answer.previous) is not None
        for offset in offsets
    ]
    return frame(records, (*_ABOUT, "offset", "overlap"))


def hint_quantiles(
    source: Source,
    k: Counts = 2048,
    n: Counts | None = None,
    quantiles: tuple[float, ...] = (0.1, 0.38, 0.63, 0.81, 0.95, 1.0),
) -> pandas.DataFrame:
    """Where the current scores of the previous winners stand in the row's own order.

    The hinted scores are sorted from the best; the one at fraction q of them has a rank in the
    whole row (1 is the row's best). A threshold at that score would admit `rank` scores, so a guess
    wants a q whose rank is K or a little more.

    Columns: layer, request, draft, step, n, k, overlap, quantile, rank.
    """
    if not quantiles or any(not 0 < q <= 1 for q in quantiles):
        raise ValueError(f"quantiles: got {quantiles}, need one or more of 0 < quantile <= 1")
    records = []
    for answer in _answers(source, k, n):
        before = answer.previous
        if before is None:
            continue
        share = _share(answer.winners, before)
        for q, rank in zip(quantiles, _ranks(answer.row, before, quantiles), strict=True):
            records.append({**answer.about, "overlap": share, "quantile": q, "rank": rank})
    return frame(records, (*_ABOUT, "overlap", "quantile", "rank"))


def _ranks(row: Row, hint: Tensor, quantiles: tuple[float, ...]) -> list[int]:
    """Scores of the row that are at least the hinted one at each quantile."""
    columns = hint - row.first_key
    valid = columns[(columns >= 0) & (columns < len(row.scores))]
    if not len(valid):
        return [len(row.scores)] * len(quantiles)
    hinted = row.scores[valid].sort(descending=True).values
    places = [min(int(q * len(hinted)), len(hinted) - 1) for q in quantiles]
    return [int((row.scores >= hinted[place]).sum()) for place in places]


def entering(
    source: Source,
    k: Counts = 2048,
    n: Counts | None = None,
    *,
    recent: int = 64,
    near: int = 4,
) -> pandas.DataFrame:
    """Where the winners come from that the previous answer did not hold.

    Each entering key counts once: as `recent` if it is among the last `recent` keys of the context,
    else as `neighbours` if a previous winner lies within `near` keys, else as `elsewhere`; all are
    shares of K. neighbours_chance is the share of the keys that could have entered (neither recent
    nor previous winners) that lie that near: by chance, neighbours / (neighbours + elsewhere) would
    be that.

    Columns: layer, request, draft, step, n, k, entered, recent, neighbours, elsewhere,
    neighbours_chance.
    """
    records = [
        {**answer.about, **_origins(answer, before, recent, near)}
        for answer in _answers(source, k, n)
        if (before := answer.previous) is not None
    ]
    columns = ("entered", "recent", "neighbours", "elsewhere", "neighbours_chance")
    return frame(records, (*_ABOUT, *columns))


def _origins(answer: _Answer, before: Tensor, recent: int, near: int) -> dict[str, float]:
    first, end = answer.row.first_key, answer.row.first_key + answer.n
    new = answer.winners[~torch.isin(answer.winners, before)]
    others = new[new < end - recent]
    neighbours = int(_near(others, before, near).sum())
    keys = torch.arange(first, max(end - recent, first), device=new.device)
    keys = keys[~torch.isin(keys, before)]
    chance = _near(keys, before, near).float().mean().item() if len(keys) else 0.0
    return {
        "entered": len(new) / answer.k,
        "recent": (len(new) - len(others)) / answer.k,
        "neighbours": neighbours / answer.k,
        "elsewhere": (len(others) - neighbours) / answer.k,
        "neighbours_chance": chance,
    }


def _near(keys: Tensor, winners: Tensor, near: int) -> Tensor:
    """Which keys have a winner within `near` positions."""
    ordered = winners.sort().values
    right = torch.searchsorted(ordered, keys)
    last = len(ordered) - 1
    left_gap = (keys - ordered[(right - 1).clamp(0, last)]).abs()
    right_gap = (keys - ordered[right.clamp(0, last)]).abs()
    return torch.minimum(left_gap, right_gap) <= near
