# SPDX-License-Identifier: Apache-2.0
"""The choice of `auto` beside every choice that it could have made, from a dispatch record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .results import Entry, Results

_TAKES_NO_HINT = "resident"
_SWEPT = re.compile(r"(?P<name>.+)\[ctas_per_row=(?P<ctas>\d+)\]")


class Choice(NamedTuple):
    """One way to answer a shape, timed."""

    algorithm: str
    hint: bool
    ctas_per_row: int
    time_us: float

    def __str__(self) -> str:
        return _words(self.algorithm, self.ctas_per_row, self.hint)


class Decision(NamedTuple):
    """A shape, what `auto` took, and the fastest exact alternative."""

    rows: int
    n: int
    k: int
    auto_us: float
    floor_us: float | None
    choices: tuple[Choice, ...]
    taken: str  # what auto did, where the record says so

    @property
    def best(self) -> Choice:
        return min(self.choices, key=lambda choice: choice.time_us)

    @property
    def regret(self) -> float:
        """Time of `auto` over that of the best choice; 1 where it chose best."""
        return self.auto_us / self.best.time_us

    def times(self, algorithm: str, hint: bool) -> dict[int, float]:
        """Microseconds by CTAs per row."""
        return {
            c.ctas_per_row: c.time_us
            for c in self.choices
            if (c.algorithm, c.hint) == (algorithm, hint)
        }


def decisions(results: Results) -> list[Decision]:
    """One per cell in which `auto` and at least one alternative were timed."""
    found = []
    for entry in results.entries:
        auto, choices = entry.time("auto"), tuple(_choices(entry))
        if auto is not None and choices:
            cell = entry.cell
            floor, taken = entry.time("floor"), _taken(entry)
            found.append(Decision(cell.rows, cell.n, cell.k, auto, floor, choices, taken))
    return found


def _taken(entry: Entry) -> str:
    plan = entry.plan("auto")
    return _words(plan["family"], plan["ctas_per_row"], plan["hint"] == "used") if plan else ""


def _words(algorithm: str, ctas_per_row: int, hint: bool) -> str:
    ctas = f"{ctas_per_row} CTA{'s' * (ctas_per_row > 1)}"
    return f"{algorithm}, {ctas}, {'with hint' if hint else 'no hint'}"


def _choices(entry: Entry) -> Iterator[Choice]:
    for contender in entry.results:
        time = entry.time(contender)
        if time is None:
            continue
        swept = _SWEPT.fullmatch(contender)
        if swept is not None:
            algorithm, _, without = swept["name"].partition("-")
            # Where an algorithm does not fit a shape, another answers: that one has its own line.
            if entry.plan(contender).get("family", algorithm) == algorithm:
                hinted = not without and algorithm != _TAKES_NO_HINT
                yield Choice(algorithm, hinted, int(swept["ctas"]), time)
        elif contender == "radix":
            yield Choice("radix", False, 1, time)
