# SPDX-License-Identifier: Apache-2.0
"""The scaling model on paper: measured parts put together for more ranks. See docs/scaling.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from gvr_topk.distributed.model import METHODS, Link, Shape, moved, operands, seconds

from .cells import KIB, size_label
from .results import ResultsError

RANKS = (8, 16, 32, 64)
FROM_KEYS = 256 * KIB  # per rank: from here on sharded selection has to pay
_SMALL = 1024  # bytes: below, a collective's time is its latency


class RecordError(ResultsError):
    """A file that is no record of the distributed benchmark, or lacks what the model needs."""


def load(path: Path) -> dict[str, Any]:
    from .distributed import KIND, SCHEMA

    try:
        record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: {error}") from error
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise RecordError(f"{path}: no record of the distributed benchmark")
    if record.get("schema") != SCHEMA:
        raise RecordError(f"{path}: got schema {record.get('schema')}, need {SCHEMA}")
    return record


def times_table(record: dict[str, Any]) -> Iterator[str]:
    """Microseconds per call, then the bytes that one of several ranks receives."""
    names: list[str] = list(
        dict.fromkeys(r["contender"] for cell in record["cells"] for r in cell["results"])
    )
    tables = [("microseconds per call", "median_us"), ("bytes received", None)]
    ranks = f"{record['world']} ranks" if record["world"] > 1 else "1 rank"
    # One rank receives nothing.
    for title, key in tables if record["world"] > 1 else tables[:1]:
        yield f"{ranks}, {record['backend']}, K = {record['k']}: {title}"
        yield ""
        yield f"| rows x N | {' | '.join(names)} |"
        yield "|---" * (len(names) + 1) + "|"
        for cell in record["cells"]:
            by_name = {result["contender"]: result for result in cell["results"]}
            figures = [_figure(by_name.get(name), key) for name in names]
            yield f"| {cell['rows']} x {size_label(cell['n'])} | {' | '.join(figures)} |"
        yield ""


def _figure(result: dict[str, Any] | None, key: str | None) -> str:
    if result is None:
        return ""
    if key is None:
        return f"{result['bytes_received']:,}"
    return f"{result[key]:.1f}" if result["exact"] is not False else "not exact"


@dataclass(frozen=True)
class Verdict:
    """By cell: time of all-gathering the scores and selecting from them over the method's time."""

    method: str
    return_: str
    ratios: tuple[tuple[str, float], ...]


def verdicts(record: dict[str, Any]) -> Iterator[Verdict]:
    """Of the cells with at least 256K keys per rank; of a compiled and a plain form the faster."""
    for method, return_ in product(METHODS, ("global", "local")):
        ratios = []
        for cell in record["cells"]:
            times = {r["contender"]: r["median_us"] for r in cell["results"] if r["exact"]}
            own = [t for name, t in times.items() if name.startswith(f"{method}-{return_}")]
            whole = [t for name, t in times.items() if name.startswith("gather-")]
            if own and whole and cell["n"] // record["world"] >= FROM_KEYS:
                label = f"{cell['rows']} x {size_label(cell['n'])}"
                ratios.append((label, min(whole) / min(own)))
        if ratios:
            yield Verdict(method, return_, tuple(ratios))


