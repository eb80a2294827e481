# SPDX-License-Identifier: Apache-2.0
"""Smaller traces out of larger ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from .dense import DenseTrace
from .factored import FORMAT, Trace
from .files import Row

_DESCRIPTION = (
    "Index keys and queries of one decoder layer, recorded at consecutive decode steps. "
    "Step s of S sees keys 0 .. T - S + s; "
    "score[t] = k_scale[t] * sum_h w[s,h] * relu(<q_fp8[s,h], k_fp8[t]>), float8_e4m3fn bytes."
)


def cut(trace: Trace, keys: int, steps: int) -> Trace:
    """The last `steps` steps over the last `keys` keys, as a trace of its own.

    Every step keeps its scores bit for bit: column c of the cut is column
    c + metadata["first_key"] of the original.
    """
    if not 1 <= steps <= trace.steps:
        raise ValueError(f"steps: got {steps}, need 1 <= steps <= {trace.steps}")
    if not steps <= keys <= trace.keys:
        raise ValueError(f"keys: got {keys}, need steps ({steps}) <= keys <= {trace.keys}")
    first_key, first_step = trace.keys - keys, trace.steps - steps
    tensors = {
        "k_fp8": trace.tensors["k_fp8"][first_key:].contiguous(),
        "k_scale": trace.tensors["k_scale"][first_key:].contiguous(),
        "q_fp8": trace.tensors["q_fp8"][first_step:].contiguous(),
        "w": trace.tensors["w"][first_step:].contiguous(),
    }
    kept = {key: value for key, value in trace.metadata.items() if key not in ("context", "steps")}
    metadata = {
        "description": _DESCRIPTION,
        "source": trace.name,
        **kept,
        "format": FORMAT,
        "first_key": int(trace.metadata.get("first_key", 0)) + first_key,
        "first_step": int(trace.metadata.get("first_step", 0)) + first_step,
    }
    return Trace(tensors, metadata, f"{trace.name}_cut")


def last_rows(trace: DenseTrace, keys: int | None, steps: int | None) -> Iterator[Row]:
    """The last `steps` steps of every sequence of a dense trace, each the last `keys` scores."""
    for name, value in (("keys", keys), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, need at least 1")
    last: dict[tuple[int, int], int] = {}
    columns = (trace.columns[name].tolist() for name in ("layer", "request", "step"))
    for layer, request, step in zip(*columns, strict=True):
        last[layer, request] = max(step, last.get((layer, request), 0))
    for row in trace.rows(keys):
        if steps is None or row.step > last[row.layer, row.request] - steps:
            yield row


def save(trace: Trace, path: str | Path) -> str:
    """Writes a trace and returns the SHA-256 of the file, which is the same for the same trace."""
    from safetensors.torch import save as serialise

    # One metadata entry: safetensors writes several in an arbitrary order.
    entry = json.dumps({**trace.metadata, "format": FORMAT}, sort_keys=True)
    tensors = {key: tensor.cpu() for key, tensor in trace.tensors.items()}
    data = serialise(tensors, metadata={"trace": entry})
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()
