# SPDX-License-Identifier: Apache-2.0
"""Replay: every row of a trace selected as a decoder would, hinted by the step before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import topk_reference
from .files import Row, TraceError

DEFAULT_K = 2048


class Replayed(NamedTuple):
    """One row's answer, where it came from and how it was found."""

    layer: int
    request: int
    draft: int
    step: int
    n: int
    k: int
    algorithm: str
    overlap: float | None  # share of the answer that the hint held; None without a hint
    path: str
    passes: int
    survivors: int
    hint_valid: int
    hint_hits: int
    overflows: int
    undershoots: int
    refine_rounds: int
    exact: bool | None  # None: not checked


def row_k(row: Row, k: int | None) -> int:
    """Winners to select of a row: those asked for, else the recorded number, else 2048."""
    return (row.k or DEFAULT_K) if k is None else k


def replay(
    rows: Iterable[Row],
    k: int | None = None,
    *,
    algorithms: Iterable[str] = ("auto",),
    use_hint: bool = True,
    check: bool = True,
) -> Iterator[Replayed]:
    """Selects each row with each algorithm, on the row's device; one Replayed per answer.

    rows      of one trace, in its order; sequences may be interleaved. See `open_trace(...).rows`.
    k         winners per row; None takes the recorded number, 2048 where there is none.
    use_hint  hint each row with the answer of the sequence's previous row.
    check     compare every answer with the stable sort of the row (much slower than the selection).

    Positions are absolute: where rows are windows that move, hint_offset moves the hint with them.
    """
    from .. import explain  # here, so that traces can be read where the extension does not load

    if k is not None and k < 1:
        raise ValueError(f"k: got {k}, need at least 1")
    previous: dict[tuple[int, int, int], tuple[Tensor, int]] = {}
    for row in rows:
        winners = row_k(row, k)
        scores = row.scores[None]
        hint, first_key = previous.get(row.sequence, (None, 0)) if use_hint else (None, 0)
        expected = topk_reference(scores, winners)[1] if check else None
        indices = None
        for algorithm in algorithms:
            _, indices, stats = explain(
                scores,
                winners,
                hint=hint,
                hint_offset=first_key - row.first_key if hint is not None else 0,
                algorithm=algorithm,
            )
            found = stats[0]
            count = min(winners, len(row.scores))
            yield Replayed(
                *row.sequence,
                step=row.step,
                n=len(row.scores),
                k=winners,
                algorithm=algorithm,
                overlap=None if hint is None else _share(hint, indices, first_key, row, count),
                path=found.path_name,
                **{name: getattr(found, name) for name in found._fields[1:]},
                exact=None if expected is None else _same_set(indices, expected),
            )
        if indices is None:
            raise TraceError("algorithms: got none, need at least one")
        previous[row.sequence] = indices, row.first_key


def _share(hint: Tensor, indices: Tensor, first_key: int, row: Row, count: int) -> float:
    """Share of the `count` winners that the hint names; padding is no winner."""
    before = hint[hint >= 0] + first_key
    now = indices[indices >= 0] + row.first_key
    return torch.isin(now, before).sum().item() / count


def _same_set(indices: Tensor, expected: Tensor) -> bool:
    return torch.equal(indices.sort().values, expected.sort().values)
