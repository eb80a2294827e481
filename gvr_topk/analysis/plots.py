# SPDX-License-Identifier: Apache-2.0
"""Figures of the frames that the analyses make, readable in print and in grey.

Every function takes a frame and, optionally, the axes to draw in, and returns the axes. What a
frame holds several of (layers, lengths, K) becomes lines with a legend, in the frame's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ._frames import SEQUENCE

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

# Told apart by marker and dash as well as by colour.
_STYLES = [
    {"color": "#1b6ca8", "marker": "o", "linestyle": "-"},
    {"color": "#d1495b", "marker": "s", "linestyle": "--"},
    {"color": "#3a7d44", "marker": "^", "linestyle": "-."},
    {"color": "#8f5db7", "marker": "D", "linestyle": ":"},
    {"color": "#b8860b", "marker": "v", "linestyle": "-"},
    {"color": "#444444", "marker": "x", "linestyle": "--"},
]
_GREY = "0.45"


def size_label(count: float) -> str:
    """8192 as 8K, 130944 as 128K, 600 as 600: as the field names row lengths."""
    if count < 1024:
        return f"{count:g}"
    thousands = count / 1024
    return f"{thousands:.0f}K" if thousands < 1024 else f"{thousands / 1024:.3g}M"


def plot_overlap_by_step(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`overlap` with lag 1: one line per layer, n and k that the frame has several of."""
    axes = _axes(ax)
    lag = int(frame["lag"].min())
    for label, part, style in _lines(frame[frame["lag"] == lag], ("layer", "n", "k")):
        axes.plot(part["step"], part["overlap"], ms=3, lw=1.2, label=label, **style)
    _fraction(axes)
    axes.set(xlabel="decode step", ylabel=f"overlap with {lag} step{'s' if lag > 1 else ''} before")
    return _finish(axes)


def plot_overlap_by_lag(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`overlap` over the lag in steps: means, 10th and 90th percentiles."""
    axes = _axes(ax)
    for label, part, style in _lines(frame, ("layer", "n", "k")):
        group = part.groupby("lag")["overlap"]
        mean, low, high = group.mean(), group.quantile(0.1), group.quantile(0.9)
        axes.plot(mean.index, mean, ms=4, label=label, **style)
        axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    _fraction(axes)
    axes.set(xlabel="lag (decode steps)", ylabel="overlap of the Top-K")
    return _finish(axes)


def plot_overlap_by_size(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`overlap` with the least lag over n, a line for each k (and layer): mean, 10th to 90th."""
    axes = _axes(ax)
    near = frame[frame["lag"] == frame["lag"].min()]
    for label, part, style in _lines(near, ("layer", "k"), always="k"):
        group = part.groupby("n")["overlap"]
        mean, low, high = group.mean(), group.quantile(0.1), group.quantile(0.9)
        axes.plot(mean.index, mean, ms=4, label=label, **style)
        axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.15, lw=0)
    _sizes(axes, near["n"])
    _fraction(axes)
    axes.set(ylabel="overlap with the step before")
    return _finish(axes)


def plot_hint_quantiles(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`hint_quantiles`: rank of the hinted score over its quantile, and K as the goal."""
    axes = _axes(ax)
    for label, part, style in _lines(frame, ("layer", "n", "k")):
        group = part.groupby("quantile")["rank"]
        median, low, high = group.median(), group.quantile(0.1), group.quantile(0.9)
        axes.plot(median.index, median, ms=4, label=label, **style)
        axes.fill_between(median.index, low, high, color=style["color"], alpha=0.15, lw=0)
    for size in frame["k"].unique():
        axes.axhline(size, color=_GREY, lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            f"K = {size}",
            (0.01, size),
            xycoords=("axes fraction", "data"),
            va="bottom",
            fontsize=8,
            color=_GREY,
        )
    axes.set(
        yscale="log",
        xlabel="quantile of the hinted scores, counted from the best",
        ylabel="rank in the row (scores at least as good)",
    )
    return _finish(axes)


def plot_survivors(
    frame: pandas.DataFrame, column: str = "survivors", ax: Axes | None = None
) -> Axes:
    """`survivors` (or its column passes, ...) by algorithm and n: boxes, whiskers 5 to 95 %."""
    axes = _axes(ax)
    algorithms = list(frame["algorithm"].unique())
    if not _several(frame, "n"):
        frame = frame.assign(n=frame["n"].max())
    sizes = sorted(frame["n"].unique())
    width = 0.8 / len(algorithms)
    for number, algorithm in enumerate(algorithms):
        style = _STYLES[number % len(_STYLES)]
        part = frame[frame["algorithm"] == algorithm]
        boxes = axes.boxplot(
            [part[part["n"] == n][column] for n in sizes],
            positions=[i + (number - (len(algorithms) - 1) / 2) * width for i in range(len(sizes))],
            widths=0.85 * width,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
            boxprops={"facecolor": style["color"], "alpha": 0.5},
            manage_ticks=False,
        )
        boxes["boxes"][0].set_label(algorithm)
    axes.set_xticks(range(len(sizes)), [size_label(n) for n in sizes])
    sizes_k = frame["k"].unique()
    if column == "survivors" and len(sizes_k) == 1:
        axes.axhline(sizes_k[0], color=_GREY, lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            f"K = {sizes_k[0]}", (0.99, sizes_k[0]), xycoords=("axes fraction", "data"),
            va="top", ha="right", fontsize=8, color=_GREY,
        )  # fmt: skip
    names = {"survivors": "scores staged per row", "passes": "reads of the row"}
    axes.set(xlabel="N (scores)", ylabel=names.get(column, column.replace("_", " ")))
    _from_zero(axes)
    return _finish(axes)


def plot_entering(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`entering`: means as stacked bars, one bar per n (and k)."""
    axes = _axes(ax)
    bars = [(label, part) for label, part, _ in _lines(frame, ("layer", "n", "k"), always="n")]
    bottom = [0.0] * len(bars)
    kinds = (("recent", "", "0.25"), ("neighbours", "//", "0.55"), ("elsewhere", "..", "0.85"))
    for kind, hatch, grey in kinds:
        heights = [part[kind].mean() for _, part in bars]
        axes.bar(
            range(len(bars)), heights, 0.6, bottom=bottom, label=kind, color=grey, hatch=hatch,
            edgecolor="white",
        )  # fmt: skip
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(bars)), [label for label, _ in bars])
    axes.set(ylabel="entering keys, share of K")
    _from_zero(axes)
    return _finish(axes)


