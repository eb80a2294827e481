# SPDX-License-Identifier: Apache-2.0
"""Exact Top-K of every row: the typed Python API over `torch.ops.gvr`.

Arguments that every selection shares:

scores          [..., n], float32, bfloat16 or float16, any strides. The last dimension is the row;
                all others together are the batch. Rows are numbered in row-major order.
k               winners per row, k >= 1. It may exceed n.
lengths         int32 or int64 [rows / next_n], on the device of scores: how many scores of each
                request are valid. None: whole rows. Any value is allowed: it is clamped to the row,
                and a length <= 0 empties every row of the request.
starts          like lengths: scores before this position are ignored (clamped to the row).
next_n          rows per request (1 + draft tokens of a speculative step); row j of a request of
                length L ends at (L - next_n + j + 1) // compress_ratio.
compress_ratio  keys per score, where several keys share one.
hint            int32 [..., h] positions that may be winners, one row per row of scores or per
                request: usually the previous decode step's answer. It changes the time only, never
                the answer: it may be stale, wrong, padded with -1 or out of range.
hint_offset     added to every hinted position.
sorted          True: best first (score descending, NaN first, then index ascending).
                False: in no particular order.
algorithm       "auto"      chosen from the shape and the device.
                "gvr"       the paper's phases: guess a threshold from the hinted scores, verify it
                            by counting the row, collect the survivors, refine exactly. It continues
                            as "stream" where the guess cannot be corrected in a few counts.
                "resident"  the row stays in the shared memory of the CTAs that read it: one
                            histogram, one ranking; takes no hint. As "stream" where the row does
                            not fit, and on the CPU.
                "stream"    one read of the row under a threshold that only rises.
                "radix"     histogram passes over the row; takes no hint.
                All give the same answer. "gvr", "resident" and "stream" answer as "radix" where k
                is too large for their staging memory.

The answer is a function of the row alone: the k best scores by (score descending, NaN largest,
-0.0 equal to +0.0), the lowest index first among equals, in every batch, on every device, whatever
the hint. A row with fewer than k valid scores ends in indices -1 and values -inf.

Errors: TypeError for a wrong type or dtype, ValueError for a wrong shape, device or number. The
message names the argument, what was given and what is needed; nothing has been written then.

Cost: one launch on the current stream, no host synchronisation, no workspace that grows with
rows * n. CUDA graphs may capture a call and change data and lengths afterwards.

Method: Guess-Verify-Refine, arXiv 2604.22312.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C, _observers
from .stats import COLUMNS, Explanation, Stats

__all__ = ["TopKResult", "explain", "topk", "topk_indices"]


class TopKResult(NamedTuple):
    """values: dtype of the scores, [..., k], bitwise the selected scores. indices: int32."""

    values: Tensor
    indices: Tensor


def topk(
    scores: Tensor,
    k: int,
    *,
    hint: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
    hint_offset: int = 0,
    sorted: bool = False,
    algorithm: str = "auto",
    out: tuple[Tensor, Tensor] | None = None,
) -> TopKResult:
    """The exact k best scores of every row and where they are, as (values, indices).

    The module docstring explains the arguments. Values are differentiable with respect to scores:
    their gradient is added at the selected positions. `out=(values, indices)` writes into given
    tensors of exactly the result's shapes and dtypes, with a dense last dimension; the result then
    has no gradient.

        >>> values, indices = topk(scores, 2048, hint=previous_indices, lengths=lengths)
    """
    options = _checked(
        scores,
        k,
        hint=hint,
        lengths=lengths,
        starts=starts,
        next_n=next_n,
        compress_ratio=compress_ratio,
        hint_offset=hint_offset,
        sorted=sorted,
        algorithm=algorithm,
    )
    if out is None:
        values, indices = torch.ops.gvr.topk.default(scores, k, **options)
    else:
        if not isinstance(out, tuple | list) or len(out) != 2:
            raise TypeError(f"out: got {type_name(out)}, need a tuple (values, indices)")
        values, indices = out
        check_tensor("values", values)
        check_tensor("indices", indices)
        torch.ops.gvr.topk.out(scores, k, **options, values=values, indices=indices)
    if _observers.active:
        _observers.selected(scores, k, **options)
    return TopKResult(values, indices)


def topk_indices(
    scores: Tensor,
    k: int,
    *,
    hint: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
    hint_offset: int = 0,
    sorted: bool = False,
    algorithm: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """The int32 indices of `topk` alone, for callers that would drop the values.

    The module docstring explains the arguments. `out` is an int32 tensor [..., k].
    """
    options = _checked(
        scores,
        k,
        hint=hint,
        lengths=lengths,
        starts=starts,
        next_n=next_n,
        compress_ratio=compress_ratio,
        hint_offset=hint_offset,
        sorted=sorted,
        algorithm=algorithm,
    )
    if out is None:
        indices = torch.ops.gvr.topk_indices.default(scores, k, **options)
    else:
        check_tensor("out", out)
        torch.ops.gvr.topk_indices.out(scores, k, **options, indices=out)
        indices = out
    if _observers.active:
        _observers.selected(scores, k, **options)
    return indices


def explain(
    scores: Tensor,
    k: int,
    *,
    hint: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
    hint_offset: int = 0,
    sorted: bool = False,
    algorithm: str = "auto",
) -> Explanation:
    """`topk` with the telemetry of every row: path taken, passes, survivors, hint hits and more.

    The module docstring explains the arguments. Scores must not require grad.

        >>> print(explain(scores, 2048, hint=hint).stats[0])
    """
    options = _checked(
        scores,
        k,
        hint=hint,
        lengths=lengths,
        starts=starts,
        next_n=next_n,
        compress_ratio=compress_ratio,
        hint_offset=hint_offset,
        sorted=sorted,
        algorithm=algorithm,
    )
    values, indices, stats = torch.ops.gvr.topk_stats.default(scores, k, **options)
    if _observers.active:
        _observers.selected(scores, k, **options)
    return Explanation(values, indices, Stats(stats))


_DEFAULTS: dict[str, Any] = {
    "hint": None,
    "lengths": None,
    "starts": None,
    "next_n": 1,
    "compress_ratio": 1,
    "hint_offset": 0,
    "sorted": False,
    "algorithm": "auto",
}


def _checked(scores: Tensor, k: int, **options: Any) -> dict[str, Any]:
    """The options to pass on, once their Python types are right; the operators check values."""
    check_scores(scores)
    check_int("k", k)
    check_options(**options)
    # The dispatcher takes about a microsecond for each argument that it is given by name.
    return {name: value for name, value in options.items() if value is not _DEFAULTS[name]}


def check_scores(scores: object) -> None:
    check_tensor("scores", scores)
    if scores.is_cuda and not _C.has_cuda:  # type: ignore[attr-defined]
        raise ValueError(
            f"scores: got a tensor on {scores.device}, need one on the CPU: "  # type: ignore[attr-defined]
            "this build of gvr_topk has no CUDA kernels (python -m gvr_topk env says why)"
        )


def check_options(
    *,
    lengths: object,
    starts: object,
    next_n: object,
    compress_ratio: object,
    hint_offset: object,
    sorted: object,
    algorithm: object,
    hint: object = None,
) -> None:
    for name, tensor in (("hint", hint), ("lengths", lengths), ("starts", starts)):
        if tensor is not None:
            check_tensor(name, tensor)
    check_int("next_n", next_n)
    check_int("compress_ratio", compress_ratio)
    check_int("hint_offset", hint_offset)
    if not isinstance(sorted, bool):
        raise TypeError(f"sorted: got {type_name(sorted)}, need a bool")
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm: got {type_name(algorithm)}, need a str")


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type_name(value)}, need a torch.Tensor")


def check_int(name: str, value: object) -> None:
    if type(value) is int or isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {type_name(value)}, need an int")


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


# Shapes and dtypes for tracing. Indices are written in full by the operators and never viewed, so
# every result is a fresh dense tensor.


def _new_values(scores: Tensor, k: int) -> Tensor:
    return scores.new_empty((*scores.shape[:-1], k))


def _new_indices(scores: Tensor, k: int) -> Tensor:
    check_not_mixed(scores)
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int32)


def check_not_mixed(scores: Tensor, name: str = "scores") -> None:
    """One meta tensor among others brings a call to the fakes, which must not seem to answer it."""
    if type(scores) is Tensor and not scores.is_meta:
        raise ValueError(
            f"{name}: got a tensor on {scores.device} beside one on meta, "
            "need all tensors on one device"
        )


def _new_stats(scores: Tensor) -> Tensor:
    rows = 1
    for size in scores.shape[:-1]:
        rows = rows * size
    return scores.new_empty((rows, len(COLUMNS)), dtype=torch.int32)


@torch.library.register_fake("gvr::topk")
def _topk(scores: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor]:
    return _new_values(scores, k), _new_indices(scores, k)


@torch.library.register_fake("gvr::topk.out")
def _topk_out(scores: Tensor, k: int, **_: Any) -> None:
    check_not_mixed(scores)


@torch.library.register_fake("gvr::topk_indices")
def _topk_indices(scores: Tensor, k: int, **_: Any) -> Tensor:
    return _new_indices(scores, k)


@torch.library.register_fake("gvr::topk_indices.out")
def _topk_indices_out(scores: Tensor, k: int, **_: Any) -> None:
    check_not_mixed(scores)


@torch.library.register_fake("gvr::topk_stats")
def _topk_stats(scores: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_values(scores, k), _new_indices(scores, k), _new_stats(scores)


@torch.library.register_fake("gvr::step")
def _step(scores: Tensor, state: Tensor, layer: int, k: int, **_: Any) -> Tensor:
    return _new_indices(scores, k)


@torch.library.register_fake("gvr::step_values")
def _step_values(
    scores: Tensor, state: Tensor, layer: int, k: int, **_: Any
) -> tuple[Tensor, Tensor]:
    return _new_values(scores, k), _new_indices(scores, k)


@torch.library.register_fake("gvr::step_stats")
def _step_stats(
    scores: Tensor, state: Tensor, layer: int, k: int, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_values(scores, k), _new_indices(scores, k), _new_stats(scores)
