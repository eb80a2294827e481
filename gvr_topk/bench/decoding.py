# SPDX-License-Identifier: Apache-2.0
"""What a record of benchmarks/decode.py says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cells import size_label
from .results import ResultsError, quotient

SCHEMA = 1
KIND = "decode"
# arXiv 2604.22312: lower time per output token against radix selection, in percent, by context
# in 1,024 keys.
PAPER = {32: 4.07, 64: 5.47, 100: 7.52}
# On the GPU `auto` takes no hint, so that a decoder which wants the selection alone keeps no state,
# as for the radix selection. Records without this variant are judged by the one that keeps it.
STATELESS = "auto, no state"


def load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error
    if not isinstance(record, dict) or record.get("kind") != KIND or not record.get("cells"):
        raise ResultsError(f"{path}: no record of this benchmark")
    if record["schema"] != SCHEMA:
        raise ResultsError(f"{path}: got schema {record['schema']}, need {SCHEMA}")
    return record


def cell_label(requests: int, context: int, drafts: int) -> str:
    return f"{requests} x {size_label(context)}, {drafts} draft{'s' * (drafts != 1)}"


def label_of(cell: dict[str, Any]) -> str:
    """Made anew: older records say "1 drafts"."""
    return cell_label(cell["requests"], cell["context"], cell["drafts"])


def cells(record: dict[str, Any]) -> list[dict[str, Any]]:
    """By batch, drafts and context, whatever the order in which they were measured."""
    return sorted(record["cells"], key=lambda c: (c["requests"], c["drafts"], c["context"]))


def variants(record: dict[str, Any]) -> list[str]:
    return [result["variant"] for result in record["cells"][0]["results"]]


def claimed(record: dict[str, Any]) -> str:
    """The variant that is held against radix."""
    return STATELESS if STATELESS in variants(record) else "auto"


def token_time(cell: dict[str, Any], variant: str) -> float | None:
    """Microseconds per output token of an exact result."""
    for result in cell["results"]:
        if result["variant"] == variant and result["exact"] is not False:
            return result["token_us"]
    return None


def gain(cell: dict[str, Any], variant: str, baseline: str) -> float | None:
    """How much lower the time per output token is than the baseline's, in percent."""
    ratio = quotient(token_time(cell, variant), token_time(cell, baseline))
    return None if ratio is None else 100 * (1 - ratio)


def failures(record: dict[str, Any]) -> list[str]:
    return [
        f"{label_of(cell)}: {result['variant']}: not exact"
        for cell in record["cells"]
        for result in cell["results"]
        if result["exact"] is False
    ]


def verdicts(record: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """(target, need, measured percent, holds) against radix, for one request."""
    found = []
    variant = claimed(record)
    for cell in cells(record):
        measured = gain(cell, variant, "radix")
        if cell["requests"] != 1 or measured is None:
            continue
        need = PAPER.get(cell["context"] // 1024, 0.0) if cell["drafts"] == 0 else 0.0
        holds = measured >= need if need else measured > 0
        found.append((label_of(cell), need, measured, holds))
    return found


def table(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A head, then a line per cell: microseconds per token, and the gain that is claimed."""
    names, variant = variants(record), claimed(record)
    over = f"{variant} over radix"
    yield ("requests x context, drafts", "overlap", *names, over, "the paper's")
    for cell in cells(record):
        times = (token_time(cell, name) for name in names)
        measured = gain(cell, variant, "radix")
        paper = PAPER.get(cell["context"] // 1024)
        known = paper is not None and cell["requests"] == 1 and cell["drafts"] == 0
        yield (
            label_of(cell),
            f"{statistics.mean(cell['overlap']):.2f}",
            *("not exact" if time is None else f"{time:.1f}" for time in times),
            "" if measured is None else f"{measured:.2f} %",
            f"{paper:.2f} %" if known else "",
        )
