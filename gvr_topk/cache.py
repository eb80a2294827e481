# SPDX-License-Identifier: Apache-2.0
"""TopKCache: every layer's and request's previous answer, as the next step's hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, overload

import torch
from torch import Tensor

from . import _C, _observers
from .ops import TopKResult, check_int, check_options, check_scores, check_tensor, type_name
from .stats import Explanation, Stats

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TopKCache"]

Slots: TypeAlias = Tensor | Sequence[int]


class StepOptions(TypedDict, total=False):
    """Keywords of `TopKCache.step` that leave the kind of its result alone."""

    starts: Tensor | None
    next_n: int
    compress_ratio: int
    hint_offset: int
    sorted: bool
    algorithm: str


class TopKCache(_C.TopKCache):
    """Previous Top-K indices by layer and request slot, in one int32 tensor.

    layers, slots  size of the table. A slot is a request's stable number, 0 <= slot < slots,
                   never its position in a batch.
    k              winners per row of every step.
    hint_size      how many previous indices are kept per entry, 1 <= hint_size <= k; default k.
    depth          entries per slot, at least the largest next_n of a step; default 1.
    device         where the table, and the scores of every step, live.

    The table takes 4 * layers * slots * depth * (4 + hint_size) bytes (`nbytes`; 0.5 GB for 61
    layers, 1,024 slots and k = 2048), is allocated once and never moves. A fresh entry holds no
    hint. Answers never depend on the table, time does: see `gvr_topk.ops` for the contract.

    One step uses the table in the stream it is launched on; steps of one slot on several streams
    need the caller's ordering.

        >>> cache = TopKCache(layers=61, slots=256, k=2048, device="cuda")
        >>> indices = cache.step(scores, layer, slots, lengths)
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        k: int,
        *,
        hint_size: int | None = None,
        depth: int = 1,
        device: torch.device | str | int = "cpu",
    ) -> None:
        for name, value in (("layers", layers), ("slots", slots), ("k", k), ("depth", depth)):
            check_int(name, value)
        if hint_size is not None:
            check_int("hint_size", hint_size)
        super().__init__(
            layers, slots, k, hint_size=hint_size, depth=depth, device=torch.device(device)
        )

    @overload
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = ...,
        lengths: Tensor | None = ...,
        *,
        return_values: Literal[False] = ...,
        return_stats: Literal[False] = ...,
        **options: Unpack[StepOptions],
    ) -> Tensor: ...
    @overload
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = ...,
        lengths: Tensor | None = ...,
        *,
        return_values: Literal[True],
        return_stats: Literal[False] = ...,
        **options: Unpack[StepOptions],
    ) -> TopKResult: ...
    @overload
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = ...,
        lengths: Tensor | None = ...,
        *,
        return_values: bool = ...,
        return_stats: Literal[True],
        **options: Unpack[StepOptions],
    ) -> Explanation: ...
    @overload
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = ...,
        lengths: Tensor | None = ...,
        *,
        return_values: bool = ...,
        return_stats: bool = ...,
        **options: Unpack[StepOptions],
    ) -> Tensor | TopKResult | Explanation: ...
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        starts: Tensor | None = None,
        next_n: int = 1,
        compress_ratio: int = 1,
        hint_offset: int = 0,
        sorted: bool = False,
        algorithm: str = "auto",
        return_values: bool = False,
        return_stats: bool = False,
    ) -> Tensor | TopKResult | Explanation:
        """Select with the stored hint of (layer, slot) and store the new one, in one launch.

        slots    int32 or int64 [rows / next_n] on the device of scores; None: request i has slot i.
                 A slot < 0 or >= slots, or a row without valid scores, reads and writes nothing.
                 Two requests of one call must not share a slot.
        lengths, starts, next_n, ...: as in `gvr_topk.ops`.

        Returns the int32 indices [..., k]; TopKResult with return_values, Explanation (values and
        telemetry) with return_stats. Values have no gradient here.
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
            sorted=sorted,
            algorithm=algorithm,
        )
        result = super().step(
            scores,
            layer,
            slots,
            lengths,
            starts=starts,
            next_n=next_n,
            compress_ratio=compress_ratio,
            hint_offset=hint_offset,
            sorted=sorted,
            algorithm=algorithm,
            return_values=return_values,
            return_stats=return_stats,
        )
        if _observers.active:
            _observers.selected(
                scores,
                self.k,
                lengths=lengths,
                starts=starts,
                next_n=next_n,
                compress_ratio=compress_ratio,
                cache=self,
                layer=layer,
                slots=slots,
            )
        if return_stats:
            values, indices, stats = result
            return Explanation(values, indices, Stats(stats))
        return TopKResult(*result) if return_values else result

    def reset(self, slots: Slots | None = None) -> None:
        """Forget the hints of these slots in every layer; of all slots without an argument.

        Here and below slots are a list of ints or a 1-D integer tensor on any device. Out of range
        they are an IndexError, except in a CUDA tensor, where they are ignored: looking at them
        would stop the stream.
        """
        given = None if slots is None else _slot_tensor("slots", slots)
        super().reset(given)
        if _observers.active:
            _observers.reset(self, given)

    def copy(self, src: Slots, dst: Slots) -> None:
        """Slot dst[i] takes over the hints of slot src[i], in every layer.

        Every source is read before the first destination is written, so the two may overlap.
        Destinations must be distinct.
        """
        super().copy(_slot_tensor("src", src), _slot_tensor("dst", dst))

    def commit(self, slots: Slots, accepted: Slots) -> None:
        """After a speculative step: slot slots[i] goes on from draft row accepted[i], 0-based.

        Without it the last row of the step counts as accepted. Slots must be distinct.
        """
        super().commit(_slot_tensor("slots", slots), _slot_tensor("accepted", accepted))

    def __repr__(self) -> str:
        return (
            f"TopKCache(layers={self.layers}, slots={self.slots}, k={self.k}, "
            f"hint_size={self.hint_size}, depth={self.depth}, device='{self.device}', "
            f"nbytes={self.nbytes})"
        )


def _slot_tensor(name: str, slots: Slots) -> Tensor:
    if isinstance(slots, Tensor):
        return slots
    if isinstance(slots, str) or not isinstance(slots, Sequence):
        raise TypeError(f"{name}: got {type_name(slots)}, need a torch.Tensor or a list of ints")
    for slot in slots:
        check_int(name, slot)
    return torch.tensor(slots, dtype=torch.int64)
