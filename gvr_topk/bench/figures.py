# SPDX-License-Identifier: Apache-2.0
"""Figures of the documentation about one recorded row and one recorded decode."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

_GREY, _BLUE, _ORANGE = "0.75", "C0", "C1"


def row(scores: Tensor, k: int, survivors: int) -> Figure:
    """One row, fp32 [n]: what a threshold that admits `survivors` scores leaves to refine."""
    ranked, order = scores.sort(descending=True, stable=True)
    kth, threshold = float(ranked[k - 1]), float(ranked[survivors - 1])
    places = order.numpy(), ranked.numpy()
    parts = (
        (slice(survivors, None), _GREY, f"refused: {len(scores) - survivors:,}"),
        (slice(k, survivors), _ORANGE, f"staged, refined away: {survivors - k:,}"),
        (slice(0, k), _BLUE, f"winners: {k:,}"),
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
    for part, colour, label in parts:
        left.plot(places[0][part], places[1][part], ".", ms=1.5, color=colour)
        ranks = [1 + rank for rank in range(*part.indices(len(scores)))]
        right.fill_between(ranks, places[1][part], float(ranked[-1]), color=colour, label=label)
    for axis in (left, right):
        axis.axhline(threshold, color="black", lw=0.8, ls="--")
        axis.axhline(kth, color="black", lw=0.8)
    left.set(xlabel="position in the row (key)", ylabel="score", title="as the kernel reads it")
    right.set(xlabel="rank (1 = best, logarithmic)", xscale="log", title="as it is ranked")
    right.set_xlim(1, len(scores))
    right.text(1.2, kth + 0.1, "K-th score", va="bottom", fontsize=8, color="white")
    right.text(1.2, threshold - 0.15, "guessed threshold", va="top", fontsize=8, color="white")
    right.legend(loc="upper right", fontsize=8)
    return figure


def decode(record: dict[str, Any]) -> Figure:
    """The demo's record: how much of each answer was known, and what was staged to find it."""
    steps, k = record["steps"], record["k"]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
    known = [(s["step"], s["overlap"]) for s in steps if s["overlap"] is not None]
    top.plot(*zip(*known, strict=True), marker="o", ms=3, color=_BLUE)
    top.set(ylabel="of the answer known\nfrom the step before", ylim=(0, 1))
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    survivors = [s["survivors"] for s in steps]
    bottom.bar([s["step"] for s in steps], survivors, color=_ORANGE, label="survivors staged")
    bottom.axhline(k, color=_BLUE, label=f"K = {k}: fewer would miss a winner")
    bottom.set(xlabel="decode step", ylabel="scores", ylim=(0, 1.35 * max(survivors)))
    bottom.legend(loc="upper left", ncols=2, fontsize=8)
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
    return figure
