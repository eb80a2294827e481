# SPDX-License-Identifier: Apache-2.0
"""Recorded and synthetic score rows of a sparse-attention indexer: docs/traces.md is the manual.

>>> for row in open_trace("trace.safetensors", "cuda").rows():
...     gvr_topk.topk_indices(row.scores, 2048)
"""

from .convert import array_rows, load_rows, write_dense
from .cut import cut, last_rows, save
from .dense import DenseTrace, DenseWriter
from .factored import Trace, packaged_trace
from .files import Row, TraceError, open_trace
from .recorder import Recorder
from .replay import Replayed, replay
from .rope import rope_frequencies, rotate

__all__ = [
    "DenseTrace",
    "DenseWriter",
    "Recorder",
    "Replayed",
    "Row",
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
    "write_dense",
]
