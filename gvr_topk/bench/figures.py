# SPDX-License-Identifier: Apache-2.0
"""Figures of the documentation that are no plot of one suite: two suites, a row, a decode."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from .cells import size_label
from .plots import microseconds
from .results import Entry, Results, ResultsError

_GREY, _BLUE, _ORANGE = "0.75", "C0", "C1"


_HOSTILE_PLACE = -0.18  # left of an overlap of 0
_ALGORITHMS = {
    "gvr": ("C1", "s", "gvr: the paper's algorithm"),
    "stream": ("C2", "^", "stream"),
    "auto": (_BLUE, "o", "auto: gvr_topk as it is called"),
}


def paper_and_ours(dispatch: Results, hints: Results) -> Figure:
    """The paper's algorithm beside ours: over N (above), over the overlap of the hint (below)."""
    batches, shapes = (1, 64, 512), ((1, 64), (64, 64), (64, 1024))  # rows; rows, N / 1024
    figure, (above, below) = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    for axis, rows in zip(above, batches, strict=True):
        _over_n(axis, [e for e in dispatch.entries if e.cell.rows == rows])
        axis.set_title(f"{rows} row{'s' * (rows > 1)}, real hint")
    for axis, (rows, kib) in zip(below, shapes, strict=True):
        _over_overlap(
            axis, [e for e in hints.entries if (e.cell.rows, e.cell.n) == (rows, 1024 * kib)]
        )
        axis.set_title(f"{rows} x {size_label(1024 * kib)}, hints of every overlap")
    for axes in (above, below):
        axes[0].set_ylabel("us per call, cold L2")
    handles, labels = below[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, fontsize=9, loc="outside upper center")
    return figure


def _over_n(axis: Axes, entries: list[Entry]) -> None:
    entries = sorted(entries, key=lambda e: e.cell.n)
    sizes = [e.cell.n for e in entries]
    for name, (colour, mark, _) in _ALGORITHMS.items():
        times = [_best_time(entry, name) for entry in entries]
        axis.plot(sizes, times, mark, ls="-", ms=5, color=colour)
    axis.plot(sizes, [_time(e, "floor") for e in entries], color="0.6", lw=1)
    axis.set(xscale="log", xlabel="N, scores per row")
    axis.set_xticks(sizes, [size_label(n) for n in sizes])
    axis.minorticks_off()
    microseconds(axis)
    axis.grid(alpha=0.3)


def _time(entry: Entry, name: str) -> float:
    """nan, which leaves a gap, where there is no exact result."""
    time = entry.time(name)
    return math.nan if time is None else time


def _best_time(entry: Entry, name: str) -> float:
    """With the number of CTAs per row that suits the shape best."""
    if name == "auto":
        return _time(entry, name)
    times = [entry.time(found) for found in entry.results if found.startswith(f"{name}[")]
    return min((time for time in times if time is not None), default=math.nan)


def _over_overlap(axis: Axes, entries: list[Entry]) -> None:
    made = sorted(
        (e for e in entries if e.cell.hint.startswith("overlap:")), key=lambda e: e.overlap or 0.0
    )
    at = {e.cell.hint: e for e in entries}
    if not made or not {"real", "none"} <= at.keys():
        raise ResultsError("the hints record lacks a real hint, none, or hints of a given overlap")
    shares = [e.overlap or 0.0 for e in made]
    for name, (colour, mark, label) in _ALGORITHMS.items():
        axis.plot(
            shares, [_time(e, name) for e in made], mark, ls="-", ms=5, color=colour, label=label
        )
        if (none := at["none"].time(name)) is not None:
            axis.axhline(none, color=colour, lw=1, ls="--")
        axis.plot(
            at["real"].overlap or 0.0,
            _time(at["real"], name),
            "*",
            ms=13,
            color=colour,
            mec="black",
        )
        worst = max((e for e in entries), key=lambda e: e.time(name) or 0.0)
        axis.plot(_HOSTILE_PLACE, _time(worst, name), "x", ms=8, mew=2, color=colour)
    axis.plot(shares, [_time(e, "floor") for e in made], color="0.6", lw=1, label="floor")
    axis.plot([], [], "*", ms=11, color="0.8", mec="black", label="the step before, a real hint")
    axis.plot([], [], "--", color="0.4", label="no hint")
    axis.plot([], [], "x", ms=8, mew=2, color="0.4", label="the most hostile hint")
    axis.set(
        xlabel="overlap: share of the answer that the hint holds",
        xlim=(_HOSTILE_PLACE - 0.08, 1.05),
    )
    axis.set_xticks(
        [_HOSTILE_PLACE, 0, 0.25, 0.5, 0.75, 1], ["hostile", "0", "0.25", "0.5", "0.75", "1"]
    )
    microseconds(axis)
    axis.grid(alpha=0.3)


def row(scores: Tensor, k: int, survivors: int) -> Figure:
    """One row, fp32 [n]: what a threshold that admits `survivors` scores leaves to refine."""
    ranked, order = scores.sort(descending=True, stable=True)
    kth, threshold = float(ranked[k - 1]), float(ranked[survivors - 1])
    places = order.numpy(), ranked.numpy()
    parts = (
        (slice(survivors, None), _GREY, f"refused: {len(scores) - survivors:,}"),
        (slice(k, survivors), _ORANGE, f"above the guess, refined away: {survivors - k:,}"),
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
    """The demo's record: how much of each answer was known, and what the guess admitted."""
    steps, k = record["steps"], record["k"]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
    known = [(s["step"], s["overlap"]) for s in steps if s["overlap"] is not None]
    top.plot(*zip(*known, strict=True), marker="o", ms=3, color=_BLUE)
    top.set(ylabel="of the answer known\nfrom the step before", ylim=(0, 1))
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    survivors = [s["survivors"] for s in steps]
    bottom.bar([s["step"] for s in steps], survivors, color=_ORANGE, label="scores above the guess")
    bottom.axhline(k, color=_BLUE, label=f"K = {k}: fewer would miss a winner")
    bottom.set(xlabel="decode step", ylabel="scores", ylim=(0, 1.35 * max(survivors)))
    bottom.legend(loc="upper left", ncols=2, fontsize=8)
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
    return figure
