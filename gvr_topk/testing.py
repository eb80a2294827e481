# SPDX-License-Identifier: Apache-2.0
"""For tests and benchmarks: send a small row down any path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _C

__all__ = ["tuning"]


@contextmanager
def tuning(**overrides: int) -> Iterator[None]:
    """Override internal thresholds of the calling thread; fields of struct Tuning in plan.h.

    Fields that are not named leave the choice to the plan. No override changes an answer.

        >>> with tuning(staging=64, ctas_per_row=4):
        ...     gvr_topk.topk(scores, 100)
    """
    before = _C.get_tuning()
    _C.set_tuning(**overrides)
    try:
        yield
    finally:
        _C.set_tuning(**before)