@dataclass(frozen=True)
class Inputs:
    """What the model takes from the records."""

    link: Link
    measured: dict[str, Any]  # the record with the most ranks

    @classmethod
    def read(cls, records: Sequence[dict[str, Any]]) -> Inputs:
        most = max(records, key=lambda record: record["world"])
        if most["world"] < 2:
            raise RecordError("the model needs a record of at least two ranks")
        alone = next((record for record in records if record["world"] == 1), None)
        latency = _latency(most)
        base = 0.0 if alone is None else min(_latency(alone), latency)
        hop = (latency - base) / math.log2(most["world"])
        return cls(Link(base, hop, _bandwidth(most, latency)), most)

    def local_us(self, rows: int, n: float) -> float:
        """Selection from a shard of n keys: between the measured sizes, linear in n."""
        world = self.measured["world"]
        found = [
            (cell["n"] / world, _time(cell, "local"))
            for cell in self.measured["cells"]
            if cell["rows"] == rows
        ]
        return _interpolate(sorted(found), n)

    def merge_us(self, rows: int, ranks: int) -> float:
        found = [(m["ranks"], m["median_us"]) for m in self.measured["merges"] if m["rows"] == rows]
        return _interpolate(sorted(found), ranks)

    @property
    def tuned_for(self) -> Link:
        """What "threshold" chose its digits for when it was measured."""
        return Link(**self.measured["link"])

    def collectives_us(self, method: str, shape: Shape) -> float:
        return 1e6 * seconds(method, shape, self.link, self.tuned_for)

    def rest_us(self, method: str, return_: str, rows: int) -> float:
        """What the measured call took beyond selection, collectives and merge: small kernels.

        The median over the sizes of one batch, compiled where that was measured.
        """
        world, k = self.measured["world"], self.measured["k"]
        rests = []
        for cell in self.measured["cells"]:
            if cell["rows"] != rows:
                continue
            names = {result["contender"] for result in cell["results"]}
            name = f"{method}-{return_}"
            name = f"{name}-compiled" if f"{name}-compiled" in names else name
            shape = Shape(rows, k, world, whole=return_ == "global")
            known = self.collectives_us(method, shape) + _time(cell, "local")
            if method == "candidates":
                known += self.merge_us(rows, world)
            rests.append((name.endswith("compiled"), _time(cell, name) - known))
        best = [rest for compiled, rest in rests if compiled] or [rest for _, rest in rests]
        return sorted(best)[len(best) // 2]

    def predict_us(self, method: str, return_: str, rows: int, ranks: int, keys: int) -> float:
        shape = Shape(rows, self.measured["k"], ranks, whole=return_ == "global")
        total = self.local_us(rows, keys / ranks) + self.collectives_us(method, shape)
        if method == "candidates":
            total += self.merge_us(rows, ranks)
        return total + self.rest_us(method, return_, rows)

    def gather_us(self, rows: int, ranks: int, keys: int) -> float:
        """All-gather of the scores alone, without the selection behind it."""
        return 1e6 * self.link.time("all_gather", 4 * rows * keys // ranks, ranks)


def _latency(record: dict[str, Any]) -> float:
    small = [m["median_us"] for m in record["collectives"] if m["bytes"] <= _SMALL]
    if not small:
        raise RecordError("the record holds no latency of a small collective")
    return 1e-6 * sorted(small)[len(small) // 2]


def _bandwidth(record: dict[str, Any], latency: float) -> float:
    """Bytes received per second of the largest message, of the slower collective."""
    largest = max(m["bytes"] for m in record["collectives"])
    rates = [
        moved(m["kind"], m["bytes"], record["world"]) / max(1e-6 * m["median_us"] - latency, 1e-9)
        for m in record["collectives"]
        if m["bytes"] == largest
    ]
    return min(rates)


def _time(cell: dict[str, Any], contender: str) -> float:
    for result in cell["results"]:
        if result["contender"] == contender:
            return float(result["median_us"])
    raise RecordError(f"{cell['rows']} x {cell['n']}: no time of {contender}")


def _interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points; beyond them the nearest point's value."""
    if not points:
        raise RecordError("the record lacks a batch that the model needs")
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1] if x < points[0][0] else points[-1][1]


def model_tables(records: Sequence[dict[str, Any]], keys: int) -> Iterator[str]:
    """The model's inputs, then microseconds by ranks: Markdown."""
    inputs = Inputs.read(records)
    link, record = inputs.link, inputs.measured
    yield (
        f"Inputs: base {1e6 * link.base:.2f} us, hop {1e6 * link.hop:.2f} us, "
        f"{link.bandwidth / 1e9:.1f} GB/s per rank ({record['backend']}, {record['world']} ranks, "
        f"{record['environment']['date']}); {keys:,} keys, K = {record['k']}, fp32."
    )
    yield ""
    for return_ in ("global", "local"):
        yield f'`return_="{return_}"`, microseconds:'
        yield ""
        yield f"| rows | ranks | gather scores | {' | '.join(METHODS)} | least bytes received |"
        yield "|---" * (len(METHODS) + 4) + "|"
        for rows in sorted({cell["rows"] for cell in record["cells"]}):
            for ranks in RANKS:
                times = [inputs.predict_us(m, return_, rows, ranks, keys) for m in METHODS]
                shape = Shape(rows, record["k"], ranks, whole=return_ == "global")
                least = min(
                    (
                        sum(
                            moved(kind, size, ranks)
                            for kind, size in operands(m, shape, inputs.tuned_for)
                        ),
                        m,
                    )
                    for m in METHODS
                )
                cells = [f"{inputs.gather_us(rows, ranks, keys):.0f}", *(f"{t:.0f}" for t in times)]
                yield f"| {rows} | {ranks} | {' | '.join(cells)} | {least[0]:,.0f} ({least[1]}) |"
        yield ""
