# SPDX-License-Identifier: Apache-2.0
"""The targets that a record can decide. Each says what it needs and what the worst cell gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from .cells import ADVERSARIAL_DATA, DTYPES, HOSTILE_HINTS, KIB, LONGEST_TRACE, Cell
from .published import FLOOR_AND_BEST, PRODUCTION_RADIX_US, best_multiple
from .results import Entry, Results, geometric_mean, quotient

LARGE = 8 * KIB * KIB  # scores in a call from which on reading them is the time
LONG_ROW = 256 * KIB


class Measured(NamedTuple):
    label: str
    ratio: float


@dataclass(frozen=True)
class Verdict:
    name: str
    need: float
    at_most: bool
    measured: tuple[Measured, ...]
    unit: str = "x"
    note: str = ""

    @property
    def judged(self) -> bool:
        return bool(self.measured)

    @property
    def worst(self) -> Measured:
        """The cell that decides; ValueError where none was judged."""
        pick = max if self.at_most else min
        return pick(self.measured, key=lambda m: m.ratio)

    def shown(self, measured: Measured) -> str:
        """The ratio, with as many digits as tell it from what is needed."""
        text = f"{measured.ratio:.2f}"
        if float(text) == self.need and measured.ratio != self.need:
            text = f"{measured.ratio:.4f}"
        return text + self.unit

    def holds(self, measured: Measured) -> bool:
        return measured.ratio <= self.need if self.at_most else measured.ratio >= self.need

    @property
    def passed(self) -> bool:
        """Nothing that was judged falls short."""
        return all(self.holds(m) for m in self.measured)

    @property
    def outcome(self) -> str:
        if not self.judged:
            return "not judged"
        return "pass" if self.passed else "falls short"

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.name,
            "need": self.need,
            "at_most": self.at_most,
            "unit": self.unit,
            "outcome": self.outcome,
            "note": self.note,
            "cells": [{"cell": label, "ratio": round(ratio, 4)} for label, ratio in self.measured],
        }

    @property
    def cells_passed(self) -> int:
        return sum(self.holds(m) for m in self.measured)


def _plain(entry: Entry, *, dtype: str = "fp32") -> bool:
    cell = entry.cell
    data = "trace" if cell.n <= LONGEST_TRACE else "normal"
    return cell.hint == "real" and cell.dtype == dtype and cell.data == data and not cell.threads


def _collect(
    entries: Iterable[Entry], ratio: Callable[[Entry], float | None]
) -> tuple[Measured, ...]:
    pairs = ((entry.cell.label, ratio(entry)) for entry in entries)
    return tuple(Measured(label, value) for label, value in pairs if value is not None)


def _mean(measured: tuple[Measured, ...], cells: int) -> tuple[Measured, ...]:
    """The geometric mean, where all the cells that it is promised for were measured."""
    mean = geometric_mean(m.ratio for m in measured)
    if mean is None or len(measured) < cells:
        return ()
    return (Measured(f"geometric mean of {cells} cells", mean),)


def _select(results: Results, rows: set[int], sizes: set[int], k: int = 2048) -> list[Entry]:
    return [
        entry
        for entry in results.entries
        if _plain(entry) and entry.cell.k == k and entry.cell.rows in rows and entry.cell.n in sizes
    ]


def _first_speed(results: Results) -> Iterator[Verdict]:
    """The main job's own targets."""
    one = _select(results, {1}, {64 * KIB})
    over_radix = _collect(one, lambda e: e.ratio("radix", "gvr"))
    yield Verdict("gvr over in-repo radix, 1 x 64K", 1.9, False, over_radix)
    yield Verdict(
        "gvr at 1 x 64K against a production radix",
        PRODUCTION_RADIX_US,
        True,
        _collect(one, lambda e: e.time("gvr")),
        "us",
    )
    rows, sizes = {1, 16, 64, 128}, {8 * KIB, 64 * KIB, 128 * KIB}
    block = _select(results, rows, sizes)
    faster = _collect(block, lambda e: e.ratio("torch.topk", "auto"))
    yield Verdict("torch.topk over auto, every cell", 1.0, False, faster)
    mean = _mean(faster, len(rows) * len(sizes))
    yield Verdict("torch.topk over auto, all cells", 3.0, False, mean)


