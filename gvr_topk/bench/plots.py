# SPDX-License-Identifier: Apache-2.0
"""Plots from a record alone, as figures or files. A file says the card and the date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .cells import ADVERSARIAL_DATA, DTYPES, HOSTILE_HINTS, KIB, Cell, size_label
from .dispatch import decisions
from .published import FLOOR_AND_BEST
from .results import Entry, Results

_COLD = "us per call, cold L2"
_HEADLINE_ROWS = (1, 64, 512)
_MARKS = "oDs^vP*X"
_HOSTILE = {
    "bottom": "worst K",
    "zeros": "all zeros",
    "random": "random",
    "other": "another row's",
    "badrow": "one bad row",
}
# One contender has one colour in every plot.
_COLOURS = {
    "floor": "0.55",
    "floor-pdl": "0.75",
    "torch.topk": "0.35",
    "torch.sort": "0.2",
    "auto": "C0",
    "auto-nohint": "C9",
    "gvr": "C1",
    "stream": "C2",
    "stream-nohint": "C8",
    "radix": "C3",
    "flashinfer": "C4",
    "resident": "C5",
}


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
    unknown = [n for n in names if n not in _COLOURS]
    return _COLOURS.get(name) or f"C{6 + unknown.index(name) % 2}"


def _panels(count: int, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, height * lines), squeeze=False, layout="constrained"
    )
    for line in axes:
        line[0].set_ylabel(_COLD)
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
    microseconds(axis)
    axis.grid(alpha=0.3)


def microseconds(axis: Axes) -> None:
    """A logarithmic axis with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


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
    """(rows, N), short rows first."""
    return sorted({(e.cell.rows, e.cell.n) for e in entries}, key=lambda shape: shape[::-1])


def _kinds(
    results: Results,
    entries: list[Entry],
    kinds: Mapping[str, str],
    kind_of: Callable[[Cell], str],
    limit: tuple[str, float, str],
) -> Figure | None:
    """One panel per shape: time by kind of input, one mark per contender, logarithmic.

    `limit`: a kind, how often its time of auto may be taken, and the name of that.
    """
    shapes = _shapes(entries)
    if not shapes:
        return None
    figure, axes = _panels(len(shapes), height=3.6)
    names = results.contenders
    for axis, shape in zip(axes, shapes, strict=True):
        here = {kind_of(e.cell): e for e in entries if (e.cell.rows, e.cell.n) == shape}
        shown = [kind for kind in kinds if kind in here]
        for place, name in enumerate(names):
            times = [(i, here[kind].time(name)) for i, kind in enumerate(shown)]
            spread = 0.1 * (place - (len(names) - 1) / 2)
            known = [(i + spread, time) for i, time in times if time is not None]
            if known:
                axis.plot(
                    *zip(*known, strict=True),
                    _MARKS[place % len(_MARKS)],
                    ms=5,
                    label=name,
                    color=_colour(name, names),
                )
        base = here[limit[0]].time("auto") if limit[0] in here else None
        if base is not None:
            axis.axhline(limit[1] * base, color="C3", lw=0.8, ls="--", label=limit[2])
        microseconds(axis)
        axis.set_xticks(range(len(shown)), [kinds[k] for k in shown], rotation=35, ha="right")
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"{shape[0]} x {size_label(shape[1])}, K {entries[0].cell.k}")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def hints(results: Results) -> Figure | None:
    kinds = {"real": "real", "none": "none"}
    kinds |= {kind: _HOSTILE.get(kind, kind) for kind in (*HOSTILE_HINTS, "badrow")}
    entries = [e for e in results.entries if e.cell.hint in kinds]
    if len({e.cell.hint for e in entries}) < 3:
        return None
    limit = ("real", 1.5, "1.5 x auto with the real hint")
    return _kinds(results, entries, kinds, lambda cell: cell.hint, limit)


def adversarial(results: Results) -> Figure | None:
    kinds = {"normal": "random", **{kind: kind for kind in ADVERSARIAL_DATA}}
    entries = [e for e in results.entries if e.cell.data in kinds]
    if len({e.cell.data for e in entries}) < 3:
        return None
    limit = ("normal", 3.0, "3 x auto on random rows")
    return _kinds(results, entries, kinds, lambda cell: cell.data, limit)


