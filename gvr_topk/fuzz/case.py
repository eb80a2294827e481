# SPDX-License-Identifier: Apache-2.0
"""One call of the library: all that it depends on, and the check that its result is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

import gvr_topk
from gvr_topk.stats import Stats
from gvr_topk.testing import tuning

from .oracle import Answer, assert_exact, exact_answer

SENTINEL = -7
_GUARD = 3  # columns and rows around an output that must stay as they are
_HEADER = 4  # words of a state entry before its hinted indices
_COUNT, _ACCEPTED = 0, 3

# How a call is made.
APIS = ("topk", "indices", "out", "explain", "step")


# What is tested: the module gvr_topk, or anything with its topk, topk_indices, explain, TopKCache.
Subject: TypeAlias = Any


@dataclass(frozen=True)
class Case:
    """Rows of scores and everything else that a call is about."""

    scores: Tensor  # [rows, n], any row stride
    k: int
    api: str = "topk"
    hint: Tensor | None = None  # int32 [rows, any], or [requests, any]
    lengths: Tensor | None = None
    starts: Tensor | None = None
    next_n: int = 1
    compress_ratio: int = 1
    hint_offset: int = 0
    sorted: bool = False
    algorithm: str = "auto"
    tuning: dict[str, int] = field(default_factory=dict)
    # Of api "step": the slot of every request, the size of the table, and what it holds before.
    slots: Tensor | None = None
    table: tuple[int, int, int] = (0, 1, 1)  # slots, depth, hint_size
    noise: int | None = None  # seed of random words in the table; None: the hints lie there
    threads: int = 1  # of torch, on the CPU

    @property
    def rows(self) -> int:
        return self.scores.shape[0]

    @property
    def requests(self) -> int:
        return self.rows // self.next_n

    @property
    def n(self) -> int:
        return self.scores.shape[1]

    @property
    def hint_per_row(self) -> bool:
        return self.hint is not None and self.hint.shape[0] == self.rows

    @property
    def window(self) -> dict[str, Any]:
        return {
            "lengths": self.lengths,
            "starts": self.starts,
            "next_n": self.next_n,
            "compress_ratio": self.compress_ratio,
        }

    def select(self, requests: Tensor) -> Case:
        """The same call with the given requests only."""
        draft = torch.arange(self.next_n, device=requests.device)
        rows = (requests[:, None] * self.next_n + draft).reshape(-1)

        def per_request(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[requests]

        return replace(
            self,
            scores=self.scores[rows],
            hint=self.hint[rows]
            if self.hint is not None and self.hint_per_row
            else per_request(self.hint),
            lengths=per_request(self.lengths),
            starts=per_request(self.starts),
            slots=per_request(self.slots),
        )

    def describe(self) -> str:
        """One line: the shape, and every argument that is not the default."""
        parts = [f"{self.rows} x {self.n}, k {self.k}, {str(self.scores.dtype)[6:]}, {self.api}"]
        if self.rows > 1 and self.scores.stride(0) != self.n:
            parts.append(f"row stride {self.scores.stride(0)}")
        if self.scores.storage_offset() > 0:
            parts.append(f"first score {self.scores.storage_offset()} after the base")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("scores", "k", "api") or value is None or value == entry.default:
                continue
            if entry.name == "table" and self.api != "step":
                continue
            if isinstance(value, Tensor):
                flat = value.reshape(-1).tolist() if value.numel() <= 8 else list(value.shape)
                value = f"{flat}" if value.numel() <= 8 else f"tensor of shape {flat}"
            if value != {}:
                parts.append(f"{entry.name} {value}")
        return ", ".join(parts)


class Mismatch(AssertionError):
    """A result that is not the exact answer."""


def check(case: Case, subject: Subject = gvr_topk, *, oracle_on: str | None = None) -> Stats | None:
    """Makes the call; raises Mismatch unless it is exact. Telemetry if the call gives it.

    oracle_on: where the answer is worked out; by default on the device of the scores.
    """
    given = case if oracle_on is None else _moved(case, oracle_on)
    answer = exact_answer(given.scores, given.k, **given.window)
    try:
        with tuning(**case.tuning), _threads(case.threads):
            return _CHECKS[case.api](case, answer, subject)
    except Mismatch:
        raise
    except AssertionError as error:
        raise Mismatch(str(error)) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def _options(case: Case) -> dict[str, Any]:
    return {
        **case.window,
        "hint_offset": case.hint_offset,
        "sorted": case.sorted,
        "algorithm": case.algorithm,
    }


def _moved(case: Case, device: torch.device | str) -> Case:
    tensors = {
        entry.name: getattr(case, entry.name).to(device)
        for entry in fields(case)
        if isinstance(getattr(case, entry.name), Tensor)
    }
    return replace(case, **tensors)


def _assert_exact(case: Case, answer: Answer, indices: Tensor, values: Tensor | None) -> None:
    place = answer.scores.device
    if indices.device != case.scores.device:
        raise Mismatch(f"{case.api}: indices on {indices.device}")
    moved = None if values is None else values.to(place)
    assert_exact(answer, indices.to(place), moved, sorted=case.sorted, label=case.api)


def _check_topk(case: Case, answer: Answer, subject: Subject) -> None:
    values, indices = subject.topk(case.scores, case.k, hint=case.hint, **_options(case))
    _assert_exact(case, answer, indices, values)


def _check_indices(case: Case, answer: Answer, subject: Subject) -> None:
    indices = subject.topk_indices(case.scores, case.k, hint=case.hint, **_options(case))
    _assert_exact(case, answer, indices, None)


def _check_explain(case: Case, answer: Answer, subject: Subject) -> Stats:
    values, indices, stats = subject.explain(case.scores, case.k, hint=case.hint, **_options(case))
    _assert_exact(case, answer, indices, values)
    return stats


def _check_out(case: Case, answer: Answer, subject: Subject) -> None:
    """Outputs inside larger tensors, prefilled: what lies around them must stay."""
    shape = (case.rows + 2, case.k + 2 * _GUARD)
    inner = (slice(1, -1), slice(_GUARD, -_GUARD))
    place, device = answer.scores.device, case.scores.device
    values = torch.full(shape, SENTINEL, dtype=case.scores.dtype, device=place).to(device)
    indices = torch.full(shape, SENTINEL, dtype=torch.int32, device=place).to(device)
    out = (values[inner], indices[inner])
    subject.topk(case.scores, case.k, hint=case.hint, out=out, **_options(case))
    values, indices = values.to(place), indices.to(place)
    assert_exact(answer, indices[inner], values[inner], sorted=case.sorted, label="out")
    around = torch.ones(shape, dtype=torch.bool, device=place)
    around[inner] = False
    for name, tensor in (("values", values), ("indices", indices)):
        if not bool((tensor[around] == SENTINEL).all()):
            raise Mismatch(f"out: something was written beside {name}")


def _check_step(case: Case, answer: Answer, subject: Subject) -> None:
    assert case.slots is not None
    slots, depth, hints = case.table
    cache = subject.TopKCache(
        1, slots, case.k, hint_size=hints, depth=depth, device=case.scores.device
    )
    local = _moved(case, answer.scores.device)
    before = _table_before(local)
    cache.state[0].copy_(before)
    values, indices = cache.step(case.scores, 0, case.slots, return_values=True, **_options(case))
    _assert_exact(case, answer, indices, values)
    _check_table(local, answer, before, cache.state[0].to(before.device))


def _in_table(case: Case) -> Tensor:
    """Requests whose slot exists."""
    assert case.slots is not None
    return ((case.slots >= 0) & (case.slots < case.table[0])).nonzero()[:, 0]


def _table_before(case: Case) -> Tensor:
    """[slots, depth, words]: the hints of each request, or noise."""
    assert case.slots is not None
    slots, depth, hints = case.table
    device = case.scores.device
    table = torch.zeros(slots, depth, _HEADER + hints, dtype=torch.int32, device=device)
    if case.noise is not None:
        generator = torch.Generator(device).manual_seed(case.noise)
        return table.random_(-(2**31), 2**31 - 1, generator=generator)
    if case.hint is not None:
        requests = _in_table(case)
        step = case.next_n if case.hint_per_row else 1
        given = case.hint[::step, :hints][requests]
        where = case.slots[requests].long()
        table[where, 0, _HEADER : _HEADER + given.shape[1]] = given
        table[where, 0, _COUNT] = given.shape[1]
    return table


def _stored_hints(winners: Tensor, k: int, hints: int) -> Tensor:
    """How many of the winners an entry holds: all, or those at even distances (rows.h)."""
    if hints >= k:
        return winners.clamp(max=hints)
    step = ((hints << 32) + k - 1) // k
    return (((winners - 1) * step >> 32) + 1).clamp(max=hints)


def _check_table(case: Case, answer: Answer, before: Tensor, after: Tensor) -> None:
    """Entries of answered rows hold a part of the answer; every other word is as it was."""
    assert case.slots is not None
    in_table = _in_table(case)
    drafts = torch.arange(case.next_n, device=in_table.device)
    row = (in_table[:, None] * case.next_n + drafts).reshape(-1)
    entry = case.slots[in_table].long().repeat_interleave(case.next_n) * before.shape[1]
    entry += drafts.repeat(len(in_table))
    answered = answer.counts[row] > 0
    row, entry = row[answered], entry[answered]
    width = before.shape[2]
    flat, expected = after.reshape(-1, width), before.reshape(-1, width).clone()
    stored = _stored_hints(answer.counts[row], case.k, width - _HEADER)
    if not torch.equal(flat[entry, _COUNT].long(), stored):
        raise Mismatch("step: a state entry does not say how many indices it holds")
    position = torch.arange(width - _HEADER, device=row.device)
    valid = position < stored[:, None]
    found = flat[entry, _HEADER:].long()
    inside = _is_member(found, answer.indices[row])
    if not bool((inside | ~valid).all()):
        raise Mismatch("step: a state entry holds an index that is no winner")
    ordered = found.masked_fill(~valid, -1).sort(-1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise Mismatch("step: a state entry holds an index twice")
    # Beyond the stored indices, and beside the header of answered rows, nothing may change.
    words = torch.cat([valid.new_ones(len(row), _HEADER), valid], dim=1)
    words[:, _ACCEPTED] = False
    expected[entry] = torch.where(words, flat[entry], expected[entry])
    last = row % case.next_n == case.next_n - 1
    expected[entry[last] - (case.next_n - 1), _ACCEPTED] = case.next_n - 1
    if not torch.equal(flat, expected):
        raise Mismatch("step: words of the state changed that belong to no answered row")


def _is_member(found: Tensor, wanted: Tensor) -> Tensor:
    """Per row of [rows, h] and [rows, k]: is found[r, i] one of wanted[r]?"""
    if found.numel() == 0:
        return torch.ones_like(found, dtype=torch.bool)
    ordered = wanted.sort(-1).values
    place = torch.searchsorted(ordered, found.contiguous()).clamp_(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == found


_CHECKS: dict[str, Callable[[Case, Answer, Subject], Stats | None]] = {
    "topk": _check_topk,
    "indices": _check_indices,
    "out": _check_out,
    "explain": _check_explain,
    "step": _check_step,
}
