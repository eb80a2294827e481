# SPDX-License-Identifier: Apache-2.0
"""The smallest call that still fails: fewest rows, smallest k, shortest rows, fewest arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic

import torch

from .case import Case

Fails = Callable[[Case], bool]


def shrink(case: Case, fails: Fails, *, seconds: float = 60.0) -> Case:
    """Simplifies `case` while `fails` holds, until no step helps or the time is over.

    `fails` must hold for `case` itself. A call that fails only sometimes may shrink less.
    """
    deadline = monotonic() + seconds
    while True:
        smaller = case
        for steps in (_fewer_requests, _fewer_arguments, _smaller_k, _shorter_rows):
            smaller = _descend(smaller, steps, fails, deadline)
        if smaller is case or monotonic() > deadline:
            return smaller
        case = smaller


def _descend(
    case: Case, steps: Callable[[Case], Iterator[Case]], fails: Fails, deadline: float
) -> Case:
    """Takes the first step that still fails, again and again."""
    while True:
        for smaller in steps(case):
            if monotonic() > deadline:
                return case
            if fails(smaller):
                case = smaller
                break
        else:
            return case


def _fewer_requests(case: Case) -> Iterator[Case]:
    """Halves, quarters, ... of the requests: first each one alone, then all but it."""
    everything = torch.arange(case.requests, device=case.scores.device)
    part = (case.requests + 1) // 2
    while case.requests > 1:
        for chosen in everything.split(part):
            yield case.select(chosen)
            rest = everything[~torch.isin(everything, chosen)]
            if 1 < part < case.requests and len(rest) > 0:
                yield case.select(rest)
        if part == 1:
            return
        part = (part + 1) // 2


def _fewer_arguments(case: Case) -> Iterator[Case]:
    if case.next_n > 1:
        yield replace(_one_row_per_request(case), next_n=1)
    if case.scores.storage_offset() > 0 or not case.scores.is_contiguous():
        yield replace(case, scores=case.scores.clone(memory_format=torch.contiguous_format))
    plain = Case(case.scores, case.k)
    optional = ("hint", "lengths", "starts", "compress_ratio", "hint_offset", "sorted", "noise")
    for name in (*optional, "threads"):
        given, usual = getattr(case, name), getattr(plain, name)
        if given is not usual and (isinstance(given, torch.Tensor) or given != usual):
            yield replace(case, **{name: usual})
    for name in case.tuning:
        yield replace(case, tuning={k: v for k, v in case.tuning.items() if k != name})
    for api in ("indices", "topk"):
        if case.api not in ("indices", api):
            yield replace(case, api=api, slots=None)
    if case.algorithm != "auto":
        yield replace(case, algorithm="auto")
    if case.hint is not None and case.hint.shape[1] > 1:
        yield replace(case, hint=case.hint[:, : case.hint.shape[1] // 2].contiguous())


def _one_row_per_request(case: Case) -> Case:
    """The last draft of every request: its window ends where the length says."""
    last = slice(case.next_n - 1, None, case.next_n)
    hint = case.hint[last] if case.hint is not None and case.hint_per_row else case.hint
    return replace(case, scores=case.scores[last], hint=hint)


def _smaller_k(case: Case) -> Iterator[Case]:
    for k in dict.fromkeys((1, case.k // 8, case.k // 2, case.k - 1)):
        if 0 < k < case.k:
            slots, depth, hints = case.table
            yield replace(case, k=k, table=(slots, depth, min(hints, k)))


def _shorter_rows(case: Case) -> Iterator[Case]:
    """Cuts stretches out of all rows; windows and hints stay, and are clamped."""
    part = case.n // 2
    while part > 0:
        for first in range(0, case.n, part):
            keep = [case.scores[:, :first], case.scores[:, first + part :]]
            scores = torch.cat(keep, dim=1)
            if scores.shape[1] > 0:
                yield replace(case, scores=scores)
        part //= 2
