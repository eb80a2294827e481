# SPDX-License-Identifier: Apache-2.0
"""The exact answer of a Top-K call, and the check that a result is that answer, bit for bit.

Independent of `gvr_topk.reference`: that one sorts scores stably, this one maps every position to
one 64-bit rank (score, then index) and takes the largest ranks, so the two oracles can disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS_DTYPE = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
_OUTSIDE = torch.iinfo(torch.int64).min
# Scores ranked at a time: eight bytes each, and a sort needs a few copies.
_BLOCK = 1 << 24


def bits(scores: Tensor) -> Tensor:
    """Raw storage bits of every score, as a signed integer of the same width."""
    return scores.view(_BITS_DTYPE[scores.dtype])


def rank_keys(scores: Tensor) -> Tensor:
    """int64 per score of [..., n]: larger is better, and no two positions of a row are equal."""
    infinity = _INFINITY[scores.dtype]
    raw = bits(scores).to(torch.int64)
    magnitude = raw & torch.iinfo(_BITS_DTYPE[scores.dtype]).max
    level = torch.where(raw < 0, -magnitude, magnitude)
    level = torch.where(magnitude > infinity, infinity + 1, level)
    n = scores.shape[-1]
    return level * 2**31 + torch.arange(n - 1, -1, -1, device=scores.device)


def windows(
    rows: int,
    n: int,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
) -> list[tuple[int, int]]:
    """[begin, end) of every row, in Python's unbounded integers."""
    ends, begins = [n] * rows, [0] * rows
    if lengths is not None:
        given = lengths.tolist()
        for row in range(rows):
            length = given[row // next_n]
            end = (length - next_n + row % next_n + 1) // compress_ratio if length > 0 else 0
            ends[row] = max(0, min(n, end))
    if starts is not None:
        given = starts.tolist()
        begins = [max(0, given[row // next_n]) for row in range(rows)]
    return [(min(begin, end), end) for begin, end in zip(begins, ends, strict=True)]


@dataclass(frozen=True)
class Answer:
    """The exact Top-K of every row: indices best first, -1 in the tail."""

    scores: Tensor  # [rows, n], as given
    indices: Tensor  # int64 [rows, k]
    counts: Tensor  # int64 [rows]
    begins: Tensor  # int64 [rows]
    ends: Tensor  # int64 [rows]
    sorted_values: Tensor  # [rows, k] of a stable sort in the same dtype, -inf in the tail

    def rows(self, selection: Tensor | slice) -> Answer:
        return Answer(
            self.scores[selection],
            self.indices[selection],
            self.counts[selection],
            self.begins[selection],
            self.ends[selection],
            self.sorted_values[selection],
        )


def exact_answer(
    scores: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
) -> Answer:
    """What a call with these arguments has to return."""
    n = scores.shape[-1]
    flat = scores.reshape(-1, n) if n > 0 else scores.new_empty(scores.shape[:-1].numel(), 0)
    rows = flat.shape[0]
    window = windows(rows, n, lengths, starts, next_n, compress_ratio)
    begins, ends = torch.tensor(window, dtype=torch.int64).reshape(rows, 2).to(scores.device).T
    indices = torch.full((rows, k), -1, dtype=torch.int64, device=scores.device)
    values = torch.full((rows, k), -torch.inf, dtype=scores.dtype, device=scores.device)
    step = max(1, _BLOCK // max(n, 1))
    for first in range(0, rows if n > 0 else 0, step):
        part = slice(first, first + step)
        _answer_block(flat[part], k, begins[part], ends[part], indices[part], values[part])
    counts = (ends - begins).clamp(max=k)
    return Answer(flat, indices, counts, begins, ends, values)


def best_indices(scores: Tensor, k: int) -> Tensor:
    """int64 [rows, k] of whole 2-D rows: best first, -1 where a row has fewer than k scores."""
    rows, n = scores.shape
    indices = torch.full((rows, k), -1, dtype=torch.int64, device=scores.device)
    indices[:, :n] = rank_keys(scores).topk(min(k, n), dim=-1, sorted=True).indices
    return indices


def _answer_block(
    scores: Tensor, k: int, begins: Tensor, ends: Tensor, indices: Tensor, values: Tensor
) -> None:
    n = scores.shape[-1]
    position = torch.arange(n, device=scores.device)
    inside = (position >= begins[:, None]) & (position < ends[:, None])
    ranks = rank_keys(scores).masked_fill(~inside, _OUTSIDE)
    best, order = ranks.topk(min(k, n), dim=-1, largest=True, sorted=True)
    indices[:, : order.shape[1]] = order.masked_fill(best == _OUTSIDE, -1)
    # A NaN of any payload sorts first; what is outside the window may only fill the tail.
    plain = canonical(scores).masked_fill(~inside, -torch.inf)
    values[:, : order.shape[1]] = torch.sort(plain, dim=-1, descending=True, stable=True)[0][:, :k]


def canonical(scores: Tensor) -> Tensor:
    """Equal scores have equal bits: -0.0 becomes +0.0, every NaN the same quiet NaN."""
    return torch.where(scores.isnan(), torch.nan, scores + 0.0).to(scores.dtype)


def gather_values(scores: Tensor, indices: Tensor) -> Tensor:
    """The scores at `indices` with their bits untouched, -inf where the index is -1."""
    if scores.shape[-1] == 0:
        return torch.full(indices.shape, -torch.inf, dtype=scores.dtype, device=scores.device)
    raw = bits(scores).gather(-1, indices.to(torch.int64).clamp(min=0))
    return raw.view(scores.dtype).masked_fill(indices < 0, -torch.inf)


def assert_exact(
    answer: Answer,
    indices: Tensor,
    values: Tensor | None = None,
    *,
    sorted: bool = False,
    label: str = "",
) -> None:
    """Every point of the contract about one result; `label` names the case in the message."""
    rows, k = answer.indices.shape
    assert indices.dtype == torch.int32, f"{label}: indices are {indices.dtype}"
    assert indices.device == answer.scores.device, f"{label}: indices on {indices.device}"
    given = indices.reshape(rows, k).to(torch.int64)
    _check_indices(answer, given, label)
    if sorted:
        _every_row(
            (given == answer.indices).all(-1), lambda r: _difference(answer, given, r), label
        )
    if values is not None:
        assert values.dtype == answer.scores.dtype, f"{label}: values are {values.dtype}"
        assert values.shape == indices.shape, f"{label}: values of shape {tuple(values.shape)}"
        _check_values(answer, given, values.reshape(rows, k), label)


def _check_indices(answer: Answer, given: Tensor, label: str) -> None:
    k = given.shape[1]
    valid = given >= 0
    expected = torch.arange(k, device=given.device) < answer.counts[:, None]
    _every_row(
        (valid == expected).all(-1),
        lambda r: f"{int(valid[r].sum())} indices, need {int(answer.counts[r])} and then only -1",
        label,
    )
    _every_row((valid | (given == -1)).all(-1), lambda r: "a negative index other than -1", label)
    inside = (given >= answer.begins[:, None]) & (given < answer.ends[:, None])
    _every_row((inside | ~valid).all(-1), lambda r: "an index outside the window", label)
    ascending = given.sort(-1).values
    repeated = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    _every_row(~repeated.any(-1), lambda r: "an index given twice", label)
    same = (ascending == answer.indices.sort(-1).values).all(-1)
    _every_row(same, lambda r: _difference(answer, given, r), label)


def _check_values(answer: Answer, given: Tensor, values: Tensor, label: str) -> None:
    gathered = gather_values(answer.scores, given)
    _every_row(
        (bits(values) == bits(gathered)).all(-1),
        lambda r: "a value is not, bit for bit, the score at its index (-inf in the tail)",
        label,
    )
    ordered = torch.sort(canonical(values), dim=-1, descending=True, stable=True)[0]
    _every_row(
        (bits(ordered) == bits(canonical(answer.sorted_values))).all(-1),
        lambda r: "the values are not those of a stable sort",
        label,
    )


def _every_row(good: Tensor, describe: Callable[[int], str], label: str) -> None:
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        wrong = int((~good).sum())
        raise AssertionError(f"{label}: {wrong} of {len(good)} rows; row {row}: {describe(row)}")


def _difference(answer: Answer, given: Tensor, row: int) -> str:
    expected, got = set(answer.indices[row].tolist()), set(given[row].tolist())
    if expected == got:
        return "right indices in the wrong order"
    missing, extra = sorted(expected - got), sorted(got - expected)
    scores = answer.scores[row]
    return (
        f"missing {[(i, scores[i].item()) for i in missing[:4]]}, "
        f"instead {[(i, scores[i].item()) for i in extra[:4]]} ({len(missing)} in all)"
    )
