# SPDX-License-Identifier: Apache-2.0
"""Dense traces out of other things: factored traces, arrays of scores, files of either."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .dense import DTYPES, DenseTrace, DenseWriter
from .factored import Trace
from .files import Row, TraceError, open_trace, safetensors_file

ARRAYS = (".npy", ".pt")


def write_dense(
    rows: Iterable[Row],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: dict[str, Any] | None = None,
) -> DenseTrace:
    """Writes rows, one at a time, as a dense trace and opens it.

    dtype  what scores are stored as; None keeps theirs. Narrower than theirs rounds.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, need float32, bfloat16 or float16")
    with DenseWriter(path, metadata) as writer:
        for row in rows:
            scores = row.scores if dtype is None else row.scores.to(dtype)
            writer.append(scores, **{k: v for k, v in row._asdict().items() if k != "scores"})
    return DenseTrace.open(path)


def array_rows(scores: Tensor, k: int | None = None) -> Iterator[Row]:
    """Scores [n], [steps, n] or [steps, layers, n] as rows; column c is key c in every step.

    Scores of -inf at a row's end, as masks write absent keys, are left out.
    """
    if not 1 <= scores.dim() <= 3 or scores.numel() == 0:
        raise TraceError(
            f"scores: got shape {list(scores.shape)}, need [n], [steps, n] or [steps, layers, n]"
        )
    if scores.dtype == torch.float64:
        raise TraceError("scores: got float64, need float32, bfloat16 or float16")
    if scores.dtype not in DTYPES:
        raise TraceError(f"scores: got {scores.dtype}, need float32, bfloat16 or float16")
    steps = scores if scores.dim() == 3 else scores.reshape(-1, 1, scores.shape[-1])
    for step, layers in enumerate(steps):
        for layer, row in enumerate(layers):
            written = (row != -torch.inf).nonzero()
            if len(written):
                yield Row(row[: int(written[-1]) + 1], 0, layer, 0, 0, step, k)


def load_rows(
    path: str | Path, *, keys: int | None = None, tensor: str | None = None
) -> Iterator[Row]:
    """Rows of a trace of either flavour, of a .npy or .pt array, or of one tensor of a foreign
    safetensors file, which `tensor` names."""
    path = Path(path)
    if path.suffix in ARRAYS:
        return array_rows(_last(_load_array(path), keys))
    if tensor is None:
        trace = open_trace(path)
        return _trace_rows(trace, keys)
    with safetensors_file(path) as file:
        names = sorted(file.keys())
        if tensor not in names:
            raise TraceError(f"{path}: tensor: got {tensor!r}, need one of {', '.join(names)}")
        return array_rows(_last(file.get_tensor(tensor), keys))


def _trace_rows(trace: Trace | DenseTrace, keys: int | None) -> Iterator[Row]:
    if isinstance(trace, Trace) and keys is not None:
        trace.window(0, keys)  # says at once what a later step would
    return trace.rows(keys)


def _last(scores: Tensor, keys: int | None) -> Tensor:
    if keys is not None and not 1 <= keys <= scores.shape[-1]:
        raise ValueError(f"keys: got {keys}, need 1 <= keys <= {scores.shape[-1]}")
    return scores if keys is None else scores[..., -keys:]


def _load_array(path: Path) -> Tensor:
    """One tensor out of a .npy or .pt file, on the CPU."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    loaded: Any
    try:
        if path.suffix == ".pt":
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            loaded = torch.from_numpy(numpy.load(path, allow_pickle=False))
    # Bytes that are no pickle raise almost anything from an unpickler.
    except Exception as error:
        reason = (str(error).splitlines() or ["it ends early"])[0]
        raise TraceError(f"{path}: not a readable tensor ({reason})") from error
    if not isinstance(loaded, Tensor):
        raise TraceError(f"{path}: got a {type(loaded).__name__}, need one tensor")
    return loaded
