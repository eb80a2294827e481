# SPDX-License-Identifier: Apache-2.0
"""The factored trace format: index keys and queries, from which any row of scores is rebuilt.

A safetensors file with T keys, S steps, H index heads and width D:

    k_fp8    uint8 [T, D]     index keys, bytes of float8_e4m3fn
    k_scale  fp32  [T]        scale per key
    q_fp8    uint8 [S, H, D]  index queries of the last S positions, bytes of float8_e4m3fn
    w        fp32  [S, H]     head weights with the query scales folded in

Step s sees keys 0 .. T - S + s (inclusive) and
score[t] = k_scale[t] * sum_h w[s, h] * relu(<q[s, h], k[t]>).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import FACTORED, Row, TraceError, check_format, safetensors_file, trace_metadata

FORMAT = FACTORED
PACKAGED = "trace_A_layer6_cut.safetensors"

_LAYOUT = {
    "k_fp8": (torch.uint8, ("keys", "width")),
    "k_scale": (torch.float32, ("keys",)),
    "q_fp8": (torch.uint8, ("steps", "heads", "width")),
    "w": (torch.float32, ("steps", "heads")),
}
# Keys rebuilt at a time: 16 MB of temporaries at width 64, whatever the context.
_CHUNK = 16384


class Trace:
    """One recorded document and layer."""

    def __init__(
        self, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        sizes = _check_layout(tensors, name or "trace")
        self.tensors = {key: tensors[key] for key in _LAYOUT}
        self.metadata = metadata or {}
        self.name = name
        self.keys, self.steps = sizes["keys"], sizes["steps"]
        self.heads, self.width = sizes["heads"], sizes["width"]
        self._byte_values = _float8_values().to(self.device)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Trace:
        """Reads and validates a file; TraceError says what is wrong with it."""
        tensors, metadata = _read(Path(path))
        return cls(tensors, metadata, Path(path).stem).to(device)

    @property
    def device(self) -> torch.device:
        return self.tensors["k_fp8"].device

    def to(self, device: torch.device | str) -> Trace:
        moved = {key: tensor.to(device) for key, tensor in self.tensors.items()}
        return Trace(moved, self.metadata, self.name)

    def visible(self, step: int) -> int:
        """Number of keys that a step sees; the keys are 0 .. visible - 1."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step: got {step}, need 0 <= step < {self.steps}")
        return self.keys - self.steps + step + 1

    def window(self, step: int, keys: int | None = None) -> range:
        """Absolute positions of the last `keys` visible keys of a step (all of them by default).

        Column c of `scores(step, keys)` is key window.start + c, so a hint from another step moves
        by hint_offset = its window.start - this window.start.
        """
        visible = self.visible(step)
        if keys is None:
            keys = visible
        if not 1 <= keys <= visible:
            raise ValueError(f"keys: got {keys}, need 1 <= keys <= {visible}, visible at {step=}")
        return range(visible - keys, visible)

    def scores(self, step: int, keys: int | None = None) -> Tensor:
        """fp32 scores [keys] of a step, on the trace's device.

        The same bits on every device, in every run and for every context: a float8 product is a
        multiple of 2^-18 below 2^18, so float64 dot products are exact in any order, and all that
        rounds is elementwise fp32 in the fixed order of the heads.
        """
        window = self.window(step, keys)
        query = self._decode(self.tensors["q_fp8"][step])
        weights = self.tensors["w"][step]
        scores = torch.empty(len(window), dtype=torch.float32, device=self.device)
        for begin in range(0, len(window), _CHUNK):
            out = scores[begin : begin + _CHUNK]
            part = slice(window.start + begin, window.start + begin + len(out))
            dots = (query @ self._decode(self.tensors["k_fp8"][part]).T).float().relu_()
            out.zero_()
            for head in range(self.heads):
                out += dots[head] * weights[head]
            out *= self.tensors["k_scale"][part]
        return scores

    def rows(self, keys: int | None = None, steps: range | None = None) -> Iterator[Row]:
        """Every step's row over its last `keys` visible keys (all of them by default), in order."""
        layer = self.layer
        for step in range(self.steps) if steps is None else steps:
            window = self.window(step, keys)
            yield Row(self.scores(step, keys), window.start, layer, 0, 0, step, None)

    @property
    def layer(self) -> int:
        """The layer that the metadata names, else 0."""
        found = str(self.metadata.get("layer", "0"))
        return int(found) if found.isdecimal() else 0

    def __repr__(self) -> str:
        return (
            f"Trace({self.name!r}, keys={self.keys}, steps={self.steps}, heads={self.heads}, "
            f"width={self.width}, device='{self.device}')"
        )

    def _decode(self, data: Tensor) -> Tensor:
        return self._byte_values.index_select(0, data.reshape(-1).int()).view(data.shape)


def packaged_trace(device: torch.device | str = "cpu") -> Trace:
    """The trace that comes with the package: 32,768 keys and 64 steps of an ordinary layer."""
    return Trace.load(Path(__file__).parents[1] / "data" / PACKAGED, device)


def _float8_values() -> Tensor:
    """float64 value of every float8_e4m3fn byte; a table, since not every device has the type."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors_file(path) as file:
        found = sorted(file.keys())
        missing = [key for key in _LAYOUT if key not in found]
        if missing:
            raise TraceError(
                f"{path}: lacks {', '.join(missing)}, need a factored trace "
                f"({', '.join(_LAYOUT)}); it holds {', '.join(found) or 'nothing'}"
            )
        tensors = {key: file.get_tensor(key) for key in _LAYOUT}
        metadata = trace_metadata(file.metadata() or {}, path)
    check_format(metadata, FORMAT, path)
    return tensors, metadata


def _check_layout(tensors: dict[str, Tensor], name: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for key, (dtype, dims) in _LAYOUT.items():
        tensor = tensors[key]
        if tensor.dtype != dtype:
            raise TraceError(f"{name}: {key}: got dtype {tensor.dtype}, need {dtype}")
        if tensor.dim() != len(dims):
            raise TraceError(
                f"{name}: {key}: got shape {list(tensor.shape)}, need [{', '.join(dims)}]"
            )
        for dim, size in zip(dims, tensor.shape, strict=True):
            if sizes.setdefault(dim, size) != size or size == 0:
                need = f"{sizes[dim]} as elsewhere" if size else "at least 1"
                raise TraceError(f"{name}: {key}: got {size} {dim}, need {need}")
    if sizes["steps"] > sizes["keys"]:
        raise TraceError(
            f"{name}: got {sizes['steps']} steps and {sizes['keys']} keys, "
            "need at least as many keys as steps"
        )
    return sizes
