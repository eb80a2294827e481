# SPDX-License-Identifier: Apache-2.0
"""Who is told of every selection that the Python API makes; nobody, unless a trace is recorded.

An inactive observer costs the caller one test of an empty tuple, and torch.compile traces through
it without a graph break. An active one is called outside of the compiled graph, so a compiled
caller is compiled again with a graph break at each selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Call(NamedTuple):
    """One selection, after it succeeded. Tensors are the caller's own and must not be kept."""

    scores: Tensor
    k: int
    lengths: Tensor | None = None
    starts: Tensor | None = None
    next_n: int = 1
    compress_ratio: int = 1
    cache: Any = None  # the TopKCache, of which `layer` and `slots` are
    layer: int = 0
    slots: Tensor | Sequence[int] | None = None


class Observer(Protocol):
    """Runs in the thread of the selection and must not raise: the selection is not its business."""

    def selected(self, call: Call) -> None: ...

    def reset(self, cache: Any, slots: Tensor | None) -> None:
        """These slots of a cache, or all, go to other requests."""


active: tuple[Observer, ...] = ()
_lock = Lock()


def add(observer: Observer) -> None:
    global active, selected, reset
    with _lock:
        if selected is _selected:
            # Not at import: this loads torch's compiler, which takes longer than all of gvr_topk.
            selected = torch.compiler.disable(_selected)
            reset = torch.compiler.disable(_reset)
        active = (*active, observer)


def remove(observer: Observer) -> None:
    global active
    with _lock:
        active = tuple(other for other in active if other is not observer)


def _selected(scores: Tensor, k: int, **options: Any) -> None:
    fields = {name: options[name] for name in Call._fields if name in options}
    for observer in active:
        observer.selected(Call(scores, k, **fields))


def _reset(cache: Any, slots: Tensor | None) -> None:
    for observer in active:
        observer.reset(cache, slots)


# What the Python API calls while `active` is not empty.
selected = _selected
reset = _reset
