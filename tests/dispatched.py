# SPDX-License-Identifier: Apache-2.0
"""Which operators a call is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that launch nothing.
_VIEWS = ("alias", "detach", "empty", "expand", "new_empty", "slice", "unsqueeze", "view")


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def all_operators(call: Callable[[], object]) -> list[str]:
    """Names of the operators of a call."""
    with torch.inference_mode(), _Operators() as seen:
        call()
    return seen.names


def operators(call: Callable[[], object]) -> list[str]:
    """The same but for views and allocations."""
    return [name for name in all_operators(call) if name.split(".")[1] not in _VIEWS]
