# SPDX-License-Identifier: Apache-2.0
"""Recorded and synthetic score rows of a sparse-attention indexer: docs/traces.md is the manual.

>>> for row in open_trace("trace.safetensors", "cuda").rows():
...     gvr_topk.topk_indices(row.scores, 2048)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .convert import array_rows, load_rows, write_dense
    from .cutting import cut, last_rows, save
    from .dense import DenseTrace, DenseWriter
    from .factored import Trace, packaged_trace
    from .files import Row, TraceError, open_trace
    from .recorder import Recorder
    from .replaying import Replayed, replay
    from .rope import rope_frequencies, rotate
    from .synth import HARD, ORDINARY, Character, SynthSpec, synthesise

# Loaded at first use: the command line imports this package, and must work where torch does not.
_HOME = {
    "Character": "synth",
    "DenseTrace": "dense",
    "DenseWriter": "dense",
    "HARD": "synth",
    "ORDINARY": "synth",
    "Recorder": "recorder",
    "Replayed": "replaying",
    "Row": "files",
    "SynthSpec": "synth",
    "Trace": "factored",
    "TraceError": "files",
    "array_rows": "convert",
    "cut": "cutting",
    "last_rows": "cutting",
    "load_rows": "convert",
    "open_trace": "files",
    "packaged_trace": "factored",
    "replay": "replaying",
    "rope_frequencies": "rope",
    "rotate": "rope",
    "save": "cutting",
    "synthesise": "synth",
    "write_dense": "convert",
}

__all__ = [
    "HARD",
    "ORDINARY",
    "Character",
    "DenseTrace",
    "DenseWriter",
    "Recorder",
    "Replayed",
    "Row",
    "SynthSpec",
    "Trace",
    "TraceError",
    "array_rows",
    "cut",
    "last_rows",
    "load_rows",
    "open_trace",
    "packaged_trace",
    "replay",
    "rope_frequencies",
    "rotate",
    "save",
    "synthesise",
    "write_dense",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
