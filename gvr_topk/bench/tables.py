# SPDX-License-Identifier: Apache-2.0
"""Tables from a record alone."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from .results import Entry, Results
from .targets import Verdict


def times(results: Results, kind: str = "cold", baseline: str = "floor") -> Table:
    """Median microseconds per call, with the multiple of the baseline where there is one."""
    header = results.header
    compared = any(entry.time(baseline, kind) for entry in results.entries)
    over = f", x {baseline}" if compared else ""
    table = Table(
        title=f"{header['suite']}: {header['about']} ({kind}, us per call{over})",
        caption=results.describe(),
    )
    table.add_column("cell", no_wrap=True)
    table.add_column("overlap", justify="right")
    names = results.contenders
    for name in names:
        table.add_column(name, justify="right")
    for entry in results.entries:
        overlap = "" if entry.overlap is None else f"{entry.overlap:.2f}"
        cells = [_time(entry, name, kind, baseline) for name in names]
        table.add_row(entry.cell.label, overlap, *cells)
    return table


def _time(entry: Entry, name: str, kind: str, baseline: str) -> Text:
    result = entry.results.get(name)
    if result is None:
        return Text("")
    if "error" in result:
        return Text("error", style="bold red")
    if not result["exact"]:
        return Text("NOT EXACT", style="bold red")
    time, base = entry.time(name, kind), entry.time(baseline, kind)
    if time is None:
        return Text("")
    text = Text(f"{time:.2f}" if time < 100 else f"{time:.0f}")
    if base and name != baseline:
        text.append(f" {time / base:.2f}x", style="dim")
    return text


def notes(results: Results) -> list[str]:
    """What the tables leave out."""
    header = results.header
    lines = [f"not run: {name}: {why}" for name, why in header["unavailable"].items()]
    for skipped in header["skipped"]:
        cell = skipped["cell"]
        lines.append(f"skipped: {cell['rows']} x {cell['n']}, K {cell['k']}: {skipped['reason']}")
    for entry in results.entries:
        for name, result in entry.results.items():
            if "error" in result:
                lines.append(f"error: {entry.cell.label}: {name}: {result['error']}")
    return lines


def verdicts(found: list[Verdict], results: Results, worst_cells: int = 0) -> Table:
    table = Table(title="targets", caption=results.describe())
    table.add_column("target")
    for column in ("need", "worst", "cells that hold"):
        table.add_column(column, justify="right")
    table.add_column("worst cell")
    table.add_column("verdict")
    for verdict in found:
        sign = "<=" if verdict.at_most else ">="
        worst = verdict.worst if verdict.judged else None
        table.add_row(
            verdict.name,
            f"{sign} {verdict.need:g}{verdict.unit}",
            verdict.shown(worst) if worst else "",
            f"{verdict.cells_passed} of {len(verdict.measured)}" if worst else "",
            worst.label if worst else "",
            Text(verdict.outcome, "green" if verdict.passed else "bold red"),
        )
        if verdict.note:
            table.add_row(Text(f"  {verdict.note}", "dim"))
        short = [m for m in verdict.measured if not verdict.holds(m) and m != worst]
        short.sort(key=lambda m: m.ratio, reverse=verdict.at_most)
        for measured in short[:worst_cells]:
            table.add_row("", "", verdict.shown(measured), "", measured.label, "", style="dim")
    return table
