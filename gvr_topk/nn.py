# SPDX-License-Identifier: Apache-2.0
"""TopK: a decoder's selection as a module that compiles, exports and replays in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _C
from .cache import TopKCache
from .ops import check_int, check_options, check_scores, check_tensor, type_name

__all__ = ["TopK"]


class TopK(nn.Module):
    """The exact Top-K of every row, hinted by the previous step of the same layer and slot.

    k, slots, layers, hint_size, depth, device   as in `TopKCache`. One module may serve one layer
                                                 (the default) or, with `layers`, all of them.
    sorted, algorithm                            as in `gvr_topk.ops`.

    The previous answers are the buffer `state`, made here and never moved by a step; it is not part
    of `state_dict`. `forward` passes it whole to one operator: `torch.compile` sees no graph break,
    the compiled region may become a CUDA graph under `mode="reduce-overhead"`, and a CUDA
    graph captured by hand finds the state where it was.

    On a GPU "auto" keeps the state without reading it: who needs neither another algorithm's hints
    nor `cache.step_difference` has the same answer sooner from `gvr_topk.topk_indices`.

    `cache` is a `TopKCache` over the same memory: `cache.reset`, `copy` and `commit` do what a
    server does between steps. Moving the module to another device, copying or unpickling it makes
    an empty cache there: hints change the time only, never the answer.

        >>> select = TopK(2048, slots=256, layers=61, device="cuda")
        >>> indices = select(scores, slots, lengths, layer=7)          # int32 [rows, 2048]
        >>> select.cache.reset([3])                                    # slot 3 has a new request
    """

    state: Tensor

    def __init__(
        self,
        k: int,
        slots: int,
        *,
        layers: int = 1,
        hint_size: int | None = None,
        depth: int = 1,
        sorted: bool = False,
        algorithm: str = "auto",
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__()
        if not isinstance(sorted, bool):
            raise TypeError(f"sorted: got {type_name(sorted)}, need a bool")
        if not isinstance(algorithm, str):
            raise TypeError(f"algorithm: got {type_name(algorithm)}, need a str")
        _C.make_plan(
            1, 1, 1, algorithm=algorithm
        )  # an unknown name is an error here, not in a step
        self.k = k
        self.sorted = sorted
        self.algorithm = algorithm
        self._adopt(TopKCache(layers, slots, k, hint_size=hint_size, depth=depth, device=device))

    def forward(
        self,
        scores: Tensor,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        layer: int = 0,
        starts: Tensor | None = None,
        next_n: int = 1,
        compress_ratio: int = 1,
        hint_offset: int = 0,
    ) -> Tensor:
        """int32 indices [..., k] of `scores` [..., n]; arguments as in `TopKCache.step`.

        Rows with a negative slot, or with none of their scores valid, leave the state alone.
        """
        check_scores(scores)
        check_int("layer", layer)
        if slots is not None:
            check_tensor("slots", slots)
        check_options(
            lengths=lengths,
            starts=starts,
            next_n=next_n,
            compress_ratio=compress_ratio,
            hint_offset=hint_offset,
            sorted=self.sorted,
            algorithm=self.algorithm,
        )
        return torch.ops.gvr.step(
            scores,
            self.state,
            layer,
            self.k,
            slots=slots,
            lengths=lengths,
            starts=starts,
            next_n=next_n,
            compress_ratio=compress_ratio,
            hint_offset=hint_offset,
            sorted=self.sorted,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        cache = self.cache
        return (
            f"k={self.k}, slots={cache.slots}, layers={cache.layers}, "
            f"hint_size={cache.hint_size}, depth={cache.depth}, "
            f"sorted={self.sorted}, algorithm={self.algorithm!r}"
        )

    def _adopt(self, cache: TopKCache) -> None:
        self.cache = cache
        self.register_buffer("state", cache.state, persistent=False)

    @property
    def _shape(self) -> dict[str, int]:
        cache = self.cache
        return {
            "layers": cache.layers,
            "slots": cache.slots,
            "k": cache.k,
            "hint_size": cache.hint_size,
            "depth": cache.depth,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TopK:
        """Where a move has copied the buffer away from its cache, both begin anew."""
        super()._apply(fn, recurse)
        if self.state.device != self.cache.device or (
            self.state.data_ptr() != self.cache.state.data_ptr()
        ):
            self._adopt(TopKCache(**self._shape, device=self.state.device))
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["cache"] = {**self._shape, "device": str(self.cache.device)}
        state["_buffers"] = {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments = state.pop("cache")
        super().__setstate__(state)
        self._adopt(TopKCache(**arguments))