def _cpu(results: Results) -> Iterator[Verdict]:
    entries = [
        e
        for e in results.entries
        if e.cell.threads == 1 and e.cell.k == 2048 and e.cell.n == 128 * KIB
        and e.cell.hint == "real"
    ]  # fmt: skip
    single = [e for e in entries if e.cell.rows == 1]
    yield Verdict(
        "CPU, one thread, N 128K: auto over torch.topk",
        8.0,
        False,
        _collect(single, lambda e: e.ratio("torch.topk", "auto")),
    )

    def second_thread(entry: Entry) -> float | None:
        both = results.time_of(replace(entry.cell, threads=2), "auto")
        return quotient(entry.time("auto"), both)

    yield Verdict("CPU, two threads over one, N 128K", 1.6, False, _collect(entries, second_thread))


def _floor(results: Results) -> Iterator[Verdict]:
    plain = [e for e in results.entries if _plain(e)]

    def share_of_best(entry: Entry) -> float | None:
        cell = entry.cell
        return quotient(entry.ratio("auto", "floor"), best_multiple(cell.k, cell.rows, cell.n))

    shares = _collect(plain, share_of_best)
    yield Verdict("must: multiple of the floor over that of the best known", 0.9, True, shares)
    published = sum(len(cells) for cells in FLOOR_AND_BEST.values())
    yield Verdict("must: the same, all cells", 0.7, True, _mean(shares, published))
    large = [e for e in plain if e.cell.rows * e.cell.n >= LARGE]
    small = [e for e in plain if e.cell.rows * e.cell.n < LARGE]
    multiple = _multiple("auto")
    yield Verdict("aim: auto over the floor, rows x N >= 8M", 1.3, True, _collect(large, multiple))
    yield Verdict("aim: auto over the floor, elsewhere", 2.0, True, _collect(small, multiple))


def _short(results: Results) -> Iterator[Verdict]:
    short = [e for e in results.entries if _plain(e) and e.cell.n <= 16 * KIB]
    yield Verdict("short rows: auto over the floor", 2.0, True, _collect(short, _multiple("auto")))


