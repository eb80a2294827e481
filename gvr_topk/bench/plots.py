# SPDX-License-Identifier: Apache-2.0
"""Plots from a record alone, as figures or files. A file says the card and the date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .cells import ADVERSARIAL_DATA, HOSTILE_HINTS, Cell, size_label
from .published import FLOOR_AND_BEST
from .results import Entry, Results

_COLD = "us per call, cold L2"
_HEADLINE_ROWS = (1, 64, 512)
_GREY = {"floor": "0.55", "floor-pdl": "0.75", "torch.topk": "0.35", "torch.sort": "0.2"}


def draw(results: Results, directory: Path, suffix: str = "png") -> list[Path]:
    """Every plot that the record has data for."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        figure = plot(results)
        if figure is None:
            continue
        path = directory / f"{results.header['suite']}-{name}.{suffix}"
        save(figure, path, results.describe())
        written.append(path)
    return written


def save(figure: Figure, path: Path, caption: str, source: str | None = None) -> None:
    """Writes a figure with a line on where it comes from.

    `source`, a digest of the data, is kept in a PNG: whoever holds other data sees that it is old.
    """
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=6, color="0.4")
    figure.savefig(path, dpi=160, metadata={"Source": source} if source else None)
    plt.close(figure)


def _colour(name: str, names: list[str]) -> str:
    return _GREY.get(name) or f"C{[n for n in names if n not in _GREY].index(name) % 10}"


def _panels(count: int, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, height * lines), squeeze=False, layout="constrained"
    )
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    return figure, flat[:count]


def _line(
    axes: Axes, entries: list[Entry], name: str, names: list[str], x: Callable[[Entry], float]
) -> None:
    points = [(x(e), e.time(name)) for e in entries]
    known = sorted((a, b) for a, b in points if b is not None)
    if known:
        # Without a hint a line often lies on the one with: the dashes let it show.
        hinted = not name.endswith("-nohint")
        axes.plot(
            *zip(*known, strict=True),
            marker="o" if hinted else "x",
            ms=4,
            ls="-" if hinted else "--",
            label=name,
            color=_colour(name, names),
        )


def _length_axis(axis: Axes, sizes: list[int]) -> None:
    """N and microseconds, both logarithmic, with the labels that people use."""
    shown = sizes if len(sizes) <= 8 else sizes[::4]
    axis.set(xscale="log", yscale="log", xlabel="N, scores per row")
    axis.set_xticks(shown, [size_label(n) for n in shown])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)


def _plain(results: Results) -> list[Entry]:
    return [
        e
        for e in results.entries
        if e.cell.hint == "real" and e.cell.dtype == "fp32" and e.cell.data in ("trace", "normal")
        and not e.cell.threads
    ]  # fmt: skip


def time_over_n(results: Results) -> Figure | None:
    entries = _plain(results)
    if not entries:
        return None
    k = max(e.cell.k for e in entries) if results.header["suite"] != "dense" else 2048
    by_rows: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.cell.k == k:
            by_rows.setdefault(entry.cell.rows, []).append(entry)
    panels = {r: es for r, es in sorted(by_rows.items()) if len({e.cell.n for e in es}) > 1}
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    names = results.contenders
    for axis, (rows, line) in zip(axes, panels.items(), strict=True):
        for name in names:
            _line(axis, line, name, names, lambda e: e.cell.n)
        _length_axis(axis, sorted({e.cell.n for e in line}))
        axis.set_title(f"{rows} x N, K {k}")
    axes[0].set_ylabel(_COLD)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def headline(results: Results) -> Figure | None:
    """A few batch sizes beside what nine public kernels reached, for a reader in a hurry."""
    if results.header["suite"] != "grid":
        return None
    k = 2048
    lines = {
        rows: [e for e in _plain(results) if (e.cell.rows, e.cell.k) == (rows, k)]
        for rows in _HEADLINE_ROWS
    }
    figure, axes = _panels(len(lines), height=3.6)
    styles = {"torch.topk": ("0.35", "s"), "auto": ("C0", "o"), "floor": ("0.6", "v")}
    titles = {
        "torch.topk": "torch.topk",
        "auto": "gvr_topk",
        "floor": "floor: reads each score once",
    }
    for axis, (rows, entries) in zip(axes, lines.items(), strict=True):
        for name, (colour, marker) in styles.items():
            points = [(e.cell.n, t) for e in entries if (t := e.time(name)) is not None]
            xs, ys = zip(*sorted(points), strict=True)
            width = 2.5 if name == "auto" else 1.2
            axis.plot(xs, ys, color=colour, marker=marker, ms=4, lw=width, label=titles[name])
        published = sorted(
            (n, best) for (r, n), (_, best) in FLOOR_AND_BEST[k].items() if r == rows
        )
        xs, ys = zip(*published, strict=True)
        label = "best of nine public kernels, earlier run"
        axis.plot(xs, ys, color="C1", marker="D", ms=4, lw=1.2, ls="--", label=label, zorder=1)
        _length_axis(axis, sorted({e.cell.n for e in entries}))
        axis.set_title(f"{rows} row{'s' * (rows > 1)}, K = {k}")
    axes[0].set_ylabel(_COLD)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return figure


