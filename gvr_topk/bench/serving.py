# SPDX-License-Identifier: Apache-2.0
"""What a record of benchmarks/serving.py says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .cells import size_label
from .results import ResultsError

SCHEMA = 1
KIND = "serving"
PLAIN, STEP, PREFILL = "topk_indices", "step", "prefill, causal windows"
MOST = 1.5  # of the decode kernel's time per score may a prefill take


class Ratio(NamedTuple):
    """Time per valid score of a prefill over that of the fastest decode batch of its row length."""

    label: str
    ratio: float

    @property
    def holds(self) -> bool:
        return self.ratio <= MOST


def load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error
    if not isinstance(record, dict) or record.get("kind") != KIND or not record.get("entries"):
        raise ResultsError(f"{path}: no record of the serving benchmark")
    if record["schema"] != SCHEMA:
        raise ResultsError(f"{path}: got schema {record['schema']}, need {SCHEMA}")
    return record


def failures(record: dict[str, Any]) -> list[str]:
    return [f"{label(e)}: {e['call']}: not exact" for e in record["entries"] if not e["exact"]]


def step_over_plain(record: dict[str, Any] | None) -> list[float]:
    """Time of a step over that of the stateless call, by shape; empty without a record."""
    times: dict[tuple[str, str], float] = {
        (e["call"], label(e)): e["median_us"]
        for e in (record or {}).get("entries", ())
        if e["exact"]
    }
    shapes = [shape for call, shape in times if call == STEP]
    return [times[STEP, s] / times[PLAIN, s] for s in shapes if (PLAIN, s) in times]


def label(entry: dict[str, Any]) -> str:
    return f"{entry['rows']} x {size_label(entry['n'])}"


def decode_calls(record: dict[str, Any]) -> list[str]:
    calls = (e["call"] for e in record["entries"] if not e["call"].startswith("prefill"))
    return list(dict.fromkeys(calls))


def table(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A head, then a line per call: microseconds by shape, and over those of `step`."""
    shapes = list(dict.fromkeys((e["n"], e["rows"]) for e in record["entries"]))
    times = {(e["n"], e["rows"], e["call"]): e for e in record["entries"] if e["exact"]}
    calls = decode_calls(record)
    used = sorted(s for s in shapes if (*s, PLAIN) in times)
    yield ("call", *(f"{rows} x {size_label(n)}" for n, rows in used))
    for call in calls:
        yield (call, *(_beside_step(times, shape, call) for shape in used))


def _beside_step(times: dict[tuple[Any, ...], Any], shape: tuple[int, int], call: str) -> str:
    entry, step = times.get((*shape, call)), times.get((*shape, STEP))
    if entry is None:
        return ""
    text = f"{entry['median_us']:.1f}"
    return text if step is None else f"{text} ({entry['median_us'] / step['median_us']:.2f}x)"


def prefill(record: dict[str, Any]) -> list[Ratio]:
    found = []
    for entry in record["entries"]:
        if entry["call"] != PREFILL or not entry["exact"]:
            continue
        decode = [
            e["scores_per_us"]
            for e in record["entries"]
            if (e["call"], e["n"], e["exact"]) == (PLAIN, entry["n"], True)
        ]
        if decode:
            found.append(Ratio(label(entry), max(decode) / entry["scores_per_us"]))
    return found