def _multiple(contender: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.ratio(contender, "floor")


def _hint_is_moot(entry: Entry) -> bool:
    """The row stays on the chip and auto ignores the hint: nothing is there to gain."""
    plan = entry.plan("auto")
    return plan.get("family") == "resident" and plan["hint"] == "ignored"


def _hint_ignored(entries: Iterable[Entry]) -> str:
    plans = [plan for entry in entries if (plan := entry.plan("auto"))]
    ignored = [plan for plan in plans if plan["hint"] == "ignored"]
    if not ignored:
        return ""
    resident = sum(plan["family"] == "resident" for plan in ignored)
    return (
        f"auto ignores the hint in {len(ignored)} of {len(plans)} cells; in {resident} of them the "
        "row stays on the chip"
    )


def _hints(results: Results) -> Iterator[Verdict]:
    def over_real(entry: Entry) -> float | None:
        return results.against(entry, "auto", hint="real")

    def with_hint(*kinds: str) -> list[Entry]:
        return [e for e in results.entries if e.cell.hint in kinds and not e.cell.threads]

    plain = [e for e in results.entries if _plain(e)]
    without = [(e, over_real(e)) for e in with_hint("none")]
    if not without:
        without = [(e, e.ratio("auto-nohint", "auto")) for e in plain]
    none = tuple(Measured(e.cell.label, ratio) for e, ratio in without if ratio is not None)
    yield Verdict("no hint over the real hint", 1.35, True, none, note=_hint_ignored(plain))
    hostile = _collect(with_hint(*HOSTILE_HINTS), over_real)
    yield Verdict("worst hostile hint over the real hint", 1.5, True, hostile)
    bad = [e for e in with_hint("badrow") if e.cell.rows == 64]
    yield Verdict("one bad row of 64", 1.3, True, _collect(bad, over_real))

    def pays(cell: Cell) -> bool:
        return cell.n >= LONG_ROW or cell.rows * cell.n >= LARGE

    long = [e for e in plain if pays(e.cell)]
    # Resident rows whose hint is ignored are judged by nothing: that is what is asked of them.
    moot = {replace(e.cell, hint="none") for e in long if _hint_is_moot(e)}
    gain = tuple(
        Measured(entry.cell.label, ratio)
        for entry, ratio in without
        if ratio is not None and pays(entry.cell) and replace(entry.cell, hint="none") not in moot
    )
    yield Verdict(
        "the hint pays: none over real, N >= 256K or rows x N >= 8M",
        1.1,
        False,
        gain,
        note=_hint_ignored(long),
    )


def _adversarial(results: Results) -> Iterator[Verdict]:
    hard = [e for e in results.entries if e.cell.data in ADVERSARIAL_DATA and not e.cell.threads]
    yield Verdict(
        "adversarial rows over random rows",
        3.0,
        True,
        _collect(hard, lambda e: results.against(e, "auto", data="normal")),
    )


def _dtypes(results: Results) -> Iterator[Verdict]:
    halves = [
        e
        for e in results.entries
        if e.cell.dtype in set(DTYPES) - {"fp32"} and e.cell.rows * e.cell.n >= LARGE
    ]

    def gain(entry: Entry) -> float | None:
        full = results.time_of(replace(entry.cell, dtype="fp32"), "auto")
        return quotient(full, entry.time("auto"))

    yield Verdict("bf16 and fp16 over fp32, rows x N >= 8M", 1.2, False, _collect(halves, gain))


def _smooth(results: Results) -> Iterator[Verdict]:
    """A larger K or N at most 10 % faster than any smaller one."""
    for axis in ("k", "n"):
        drops: list[Measured] = []
        for rows in sorted({e.cell.rows for e in results.entries}):
            line = [
                e
                for e in results.entries
                if e.cell.rows == rows and e.time("auto") is not None
                and (e.cell.n == 64 * KIB if axis == "k" else e.cell.k == 2048)
            ]  # fmt: skip
            line.sort(key=lambda e: getattr(e.cell, axis))
            slowest = 0.0
            for entry in line:
                time = entry.time("auto") or 0.0
                slowest = max(slowest, time)
                drops.append(Measured(entry.cell.label, slowest / time))
        yield Verdict(f"time monotone in {axis.upper()}", 1.1, True, tuple(drops))


def _ratio_to_op(contender: str, entry: Entry) -> float | None:
    return entry.ratio(contender, "op")


def _state(results: Results) -> Iterator[Verdict]:
    entries = results.entries
    for name, contender in (("TopKCache.step", "step"), ("values output", "op-values")):
        measured = _collect(entries, partial(_ratio_to_op, contender))
        yield Verdict(f"{name} over the bare operator", 1.05, True, measured)


# What a suite was made to decide. Another suite may hold some of the same cells, but not all.
_GROUPS: dict[str, tuple[Callable[[Results], Iterator[Verdict]], ...]] = {
    "issue": (_first_speed,),
    "grid": (_floor,),
    "hints": (_hints,),
    "dispatch": (_hints,),
    "adversarial": (_adversarial,),
    "short": (_short,),
    "dtypes": (_dtypes,),
    "dense": (_smooth,),
    "state": (_state,),
    "cpu": (_cpu,),
}


def judge(results: Results) -> list[Verdict]:
    """The targets that the suite of a record was made for, those that its cells decide.

    A verdict without a cell stays where its note says why.
    """
    groups = _GROUPS.get(results.header["suite"], ())
    verdicts = [verdict for group in groups for verdict in group(results)]
    return [verdict for verdict in verdicts if verdict.measured or verdict.note]