def floor_multiple(results: Results) -> Figure | None:
    """Heat map of auto over the floor, one panel per K."""
    by_k: dict[int, dict[tuple[int, int], float]] = {}
    for entry in _plain(results):
        ratio = entry.ratio("auto", "floor")
        if ratio is not None:
            by_k.setdefault(entry.cell.k, {})[entry.cell.rows, entry.cell.n] = ratio
    by_k = {k: cells for k, cells in by_k.items() if len(cells) >= 4}
    if not by_k or results.header["suite"] not in ("grid", "issue", "short"):
        return None
    figure, axes = _panels(len(by_k))
    for axis, (k, cells) in zip(axes, sorted(by_k.items()), strict=True):
        rows = sorted({r for r, _ in cells})
        sizes = sorted({n for _, n in cells})
        grid = [[cells.get((r, n), float("nan")) for n in sizes] for r in rows]
        axis.imshow(grid, cmap="YlOrBr", vmin=1, vmax=5, aspect="auto")
        for (r, n), ratio in cells.items():
            x, y, colour = sizes.index(n), rows.index(r), "white" if ratio > 3.3 else "black"
            axis.text(x, y, f"{ratio:.1f}", ha="center", va="center", fontsize=9, color=colour)
        axis.set_xticks(range(len(sizes)), [size_label(n) for n in sizes])
        axis.set_yticks(range(len(rows)), [str(r) for r in rows])
        axis.set(xlabel="N", ylabel="rows", title=f"time of auto over the floor, K {k}")
    return figure


def _shapes(entries: list[Entry]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((e.cell.rows, e.cell.n) for e in entries))


def _bars(
    results: Results, entries: list[Entry], kinds: list[str], kind_of: Callable[[Cell], str]
) -> Figure | None:
    """One panel per shape; groups of bars by kind, one bar per contender."""
    shapes = _shapes(entries)
    if not shapes:
        return None
    figure, axes = _panels(len(shapes))
    names = results.contenders
    width = 0.8 / len(names)
    for axis, shape in zip(axes, shapes, strict=True):
        here = {kind_of(e.cell): e for e in entries if (e.cell.rows, e.cell.n) == shape}
        shown = [kind for kind in kinds if kind in here]
        for place, name in enumerate(names):
            times = [here[kind].time(name) or 0.0 for kind in shown]
            offsets = [i + (place - (len(names) - 1) / 2) * width for i in range(len(shown))]
            axis.bar(offsets, times, width, label=name, color=_colour(name, names))
        axis.set_xticks(range(len(shown)), shown, rotation=40, ha="right", fontsize=7)
        axis.set_title(f"{shape[0]} x {size_label(shape[1])}, K {entries[0].cell.k}")
    axes[0].set_ylabel(_COLD)
    axes[-1].legend(fontsize=7)
    return figure


def hints(results: Results) -> Figure | None:
    kinds = ["real", "none", *HOSTILE_HINTS, "badrow"]
    entries = [e for e in results.entries if e.cell.hint in kinds]
    if len({e.cell.hint for e in entries}) < 3:
        return None
    return _bars(results, entries, kinds, lambda cell: cell.hint)


def adversarial(results: Results) -> Figure | None:
    entries = [e for e in results.entries if e.cell.data in ("normal", *ADVERSARIAL_DATA)]
    if len({e.cell.data for e in entries}) < 3:
        return None
    return _bars(results, entries, ["normal", *ADVERSARIAL_DATA], lambda cell: cell.data)


def overlap(results: Results) -> Figure | None:
    """Time over the share of the answer that the hint holds."""
    entries = [e for e in results.entries if e.cell.hint.startswith("overlap:")]
    shapes = _shapes(entries)
    if not shapes:
        return None
    figure, axes = _panels(len(shapes))
    names = results.contenders
    for axis, shape in zip(axes, shapes, strict=True):
        line = [e for e in entries if (e.cell.rows, e.cell.n) == shape]
        for name in names:
            _line(axis, line, name, names, lambda e: e.overlap or 0.0)
        axis.set(xlabel="overlap of the hint", title=f"{shape[0]} x {size_label(shape[1])}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(_COLD)
    axes[-1].legend(fontsize=7)
    return figure


def time_over_k(results: Results) -> Figure | None:
    by_shape: dict[tuple[int, int], list[Entry]] = {}
    for entry in _plain(results):
        by_shape.setdefault((entry.cell.rows, entry.cell.n), []).append(entry)
    panels = {shape: es for shape, es in by_shape.items() if len({e.cell.k for e in es}) > 3}
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    names = results.contenders
    for axis, ((rows, n), line) in zip(axes, panels.items(), strict=True):
        for name in names:
            _line(axis, line, name, names, lambda e: e.cell.k)
        axis.set(xlabel="K", title=f"{rows} x {size_label(n)}")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(_COLD)
    axes[-1].legend(fontsize=7)
    return figure


PLOTS: dict[str, Callable[[Results], Figure | None]] = {
    "headline": headline,
    "time-over-n": time_over_n,
    "floor-multiple": floor_multiple,
    "hints": hints,
    "overlap": overlap,
    "adversarial": adversarial,
    "time-over-k": time_over_k,
}
