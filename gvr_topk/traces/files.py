# SPDX-License-Identifier: Apache-2.0
"""Reading trace files: which flavour a file is, and what is wrong with one that is neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .dense import DenseTrace
    from .factored import Trace

FACTORED = "gvr_topk.trace.factored/1"
DENSE = "gvr_topk.trace.dense/1"


class TraceError(ValueError):
    """A file that is not a readable trace, or rows that do not make one."""


class Row(NamedTuple):
    """One row of scores, as every flavour yields it."""

    scores: Tensor  # [n] fp32, bf16 or fp16, on the device that was asked for
    first_key: int  # position in the context of scores[0]; hints are positions in the context
    layer: int
    request: int
    draft: int  # place among the rows of one request and step; 0 without speculative decoding
    step: int
    k: int | None  # winners that the recorded model asked for, where that is known

    @property
    def sequence(self) -> tuple[int, int, int]:
        """Rows with the same (layer, request, draft) are decode steps of one sequence, in order."""
        return self.layer, self.request, self.draft


@contextmanager
def safetensors_file(path: Path) -> Iterator[Any]:
    """An open safetensors file; TraceError where it is absent, truncated or something else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise TraceError(f"{path}: not a complete safetensors file ({error})") from error


def trace_metadata(header: dict[str, str], path: Path) -> dict[str, Any]:
    """The JSON object in the header's entry 'trace', or the header itself where there is none."""
    if "trace" not in header:
        # Other writers put {"format": "pt"} there, which names the framework and no trace format.
        return {key: value for key, value in header.items() if key != "format"}
    try:
        metadata = json.loads(header["trace"])
    except json.JSONDecodeError as error:
        raise TraceError(f"{path}: the header entry 'trace' is not JSON ({error})") from error
    # Not every JSON value has a format; whatever is there instead is what the message shows.
    return metadata if isinstance(metadata, dict) else {"format": metadata}


def check_format(metadata: dict[str, Any], expected: str, path: Path) -> None:
    if metadata.get("format", expected) != expected:
        raise TraceError(f"{path}: got trace format {metadata['format']!r}, need {expected!r}")


def open_trace(path: str | Path, device: torch.device | str = "cpu") -> Trace | DenseTrace:
    """A trace file of either flavour; TraceError says what is wrong with any other file.

    A factored trace is read whole (9 MB for 128K keys); of a dense one only what describes the rows
    is, and `rows()` then streams the scores.
    """
    from .dense import DenseTrace
    from .factored import Trace

    path = Path(path)
    with safetensors_file(path) as file:
        names = sorted(file.keys())
        found = trace_metadata(file.metadata() or {}, path).get("format")
    if found is None:  # the first recordings had no format in their header
        found = FACTORED if "k_fp8" in names else DENSE if "lengths" in names else None
    if found == FACTORED:
        return Trace.load(path, device)
    if found == DENSE:
        return DenseTrace.open(path, device)
    if found is None:
        raise TraceError(
            f"{path}: no trace, need k_fp8, k_scale, q_fp8, w (factored) or scores, lengths "
            f"(dense); it holds {', '.join(names) or 'nothing'}"
        )
    raise TraceError(f"{path}: got trace format {found!r}, need {FACTORED!r} or {DENSE!r}")
