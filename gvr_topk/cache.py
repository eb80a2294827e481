# SPDX-License-Identifier: Apache-2.0
"""TopKCache: every layer's and request's previous answer, as the next step's hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import torch
from torch import Tensor

from . import _C, _observers
from .ops import TopKResult, check_int, check_options, check_scores, check_tensor, type_name
from .serving import (
    KvTopK,
    TopKDifference,
    check_placement,
    check_requests,
    windows_of_groups,
)
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


_STEP_DEFAULTS: dict[str, object] = {
    "lengths": None,
    "starts": None,
    "next_n": 1,
    "compress_ratio": 1,
    "hint_offset": 0,
    "sorted": False,
    "algorithm": "auto",
}


class TopKCache(_C.TopKCache):
    """Previous Top-K indices by layer and request slot, in one int32 tensor.

    layers, slots  size of the table. A slot is a request's stable number, 0 <= slot < slots,
                   never its position in a batch.
    k              winners per row of every step.
    hint_size      how many previous indices are kept per entry, 1 <= hint_size <= k; default k.
                   Where they are fewer than k, the indices at even distances in the answer are
                   kept: a sample of it, in the order in which it was returned.
    depth          entries per slot, at least the largest next_n of a step; default 1.
    device         where the table, and the scores of every step, live.

    The table takes 4 * layers * slots * depth * (4 + hint_size) bytes (`bytes_needed`; 0.5 GB for
    61 layers, 1,024 slots and k = 2048), is allocated once and never moves. A fresh entry holds no
    hint. Answers never depend on the table, time does: see `gvr_topk.ops` for the contract.

    A slot belongs to one request of a step. Where the host sees that two requests with valid scores
    share one (a list, a CPU tensor), it is a ValueError, and a slot beyond the table an IndexError.
    In a CUDA tensor neither can be seen without stopping the stream: there the last such request
    has the slot and the others are answered without it, and a slot beyond the table is nobody's.

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
        slots: Slots | None = ...,
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
        slots: Slots | None = ...,
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
        slots: Slots | None = ...,
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
        slots: Slots | None = ...,
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
        slots: Slots | None = None,
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

        slots    int32 or int64 [rows / next_n] on the device of scores, or a list of ints (which
                 costs a copy to the device); None: request i has slot i. A slot < 0 is padding: it,
                 and a row without valid scores, reads and writes nothing.
        lengths, starts, next_n, ...: as in `gvr_topk.ops`.

        Returns the int32 indices [..., k]; TopKResult with return_values, Explanation (values and
        telemetry) with return_stats. Values have no gradient here.
        """
        check_scores(scores)
        check_int("layer", layer)
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
            self._step_slots(slots),
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

    def step_kv(
        self,
        scores: Tensor,
        layer: int,
        slots: Slots | None = None,
        lengths: Tensor | None = None,
        *,
        page_table: Tensor | None = None,
        page_size: int = 1,
        offsets: Tensor | None = None,
        row_to_request: Tensor | None = None,
        windows_per_row: bool = False,
        **options: Unpack[StepOptions],
    ) -> KvTopK:
        """`step`, with the places of the selected keys in the KV cache, in the same launch.

        page_table, page_size, offsets, row_to_request, windows_per_row: as in `gvr_topk.serving`.
        slots has one entry per request. Where row_to_request gives a request many rows, the answer
        of the last one with valid scores is stored: a prefill step seeds its slots.

        Returns (kv_indices, indices), both int32 [..., k].
        """
        check_scores(scores)
        check_int("layer", layer)
        check_options(**{**_STEP_DEFAULTS, **options, "lengths": lengths})
        check_requests(row_to_request, windows_per_row)
        check_placement(page_table, page_size, offsets)
        result = super().step_kv(
            scores,
            layer,
            self._step_slots(slots),
            lengths,
            page_table=page_table,
            page_size=page_size,
            offsets=offsets,
            row_to_request=row_to_request,
            windows_per_row=windows_per_row,
            **options,
        )
        if _observers.active:
            self._observe(
                scores, layer, slots, lengths, row_to_request, windows_per_row, {**options}
            )
        return KvTopK(*result)

    def step_difference(
        self,
        scores: Tensor,
        layer: int,
        slots: Slots | None = None,
        lengths: Tensor | None = None,
        *,
        row_to_request: Tensor | None = None,
        windows_per_row: bool = False,
        **options: Unpack[StepOptions],
    ) -> TopKDifference:
        """`step`, with what entered the answer and what left it, for servers that offload keys.

        Every row is compared with the answer that its slot held before the step: that of the
        previous step, of the draft that the last `commit` accepted. A row without a slot, a fresh
        or a reset slot has nothing stored, so that everything enters. A row without valid scores
        stores nothing and nothing enters or leaves. Stored positions are moved by hint_offset;
        those that it moves below 0 appear nowhere. The order of entered and left is unspecified.

        Needs hint_size == k. On CUDA one launch, three with sorted: see `gvr_topk.serving`.
        """
        check_scores(scores)
        check_int("layer", layer)
        check_options(**{**_STEP_DEFAULTS, **options, "lengths": lengths})
        check_requests(row_to_request, windows_per_row)
        result = super().step_difference(
            scores,
            layer,
            self._step_slots(slots),
            lengths,
            row_to_request=row_to_request,
            windows_per_row=windows_per_row,
            **options,
        )
        if _observers.active:
            self._observe(
                scores, layer, slots, lengths, row_to_request, windows_per_row, {**options}
            )
        return TopKDifference(*result)

    def _observe(
        self,
        scores: Tensor,
        layer: int,
        slots: Slots | None,
        lengths: Tensor | None,
        row_to_request: Tensor | None,
        windows_per_row: bool,
        options: dict[str, Any],
    ) -> None:
        windows = windows_of_groups(
            row_to_request, windows_per_row, lengths, options.pop("starts", None)
        )
        if row_to_request is None:
            options.update(cache=self, layer=layer, slots=slots)
        _observers.selected(scores, self.k, **{**options, **windows})

    def seed(self, layer: int, slots: Slots, indices: Tensor) -> None:
        """indices[i] becomes the hint of slot slots[i] in one layer, as if a step had answered it.

        indices is int32 [slots, k] on any device, -1 where there are fewer: the Top-K of the last
        prefill row, or of whatever else the next step will resemble. Slots must be distinct.
        """
        check_int("layer", layer)
        check_tensor("indices", indices)
        super().seed(layer, _slot_tensor("slots", slots), indices)

    def reset(self, slots: Slots | None = None) -> None:
        """Forget the hints of these slots in every layer; of all slots without an argument.

        Here and below slots are a list of ints or a 1-D integer tensor on any device. Out of range
        they are an IndexError, and a ValueError where distinct slots are needed and one comes
        twice; except in a CUDA tensor, since looking at it would stop the stream. There, unknown
        slots are ignored, and a slot that comes twice ends with a hint from either source.
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

    def remap(self, slots: Slots, positions: Tensor) -> None:
        """Keys of these slots were moved: follow them, in every layer.

        positions is int32 or int64, [slots, n] or, the same for all slots, [n]: the key at position
        p of slots[i] is now at positions[i, p]. Negative: the key is gone. Keys at n and beyond are
        gone, too. The positions are those of scores: with a compress_ratio, of compressed keys.
        Slots must be distinct.
        """
        check_tensor("positions", positions)
        super().remap(_slot_tensor("slots", slots), positions)

    def export(
        self, slots: Slots, *, device: torch.device | str | int | None = None
    ) -> dict[str, Tensor]:
        """A copy of what these slots hold, to be kept or sent elsewhere: see `import_`.

        Returns {"entries": int32 [layers, slots, depth, 4 + hint_size], "k": int64 []}, tensors
        alone, so that torch.save, safetensors or a collective carry them. `device` (default: that
        of the cache) is where entries go; "cpu" waits for the copy.
        """
        entries = super().export_entries(_slot_tensor("slots", slots))
        if device is not None:
            entries = entries.to(torch.device(device))
        return {"entries": entries, "k": torch.tensor(self.k)}

    def import_(self, slots: Slots, exported: Mapping[str, Tensor]) -> None:
        """Slot slots[i] takes over the i-th slot of an `export`, in every layer.

        The export may come from this cache or from one of the same layers, depth, hint_size and k
        on any device or machine; anything else is a ValueError. Slots must be distinct.
        """
        entries, k = _exported_part(exported, "entries"), _exported_part(exported, "k")
        if k.numel() != 1 or int(k) != self.k:
            raise ValueError(f"k: got an export of k {k.tolist()}, need {self.k} as in this cache")
        super().import_entries(_slot_tensor("slots", slots), entries)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole table, in the form of `export`.

        As in a module's state_dict, entries is the table itself and no copy: save or clone it
        before the next step.
        """
        return {"entries": self.state, "k": torch.tensor(self.k)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over the whole table of a cache of the same sizes. The table stays where it is."""
        self.import_(torch.arange(self.slots, device=self.device), state_dict)

    @property
    def device_bytes(self) -> int:
        """Bytes of GPU memory that the cache holds. There is no copy of it on the host."""
        return 0 if self.device.type == "cpu" else self.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that the cache holds."""
        return self.nbytes - self.device_bytes

    @staticmethod
    def bytes_needed(
        layers: int, slots: int, k: int, *, hint_size: int | None = None, depth: int = 1
    ) -> int:
        """`nbytes` of a cache of this size, before one is made.

        >>> TopKCache.bytes_needed(layers=61, slots=1024, k=2048, hint_size=256)
        64963600
        """
        entry = depth * (_C.state_header + (k if hint_size is None else hint_size))
        return 4 * entry * (layers * slots + 1)

    def _step_slots(self, slots: Slots | None) -> Tensor | None:
        """Slots of a step on the device of the cache; a list is checked while it is on the host."""
        if slots is None or isinstance(slots, Tensor):
            return slots
        given = _slot_tensor("slots", slots)
        used: set[int] = set()
        for slot in given.tolist():
            if slot >= self.slots:
                raise IndexError(
                    f"slots: got {slot}, need slots < {self.slots} (negative for padding)"
                )
            if slot in used:
                raise ValueError(f"slots: got slot {slot} twice, need a slot of its own for each")
            if slot >= 0:
                used.add(slot)
        return given.to(self.device)

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
    try:
        return torch.tensor([int(slot) for slot in slots], dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: got {list(slots)}, need numbers below 2^63") from error


def _exported_part(exported: Mapping[str, Tensor], name: str) -> Tensor:
    if not isinstance(exported, Mapping) or name not in exported:
        given = sorted(exported) if isinstance(exported, Mapping) else type_name(exported)
        raise ValueError(f"exported: got {given}, need the dict that export or state_dict gives")
    check_tensor(name, exported[name])
    return exported[name]
