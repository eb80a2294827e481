# SPDX-License-Identifier: Apache-2.0
"""Debug mode: the ranks tell each other their arguments and errors before any data moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .collectives import Communicator

__all__ = ["CHECK_VARIABLE", "agree", "checks_by_default"]

CHECK_VARIABLE = "GVR_DISTRIBUTED_CHECK"

T = TypeVar("T")


def checks_by_default() -> bool:
    """Whether the environment asks for debug mode: GVR_DISTRIBUTED_CHECK=1."""
    value = os.environ.get(CHECK_VARIABLE, "0")
    if value not in ("", "0", "1"):
        raise ValueError(f"{CHECK_VARIABLE}: got {value!r}, need 0 or 1")
    return value == "1"


def agree(
    comm: Communicator,
    action: Callable[[], T],
    facts: Callable[[T], Mapping[str, Any]] = lambda result: {},
    judge: Callable[[list[Mapping[str, Any]]], str | None] = lambda facts: None,
) -> T:
    """The result of `action`, once every rank has one and all have the same facts.

    Otherwise every rank raises the same error: that of the first rank that failed, or a ValueError
    that names the facts in dispute. Facts whose name begins with "_" may differ; `judge` looks at
    them. Waits for the others: at most the timeout of the process group.
    """
    result: T | None = None
    mine: dict[str, Any] = {}
    error: Exception | None = None
    try:
        result = action()
        mine = dict(facts(result))
    except Exception as caught:
        # Told to the others first, and then raised here as well.
        error = caught
    told: list[Any] = [None] * comm.world
    failure = None if error is None else (_public_type(error), str(error))
    dist.all_gather_object(told, (failure, mine), group=comm.group)
    failed = [(rank, entry[0]) for rank, entry in enumerate(told) if entry[0] is not None]
    if failed:
        kind, message = failed[0][1]
        ranks = _ranks([rank for rank, _ in failed])
        raise kind(
            f"{ranks} failed, rank {failed[0][0]} with {kind.__name__}: {message}"
        ) from error
    given = [entry[1] for entry in told]
    problem = _dispute(given) or judge(given)
    if problem is not None:
        raise ValueError(f"the ranks of the group disagree: {problem}")
    return result  # type: ignore[return-value]


def _public_type(error: Exception) -> type[Exception]:
    """A type that every rank can make from a message."""
    for kind in (TypeError, IndexError, ValueError, torch.OutOfMemoryError):
        if isinstance(error, kind):
            return kind
    return RuntimeError


def _dispute(given: list[Mapping[str, Any]]) -> str | None:
    problems = []
    for name in given[0]:
        if name.startswith("_"):
            continue
        values: dict[str, list[int]] = {}
        for rank, facts in enumerate(given):
            values.setdefault(str(facts.get(name)), []).append(rank)
        if len(values) > 1:
            parts = (f"{value} on {_ranks(ranks)}" for value, ranks in values.items())
            problems.append(f"{name}: got {', '.join(parts)}, need the same on every rank")
    return "; ".join(problems) or None


def _ranks(ranks: list[int]) -> str:
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(map(str, ranks))}"
