# SPDX-License-Identifier: Apache-2.0
"""What traces show, as pandas frames, and figures of them.

    >>> from gvr_topk import analysis, traces
    >>> frame = analysis.overlap(traces.packaged_trace(), k=(512, 2048), n=(8192, 16384))
    >>> frame.groupby(["k", "n"])["overlap"].describe()
    >>> analysis.plots.plot_overlap_by_size(frame)

A source is a trace of either flavour or any iterable of `traces.Row`. Frames have a line per row
(and n, k, ...) and name it by layer, request, draft and step, to be grouped and joined by them.
Needs pandas, and matplotlib for the figures: pip install 'gvr-topk[notebooks]'.
"""

from . import plots
from .overlap import entering, hint_offsets, hint_quantiles, overlap
from .prior import (
    distance_profile,
    mean_vectors,
    position_prior,
    rope_evidence,
    rope_profile,
    variance_shares,
)
from .rows import boundary_ties, row_statistics
from .selection import survivors

__all__ = [
    "boundary_ties",
    "distance_profile",
    "entering",
    "hint_offsets",
    "hint_quantiles",
    "mean_vectors",
    "overlap",
    "plots",
    "position_prior",
    "rope_evidence",
    "rope_profile",
    "row_statistics",
    "survivors",
    "variance_shares",
]