def plot_prior(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """`position_prior`: mean share of the Top-K by predictor, whiskers 10th to 90th percentile."""
    axes = _axes(ax)
    names = {
        "chance": "chance",
        "recent": "most recent K",
        "rope": "RoPE theory",
        "profile": "mean by distance",
        "previous": "previous step",
    }
    shown = [name for name in names if name in set(frame["predictor"])]
    groups = [(label, part) for label, part, _ in _lines(frame, ("layer", "n", "k"))]
    width = 0.8 / len(groups)
    for number, (label, part) in enumerate(groups):
        values = [part[part["predictor"] == name]["explained"] for name in shown]
        mean = [v.mean() for v in values]
        low = [m - v.quantile(0.1) for m, v in zip(mean, values, strict=True)]
        high = [v.quantile(0.9) - m for m, v in zip(mean, values, strict=True)]
        places = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(shown))]
        style = _STYLES[number % len(_STYLES)]
        axes.bar(
            places, mean, 0.9 * width, yerr=[[max(x, 0) for x in low], [max(x, 0) for x in high]],
            label=label, color=style["color"], alpha=0.75, capsize=2, error_kw={"lw": 0.8},
        )  # fmt: skip
    axes.set_xticks(range(len(shown)), [names[name] for name in shown], rotation=15)
    _fraction(axes)
    axes.set(ylabel="share of the Top-K found")
    return _finish(axes)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "gvr_topk.analysis plots need matplotlib: pip install 'gvr-topk[notebooks]'"
        ) from error
    return plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]


def _lines(
    frame: pandas.DataFrame, columns: tuple[str, ...], always: str | None = None
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(label, part, style) for each combination of those columns that the frame has several of."""
    split = [name for name in columns if _several(frame, name) or name == always]
    if not split:
        yield "", frame, _STYLES[0]
        return
    # With a list, pandas gives a tuple for every group, of one column too.
    for (values, part), style in zip(
        frame.groupby(split, sort=False), cycle(_STYLES), strict=False
    ):
        named = zip(split, values, strict=True)
        yield ", ".join(_name(column, value) for column, value in named), part, style


def _several(frame: pandas.DataFrame, column: str) -> bool:
    """Whether a frame compares several of something. A context that grows is one length."""
    if column == "n":
        return bool((frame.groupby(list(SEQUENCE))["n"].nunique() > 1).any())
    return bool(frame[column].nunique() > 1)


def _from_zero(axes: Axes) -> None:
    """The value axis begins at 0, also after more is drawn in axes that share it."""
    axes.axhline(0, lw=0).sticky_edges.y.append(0)


def _name(column: str, value: Any) -> str:
    if column == "n":
        return f"N = {size_label(value)}"
    if column == "k":
        return f"K = {value}"
    return f"{column} {value}"


def _fraction(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter("{x:.1f}")


def _sizes(axes: Axes, sizes: Any) -> None:
    shown = sorted(set(sizes))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [size_label(n) for n in shown])
    axes.minorticks_off()
    axes.set_xlabel("N (scores)")


def _finish(axes: Axes) -> Axes:
    axes.grid(alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if any(label for label in axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=8, frameon=False)
    return axes
