# SPDX-License-Identifier: Apache-2.0
"""The read-once floor kernel (benchmarks/csrc), built on first use and called by ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "csrc" / "floor.cu"
MAX_PARTS = 16
# (threads, vectors in flight per thread), as instantiated in floor.cu.
SHAPES = ((256, 4), (512, 2), (512, 4), (512, 8), (1024, 4), (1024, 8))
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_CTAS_ENOUGH = 2048  # far more than fit on any device at once
_LEAST_VECTORS = 128  # per part: below it a part is launch and nothing else


class FloorError(RuntimeError):
    """The floor kernel refused a launch."""


def unavailable() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if SOURCE.is_file() else f"needs a checkout ({SOURCE} is missing)"


@functools.cache
def _library() -> ctypes.CDLL:
    from torch.utils.cpp_extension import load

    # gcc links the shared libstdc++ that torch itself uses.
    os.environ.setdefault("CC", "gcc")
    os.environ.setdefault("CXX", "g++")
    path = load(
        name="gvr_bench_floor",
        sources=[str(SOURCE)],
        extra_cuda_cflags=["-O3", "-std=c++20", "-lineinfo"],
        is_python_module=False,
    )
    return ctypes.CDLL(str(path))


def variants(rows: int, n: int, itemsize: int) -> list[dict[str, int]]:
    """Launch shapes worth trying for a cell; the benchmark keeps the fastest."""
    vectors = n * itemsize // 16
    parts = [
        p
        for p in (1, 2, 4, 8, MAX_PARTS)
        if p == 1 or (rows * p <= _CTAS_ENOUGH and vectors // p >= _LEAST_VECTORS)
    ]
    # With few rows only the widest splits can win.
    parts = parts[-2:] if rows <= 8 else parts
    return [
        {"parts": p, "threads": t, "unroll": u}
        for p, (t, u) in product(parts, SHAPES)
        if t * u // 2 <= max(512, vectors // p)
    ]


def prepare(
    scores: Tensor, k: int, *, parts: int, threads: int, unroll: int, dependent: bool
) -> Callable[[], Tensor]:
    """One call of the floor kernel; int32 [rows, max(k, parts)].

    A part leaves its maximum in its share of the integers. Fewer integers than parts would leave
    some parts without a trace, and nobody could tell whether they had read theirs.
    """
    rows, n = scores.shape
    k = max(k, parts)
    indices = torch.empty((rows, k), dtype=torch.int32, device=scores.device)
    launch = _library().gvr_bench_floor
    arguments = (
        ctypes.c_void_p(scores.data_ptr()),
        ctypes.c_int(_DTYPE_CODES[scores.dtype]),
        ctypes.c_int64(rows),
        ctypes.c_int64(n),
        ctypes.c_int32(k),
        ctypes.c_void_p(indices.data_ptr()),
        ctypes.c_int32(parts),
        ctypes.c_int(threads),
        ctypes.c_int(unroll),
        ctypes.c_int(dependent),
    )

    def call() -> Tensor:
        stream = torch.cuda.current_stream(scores.device).cuda_stream
        error = launch(*arguments, ctypes.c_void_p(stream))
        if error != 0:
            raise FloorError(f"cudaError_t {error} for {rows} x {n}, {parts=}, {threads=}")
        return indices

    return call
