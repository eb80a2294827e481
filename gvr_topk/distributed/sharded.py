# SPDX-License-Identifier: Apache-2.0
"""The public call: local Top-K, agreement between the ranks, answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..cache import TopKCache
from ..ops import TopKResult, check_int, check_options, check_scores, check_tensor, type_name
from . import candidates, splitters, threshold
from .agreement import agree, checks_by_default
from .collectives import Communicator
from .layout import INT32_MAX, LayoutSpec, Pages, Placement, Window, describe, place
from .model import LINKS, METHODS, Shape, cached_plan, plan
from .winners import Local, gather_answer, own_prefix

__all__ = ["topk"]


def topk(
    scores: Tensor,
    k: int,
    group: dist.ProcessGroup | None = None,
    *,
    layout: LayoutSpec = "contiguous",
    method: Literal["auto", "candidates", "threshold", "splitters"] = "auto",
    return_: Literal["global", "local"] = "global",
    hint: Tensor | None = None,
    hint_offset: int = 0,
    cache: TopKCache | Tensor | None = None,
    layer: int = 0,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
    window: Literal["global", "local"] = "global",
    sorted: bool = True,
    algorithm: str = "auto",
    check: bool | None = None,
) -> TopKResult:
    """The exact k best scores of rows whose keys are spread over the ranks of a process group.

    Every rank of the group calls it with the same arguments, except for its own scores, hint,
    cache and slots. The answer is that of `gvr_topk.topk(row, k, sorted=True)` on the whole row,
    index for index: score descending with NaN first, -0.0 equal to +0.0, global index ascending.

    scores    [..., n] of this rank's keys in local order: float32, bfloat16 or float16. n may
              differ between ranks, be below k, or be 0; the leading dimensions may not differ.
    group     the process group; None: the default one. Its transport is used as it is (NCCL for
              CUDA tensors, gloo for CPU tensors), and so are its timeouts.
    layout    where the local keys stand in the whole row, which has fewer than 2^31 keys:
              "contiguous"       one block per rank, in rank order. Sizes are agreed by a gather of
                                 8 bytes, where offsets matter; offsets as below spare it.
              "interleaved"      global = local * world + rank
              Interleaved(page)  the same with pages of keys
              W ints             global = offsets[rank] + local; blocks in any order, with gaps
    method    "candidates"  one all-gather of every rank's Top-K; all merge it
              "threshold"   rounds of small all-reduces find the K-th score; traffic without K or W
              "splitters"   two small all-gathers of keys find the K-th score and its ties
              "auto"        the one whose collectives take the least time by gvr_topk's model
    return_   "global"  the whole answer on every rank, global indices
              "local"   this rank's own winners: local indices, padded with -1 (value -inf). All
                        ranks together hold the k of the whole row.
    hint, hint_offset   local indices that may be winners, as in `gvr_topk.ops`
    cache, layer, slots a TopKCache of this rank (under torch.compile its `state`), instead of a
              hint. It stores the Top-K of the shard, in the launch that selects: a superset of this
              rank's part of the answer, and what the next local selection needs. Nothing of it is
              sent.
    lengths, starts, next_n, compress_ratio   as in `gvr_topk.ops`. With window="global" they bound
              the whole row, and are the same on every rank; with window="local" they bound the
              shard, and a row of the answer is the union of the ranks' windows.
    sorted    True: best first, and the same tensor on every rank. False: in any order. Rows of
              return_="local" are always best first.
    algorithm of the local selection, as in `gvr_topk.ops`
    check     debug mode: compare the arguments of all ranks before any data moves and raise the
              same error on every rank. It stops the stream. None: as GVR_DISTRIBUTED_CHECK says,
              outside torch.compile and CUDA graphs.

    Returns (values, indices), [..., k] in the dtype of scores (bit for bit the selected scores)
    and int32. Values have no gradient.

    Errors are ValueError, TypeError and IndexError, raised before anything is sent. Without
    `check` the other ranks then wait until the timeout of the group.

    No host synchronisation and no data-dependent shape: works in CUDA graphs over NCCL and under
    torch.compile(fullgraph=True).

        >>> values, indices = gvr_topk.distributed.topk(shard, 2048, lengths=lengths)
        >>> mine = gvr_topk.distributed.topk(shard, 2048, return_="local").indices
    """
    comm = Communicator(group)
    call = _Call(
        comm, scores, k, layout, method, return_, hint, hint_offset, cache, layer, slots,
        Window(lengths, starts, next_n, compress_ratio), window, sorted, algorithm,
    )  # fmt: skip
    if _checks(check, scores):
        placement = agree(comm, call.prepare, call.facts, call.judge)
        local = agree(comm, lambda: call.select_local(placement))
    else:
        local = call.select_local(call.prepare())
    result = call.finish(local)
    shape = (*scores.shape[:-1], k)
    return TopKResult(result.values.view(shape), result.indices.view(shape))


def _checks(check: bool | None, scores: object) -> bool:
    if check is not None and not isinstance(check, bool):
        raise TypeError(f"check: got {type_name(check)}, need a bool or None")
    if torch.compiler.is_compiling():
        if check:
            raise ValueError("check: got True under torch.compile, need None or False there")
        return False
    capturing = isinstance(scores, Tensor) and scores.is_cuda and _is_capturing()
    if capturing:
        if check:
            raise ValueError("check: got True in a CUDA graph capture, need None or False there")
        return False
    return checks_by_default() if check is None else check


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


@dataclass
class _Call:
    """The arguments of one call, and its three stages."""

    comm: Communicator
    scores: Tensor
    k: int
    layout: LayoutSpec
    method: str
    return_: str
    hint: Tensor | None
    hint_offset: int
    cache: TopKCache | Tensor | None
    layer: int
    slots: Tensor | None
    window: Window
    window_of: str
    sorted: bool
    algorithm: str

    def prepare(self) -> Placement:
        """Everything that can be refused without looking at data."""
        check_scores(self.scores)
        check_int("k", self.k)
        check_int("layer", self.layer)
        check_options(
            **self.window.options(),
            hint=self.hint,
            hint_offset=self.hint_offset,
            sorted=self.sorted,
            algorithm=self.algorithm,
        )
        _check_choice("method", self.method, ("auto", *METHODS))
        _check_choice("return_", self.return_, ("global", "local"))
        _check_choice("window", self.window_of, ("global", "local"))
        self._check_cache()
        scores = self.scores
        if scores.dim() == 0:
            raise ValueError("scores: got a 0-dimensional tensor, need [..., n]")
        if not 1 <= self.k <= INT32_MAX:
            raise ValueError(f"k: got {self.k}, need 1 <= k < 2^31")
        if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"scores: got dtype {scores.dtype}, "
                "need torch.float32, torch.bfloat16 or torch.float16"
            )
        self._check_window()
        self._check_devices()
        placement = place(self.layout, self.comm, scores.shape[-1], scores.device)
        page = placement.page if isinstance(placement, Pages) else 1
        next_n = self.window.next_n
        if page > 1 and next_n > 1 and self.cache is not None and self._translates():
            raise ValueError(
                f"next_n: got {next_n} with a cache and pages of {page} keys, in which drafts do "
                "not end one key apart; need hint= instead of cache=, or window='local'"
            )
        return placement

    def _check_cache(self) -> None:
        if self.slots is not None:
            check_tensor("slots", self.slots)
        if self.cache is None:
            if self.slots is not None:
                raise ValueError("slots: got a tensor without a cache, need cache= as well")
            return
        if not isinstance(self.cache, TopKCache | Tensor):
            raise TypeError(
                f"cache: got {type_name(self.cache)}, need a TopKCache or its state tensor"
            )
        if self.hint is not None:
            raise ValueError("hint: got a tensor beside a cache, need one of them")
        if isinstance(self.cache, TopKCache) and self.cache.k != self.k:
            raise ValueError(f"k: got {self.k}, need {self.cache.k}, the k of the cache")

    def _check_window(self) -> None:
        next_n, rows = self.window.next_n, self.rows
        if next_n < 1 or rows % next_n:
            raise ValueError(
                f"next_n: got {next_n}, need a positive divisor of the number of rows ({rows})"
            )
        if self.window.compress_ratio < 1:
            raise ValueError(f"compress_ratio: got {self.window.compress_ratio}, need at least 1")
        for name, tensor in (("lengths", self.window.lengths), ("starts", self.window.starts)):
            if tensor is None:
                continue
            if tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(
                    f"{name}: got dtype {tensor.dtype}, need torch.int32 or torch.int64"
                )
            if tuple(tensor.shape) != (rows // next_n,):
                raise ValueError(
                    f"{name}: got shape {list(tensor.shape)}, need [{rows // next_n}] "
                    f"(rows / next_n = {rows} / {next_n})"
                )

    def _check_devices(self) -> None:
        """Here, since where a layout asks the other ranks the kernel's own check comes too late."""
        state = self.cache if isinstance(self.cache, Tensor | None) else self.cache.state
        for name, tensor in (
            ("lengths", self.window.lengths),
            ("starts", self.window.starts),
            ("hint", self.hint),
            ("slots", self.slots),
            ("cache", state),
        ):
            if tensor is not None and tensor.device != self.scores.device:
                raise ValueError(
                    f"{name}: got a tensor on {tensor.device}, "
                    f"need the device of scores ({self.scores.device})"
                )

    def facts(self, placement: Placement) -> Mapping[str, Any]:
        """What every rank has to have in common, and (with "_") what is judged together."""
        scores, window = self.scores, self.window
        whole = self.window_of == "global"
        return {
            "k": self.k,
            "dtype of scores": scores.dtype,
            "leading dimensions of scores": list(scores.shape[:-1]),
            "kind of device": scores.device.type,
            "layout": describe(self.layout),
            "method": self.method,
            "return_": self.return_,
            "sorted": self.sorted,
            "window": self.window_of,
            "next_n": window.next_n if whole else "free",
            "compress_ratio": window.compress_ratio if whole else "free",
            "lengths": _contents(window.lengths) if whole else "free",
            "starts": _contents(window.starts) if whole else "free",
            "_size": scores.shape[-1],
        }

    def judge(self, facts: list[Mapping[str, Any]]) -> str | None:
        sizes = [fact["_size"] for fact in facts]
        if self.layout == "contiguous" and sum(sizes) > INT32_MAX:
            return f"scores: got shards of {sizes} keys, need fewer than 2^31 in all"
        return None

    @property
    def rows(self) -> int:
        return self.scores.shape[:-1].numel()

    def _translates(self) -> bool:
        bounded = self.window.lengths is not None or self.window.starts is not None
        return bounded and self.window_of == "global"

    def select_local(self, placement: Placement) -> Local:
        """The Top-K of the shard, in one launch, with the hint or the cache."""
        scores = self.scores.detach().reshape(self.rows, self.scores.shape[-1])
        window = self.window
        if self._translates():
            window = placement.to_local(window, self.rows)
        options = {**window.options(), "sorted": True, "algorithm": self.algorithm}
        if self.cache is None:
            hint = self.hint
            if hint is not None:
                hint = hint.reshape(-1, hint.shape[-1])
                if window.next_n != self.window.next_n and len(hint) != self.rows:
                    hint = hint.repeat_interleave(self.window.next_n, 0)
            values, indices = torch.ops.gvr.topk(
                scores, self.k, hint=hint, hint_offset=self.hint_offset, **options
            )
        else:
            state = self.cache if isinstance(self.cache, Tensor) else self.cache.state
            values, indices = torch.ops.gvr.step_values(
                scores,
                state,
                self.layer,
                self.k,
                slots=self.slots,
                hint_offset=self.hint_offset,
                **options,
            )
        return Local(values, indices, placement)

    def finish(self, local: Local) -> TopKResult:
        """The answer, by the method."""
        comm = self.comm
        whole = self.return_ == "global"
        if self.rows == 0:
            return TopKResult(local.values, local.indices)
        if comm.world == 1:
            return TopKResult(local.values, local.global_indices() if whole else local.indices)
        ordered = local.placement.rank_order is not None
        shape = Shape(self.rows, self.k, comm.world, self.scores.dtype, ordered, whole)
        link = LINKS["cuda" if self.scores.is_cuda else "cpu"]
        planner = plan if torch.compiler.is_compiling() else cached_plan
        method, digits = planner(self.method, shape, link)
        if method == "candidates":
            return (candidates.merge if whole else candidates.own_part)(local, comm)
        if method == "splitters":
            winners = splitters.count_winners(local, comm)
        else:
            winners = threshold.count_winners(local, comm, digits)
        return gather_answer(local, winners, comm) if whole else own_prefix(local, winners)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type_name(value)}, need a str")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, need one of {', '.join(choices)}")


def _contents(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else tensor.tolist()
