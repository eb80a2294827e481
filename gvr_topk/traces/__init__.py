# SPDX-License-Identifier: Apache-2.0
"""Recorded score rows of a sparse-attention indexer, for demos, tests and benchmarks."""

from .cut import cut, save
from .factored import Trace, TraceError, packaged_trace

__all__ = ["Trace", "TraceError", "cut", "packaged_trace", "save"]