def dtypes(results: Results) -> Figure | None:
    """Time by dtype, each panel a shape."""
    entries = [e for e in results.entries if e.cell.hint == "real"]
    if len({e.cell.dtype for e in entries}) < 3:
        return None
    names = [n for n in ("torch.topk", "auto", "floor") if n in results.contenders]
    shapes = _shapes(entries)
    figure, axes = plt.subplots(
        1, len(shapes), figsize=(2.6 * len(shapes), 3.6), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes.flat, shapes, strict=True):
        here = {e.cell.dtype: e for e in entries if (e.cell.rows, e.cell.n) == shape}
        for name in names:
            points = [(d, t) for d in DTYPES if d in here and (t := here[d].time(name))]
            colour = _COLOURS[name]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
            if name == "auto":
                for place, (dtype, time) in enumerate(points):
                    text = f"{time:.1f}" if place == 0 else f"{points[0][1] / time:.2f}x"
                    axis.annotate(
                        text,
                        (dtype, time),
                        (0, 6),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                    )
        axis.set(yscale="log", title=f"{shape[0]} x {size_label(shape[1])}")
        axis.margins(0.15, 0.12)
        microseconds(axis)
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel(_COLD)
    figure.suptitle(
        "K 2048; at the marks of auto: us in fp32, then how much faster than that", fontsize=9
    )
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def dense(results: Results) -> Figure | None:
    """The sweep in small steps: over K at N = 64K, over N at K = 2048."""
    if results.header["suite"] != "dense":
        return None
    entries = _plain(results)
    batches = sorted({e.cell.rows for e in entries})
    figure, axes = plt.subplots(
        2, len(batches), figsize=(5.6 * len(batches), 6.6), squeeze=False, layout="constrained"
    )
    for (over_k, over_n), rows in zip(axes.T, batches, strict=True):
        here = [e for e in entries if e.cell.rows == rows]
        for name in ("auto", "floor"):
            _line(
                over_k,
                [e for e in here if e.cell.n == 64 * KIB],
                name,
                ["auto"],
                lambda e: e.cell.k,
            )
            _line(
                over_n,
                [e for e in here if e.cell.k == 2048],
                name,
                ["auto"],
                lambda e: e.cell.n / KIB,
            )
        over_k.set(xlabel="K (logarithmic)", title=f"{rows} x 64K, over K")
        over_k.set_xscale("log", base=2)
        ticks = [1, 4, 16, 64, 256, 1024, 4096]
        over_k.set_xticks(ticks, [str(tick) for tick in ticks])
        over_n.set(xlabel="N, thousands of 1024 scores", title=f"{rows} x N, K 2048, over N")
        over_n.set_xlabel("N / 1024, scores per row")
        for axis in (over_k, over_n):
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel(_COLD)
    axes[0, 0].legend(fontsize=8)
    return figure


def state(results: Results) -> Figure | None:
    """What values and state cost beside the bare operator."""
    names = {
        "op": "indices",
        "op-values": "indices and values",
        "step": "TopKCache.step",
        "step-values": "TopKCache.step with values",
    }
    if "step" not in results.contenders:
        return None
    figure, axis = plt.subplots(figsize=(9.5, 3.6), layout="constrained")
    entries = list(results.entries)
    for place, (name, label) in enumerate(names.items()):
        times = [entry.time(name) or 0.0 for entry in entries]
        axis.bar([i + 0.2 * (place - 1.5) for i in range(len(entries))], times, 0.2, label=label)
    labels = [f"{e.cell.rows} x {size_label(e.cell.n)}" for e in entries]
    axis.set_xticks(range(len(entries)), labels)
    axis.set(xlabel=f"rows x N, K {entries[0].cell.k}", ylabel=_COLD)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def regret(results: Results) -> Figure | None:
    """Map of time of auto over the best alternative, with that alternative's name."""
    shapes = {(d.rows, d.n): d for d in decisions(results)}
    if not shapes:
        return None
    rows, lengths = (sorted({shape[i] for shape in shapes}) for i in (0, 1))
    figure, axis = plt.subplots(figsize=(1.25 * len(lengths) + 1.5, 5.2), layout="constrained")
    grid = [
        [shapes[r, n].regret if (r, n) in shapes else float("nan") for n in lengths] for r in rows
    ]
    axis.imshow(grid, cmap="Oranges", vmin=1, vmax=1.5, aspect="auto")
    for (r, n), decision in shapes.items():
        best = decision.best
        hint = " + hint" if best.hint else ""
        text = f"{decision.regret:.2f}\n{best.algorithm}{hint}\n{best.ctas_per_row}"
        dark = "white" if decision.regret > 1.3 else "black"
        axis.text(
            lengths.index(n), rows.index(r), text, ha="center", va="center", fontsize=7, color=dark
        )
    axis.set_xticks(range(len(lengths)), [size_label(n) for n in lengths])
    axis.set_yticks(range(len(rows)), [str(r) for r in rows])
    axis.set(xlabel="N, scores per row", ylabel="rows")
    axis.set_title(
        "Time of auto over that of the best alternative; its name and CTAs per row", fontsize=10
    )
    return figure


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
    "dtypes": dtypes,
    "dense": dense,
    "state": state,
    "regret": regret,
}
