# SPDX-License-Identifier: Apache-2.0
"""The dense trace format: rows of scores as they were, back to back.

A safetensors file with R rows:

    scores     fp32, bf16 or fp16 [sum of lengths]   all rows, one after the other
    lengths    int64 [R]   scores in each row, at least 1
    first_key  int64 [R]   position in the context of a row's first score
    layer      int32 [R]   which selection of the forward pass
    request    int32 [R]   which sequence of the batch
    draft      int32 [R]   place among the rows of one request and step (speculative decoding)
    step       int32 [R]   decode step of the sequence (layer, request, draft); ascending in it
    k          int32 [R]   winners that were asked for; 0 where that is not known

Only scores and lengths are required. Without the others all rows are consecutive steps of layer 0,
request 0, draft 0, and start at key 0.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy
import torch
from torch import Tensor

from .files import DENSE, Row, TraceError, check_format, safetensors_file, trace_metadata

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COLUMNS = {
    "first_key": torch.int64,
    "layer": torch.int32,
    "request": torch.int32,
    "draft": torch.int32,
    "step": torch.int32,
    "k": torch.int32,
}
_WIDEN_BYTES = 1 << 24


class DenseTrace:
    """Recorded rows of scores. The scores stay in the file until `row` or `rows` reads them."""

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        columns: dict[str, Tensor],
        metadata: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.path, self.dtype, self.metadata, self.device = path, dtype, metadata, device
        self.name = path.stem
        self.columns = columns  # lengths and the columns of the format, on the CPU
        self._begin = columns["lengths"].cumsum(0) - columns["lengths"]

    @classmethod
    def open(cls, path: str | Path, device: torch.device | str = "cpu") -> DenseTrace:
        """Reads and checks what describes the rows; TraceError says what is wrong with a file."""
        path = Path(path)
        with safetensors_file(path) as file:
            metadata = trace_metadata(file.metadata() or {}, path)
            check_format(metadata, DENSE, path)
            found = sorted(file.keys())
            missing = [name for name in ("scores", "lengths") if name not in found]
            if missing:
                raise TraceError(
                    f"{path}: lacks {', '.join(missing)}, need a dense trace (scores, lengths); "
                    f"it holds {', '.join(found) or 'nothing'}"
                )
            part = file.get_slice("scores")
            shape, dtype = part.get_shape(), _dtype(part.get_dtype(), path)
            columns = {
                name: file.get_tensor(name) for name in ("lengths", *_COLUMNS) if name in found
            }
        _check_columns(columns, list(shape), path)
        return cls(path, dtype, _with_defaults(columns), metadata, torch.device(device))

    def to(self, device: torch.device | str) -> DenseTrace:
        """The same file, read to another device."""
        return DenseTrace(self.path, self.dtype, self.columns, self.metadata, torch.device(device))

    def __len__(self) -> int:
        return len(self._begin)

    @property
    def layers(self) -> list[int]:
        return self.columns["layer"].unique().tolist()

    @property
    def requests(self) -> list[int]:
        return self.columns["request"].unique().tolist()

    def row(self, number: int) -> Row:
        """One row, 0 <= number < len(trace), in the order of the file."""
        if not 0 <= number < len(self):
            raise IndexError(f"number: got {number}, need 0 <= number < {len(self)}")
        with safetensors_file(self.path) as file:
            return self._row(file.get_slice("scores"), number)

    def rows(
        self,
        keys: int | None = None,
        *,
        layers: list[int] | None = None,
        requests: list[int] | None = None,
    ) -> Iterator[Row]:
        """Rows in the order of the file, one in memory at a time.

        keys      only the last `keys` scores of each row (rows that are shorter stay whole).
        layers    only these layers; requests: only these requests.
        """
        if keys is not None and keys < 1:
            raise ValueError(f"keys: got {keys}, need at least 1")
        wanted = torch.ones(len(self), dtype=torch.bool)
        for name, chosen in (("layer", layers), ("request", requests)):
            if chosen is not None:
                wanted &= torch.isin(self.columns[name], torch.tensor(chosen, dtype=torch.int32))
        with safetensors_file(self.path) as file:
            scores = file.get_slice("scores")
            for number in wanted.nonzero()[:, 0].tolist():
                yield self._row(scores, number, keys)

    def _row(self, scores: Any, number: int, keys: int | None = None) -> Row:
        about = {name: int(self.columns[name][number]) for name in _COLUMNS}
        length = int(self.columns["lengths"][number])
        kept = length if keys is None else min(keys, length)
        end = int(self._begin[number]) + length
        return Row(
            scores=scores[end - kept : end].to(self.device),
            first_key=about["first_key"] + length - kept,
            layer=about["layer"],
            request=about["request"],
            draft=about["draft"],
            step=about["step"],
            k=about["k"] or None,
        )

    def __repr__(self) -> str:
        return (
            f"DenseTrace({self.name!r}, rows={len(self)}, layers={len(self.layers)}, "
            f"requests={len(self.requests)}, dtype={self.dtype}, device='{self.device}')"
        )


class DenseWriter:
    """Writes a dense trace row by row; memory holds one row and 56 bytes for every other.

    Rows go to a temporary file beside `path`, which becomes the trace when the writer is closed, so
    `path` is never half a trace. The first row decides the dtype; a row of another one makes the
    whole trace fp32, which holds every bf16 and fp16 score exactly.
    """

    def __init__(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.metadata = {**(metadata or {}), "format": DENSE}
        json.dumps(self.metadata)  # what is no JSON is refused now and not after the recording
        self.dtype: torch.dtype | None = None
        self.nbytes = 0  # of scores
        self._columns = {name: array("q") for name in ("lengths", *_COLUMNS)}
        self._spool = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed by close)
            dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part"
        )

    def __len__(self) -> int:
        return len(self._columns["lengths"])

    def append(
        self,
        scores: Tensor,
        *,
        first_key: int = 0,
        layer: int = 0,
        request: int = 0,
        draft: int = 0,
        step: int = 0,
        k: int | None = None,
    ) -> None:
        """Adds one row: 1-D scores, at least one, on any device."""
        if scores.dim() != 1 or scores.numel() == 0 or scores.dtype not in DTYPES:
            raise TraceError(
                f"scores: got {list(scores.shape)} {scores.dtype}, need [n], n >= 1, in "
                "float32, bfloat16 or float16"
            )
        row = scores.detach().cpu().contiguous()
        if self.dtype is None:
            self.dtype = row.dtype
        elif row.dtype != self.dtype:
            self._widen()
            row = row.float()
        self.nbytes += self._spool.write(row.view(torch.uint8).numpy().data)
        values = (len(row), first_key, layer, request, draft, step, k or 0)
        for name, value in zip(self._columns, values, strict=True):
            self._columns[name].append(value)

    def _widen(self) -> None:
        """The rows so far in fp32."""
        if self.dtype in (None, torch.float32):
            return
        wide = tempfile.NamedTemporaryFile(  # noqa: SIM115 (takes the place of the spool)
            dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part"
        )
        self._spool.seek(0)
        self.nbytes = 0
        while part := self._spool.read(_WIDEN_BYTES):
            scores = torch.frombuffer(bytearray(part), dtype=self.dtype).float()
            self.nbytes += wide.write(scores.view(torch.uint8).numpy().data)
        self._spool.close()
        self._spool, self.dtype = wide, torch.float32

    def close(self) -> None:
        """Writes `path`; a writer without rows raises TraceError and writes nothing."""
        if self._spool.closed:
            return
        try:
            if not len(self):
                raise TraceError(f"{self.path}: no rows to write")
            self._spool.flush()
            self._save()
        finally:
            self._spool.close()

    def discard(self) -> None:
        """Forgets the rows and writes nothing."""
        self._spool.close()

    def _save(self) -> None:
        from safetensors.torch import save_file

        assert self.dtype is not None
        count = self.nbytes // self.dtype.itemsize
        tensors = {
            # A mapped file: its pages are read as they are written.
            "scores": torch.from_file(self._spool.name, size=count, dtype=self.dtype),
        }
        for name, values in self._columns.items():
            column = torch.from_numpy(numpy.array(values))
            tensors[name] = column.to(_COLUMNS.get(name, torch.int64))
        entry = json.dumps(self.metadata, sort_keys=True)
        unfinished = Path(f"{self._spool.name}.tensors")
        try:
            save_file(tensors, unfinished, metadata={"trace": entry})
            os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def __enter__(self) -> DenseWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _dtype(name: str, path: Path) -> torch.dtype:
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if name not in known:
        raise TraceError(f"{path}: scores: got dtype {name}, need one of {', '.join(known)}")
    return known[name]


def _check_columns(columns: dict[str, Tensor], scores_shape: list[int], path: Path) -> None:
    if len(scores_shape) != 1:
        raise TraceError(f"{path}: scores: got shape {scores_shape}, need [sum of lengths]")
    lengths = columns["lengths"]
    if lengths.dim() != 1 or len(lengths) == 0:
        raise TraceError(f"{path}: lengths: got shape {list(lengths.shape)}, need [rows], rows > 0")
    for name, tensor in columns.items():
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TraceError(f"{path}: {name}: got dtype {tensor.dtype}, need int32 or int64")
        if tensor.shape != lengths.shape:
            raise TraceError(
                f"{path}: {name}: got shape {list(tensor.shape)}, need {list(lengths.shape)} as "
                "lengths has"
            )
        least = 1 if name == "lengths" else 0
        if int(tensor.min()) < least:
            raise TraceError(f"{path}: {name}: got {int(tensor.min())}, need at least {least}")
    # No length can exceed the file, so the sum of those that pass cannot overflow.
    if int(lengths.max()) > scores_shape[0] or int(lengths.sum()) != scores_shape[0]:
        raise TraceError(
            f"{path}: scores: got {scores_shape[0]} of them, need {int(lengths.sum())}, the sum of "
            "lengths"
        )


def _with_defaults(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = len(columns["lengths"])
    defaults = {"step": torch.arange(rows)}
    return {
        "lengths": columns["lengths"].long(),
        **{
            name: columns.get(name, defaults.get(name, torch.zeros(rows))).to(dtype)
            for name, dtype in _COLUMNS.items()
        },
    }
