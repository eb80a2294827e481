# SPDX-License-Identifier: Apache-2.0
"""Reading a benchmark's JSON: times by cell and contender."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cells import Cell
from .runner import SCHEMA


class ResultsError(ValueError):
    """A file that is no benchmark record."""


@dataclass(frozen=True)
class Entry:
    """One measured cell."""

    cell: Cell
    record: dict[str, Any]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        return {result["contender"]: result for result in self.record["results"]}

    def time(self, contender: str, kind: str = "cold") -> float | None:
        """Median microseconds per call of an exact result."""
        result = self.results.get(contender)
        if result is None or kind not in result or not result["exact"]:
            return None
        return result[kind]["median_us"]

    def ratio(self, contender: str, baseline: str) -> float | None:
        return quotient(self.time(contender), self.time(baseline))

    def plan(self, contender: str) -> dict[str, Any]:
        """Kernel, CTAs per row and fate of the hint; empty where the record does not say."""
        return self.results.get(contender, {}).get("plan", {})

    @property
    def overlap(self) -> float | None:
        return self.record["overlap"]["mean"] if self.record["overlap"] else None


@dataclass(frozen=True)
class Results:
    """One record, or several that share their entries."""

    header: dict[str, Any]
    entries: tuple[Entry, ...]

    @classmethod
    def load(cls, *paths: Path) -> Results:
        records = [_read(path) for path in paths]
        entries = [Entry(Cell(**e["cell"]), e) for record in records for e in record["cells"]]
        return cls(records[0], tuple(entries))

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(name for entry in self.entries for name in entry.results))

    def find(self, cell: Cell, contender: str | None = None) -> Entry | None:
        """The entry of this cell; with a contender, one in which it was timed."""
        for entry in self.entries:
            if entry.cell == cell and (contender is None or entry.time(contender) is not None):
                return entry
        return None

    def time_of(self, cell: Cell, contender: str) -> float | None:
        entry = self.find(cell, contender)
        return entry.time(contender) if entry else None

    def against(self, entry: Entry, contender: str, **changes: Any) -> float | None:
        """Time in this entry over the time in the cell that differs by `changes`."""
        other = self.time_of(replace(entry.cell, **changes), contender)
        return quotient(entry.time(contender), other)

    def describe(self) -> str:
        environment = self.header["environment"]
        gpu = environment["gpu"]
        if self.header["device"] == "cuda" and gpu:
            card = f"{gpu['name']}, driver {gpu['driver']}, CUDA {environment['torch_cuda']}"
        else:
            card = environment["cpu"]
        source = (environment["source_sha256"] or "unknown")[:12]
        return f"{card}, torch {environment['torch']}, sources {source}, {environment['date']}"


def quotient(time: float | None, baseline: float | None) -> float | None:
    return time / baseline if time is not None and baseline else None


def geometric_mean(ratios: Iterable[float]) -> float | None:
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # no JSON, or no text
        raise ResultsError(f"{path}: no JSON ({error})") from error
    if not isinstance(record, dict) or "cells" not in record:
        raise ResultsError(f"{path}: no benchmark record (it has no cells)")
    if record.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: got schema {record.get('schema')}, need {SCHEMA}")
    return record
