# SPDX-License-Identifier: Apache-2.0
"""Blocks of the documentation about decoders, servers and several GPUs; see report.py.

A record of these may be missing: then the block says how to make it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import decoding, scaling, serving
from .markdown import markdown_table, paragraph

RESULTS = "benchmarks/results"
DECODE, SERVING = f"{RESULTS}/h200-decode.json", f"{RESULTS}/h200-serving.json"
GPU_RANKS = (f"{RESULTS}/h200x1-distributed.json", f"{RESULTS}/h200x2-distributed.json")
CPU_RANKS = (f"{RESULTS}/cpux1-distributed.json", f"{RESULTS}/cpux2-distributed.json")
MODEL_KEYS = 10_000_000
# Orders of magnitude, until a record of the kind is there.
_GUESSED = {"cuda": "5e-06, 5e-06, 1e11", "cpu": "5e-05, 5e-05, 1e9"}


class ClientRecords:
    """The records that are there, below a checkout's root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def decode(self) -> dict[str, Any] | None:
        path = self.root / DECODE
        return decoding.load(path) if path.is_file() else None

    def serving(self) -> dict[str, Any] | None:
        path = self.root / SERVING
        return serving.load(path) if path.is_file() else None

    def ranks(self, names: Sequence[str] = GPU_RANKS) -> list[dict[str, Any]]:
        """Those on one rank and on several, or none of them."""
        paths = [self.root / name for name in names]
        if not all(path.is_file() for path in paths):
            return []
        return [scaling.load(path) for path in paths]


def conditions(record: dict[str, Any]) -> str:
    environment = record["environment"]
    gpu = environment["gpu"]
    card = f"{gpu['name']}, driver {gpu['driver']}" if gpu else environment["cpu"]
    source = (environment["source_sha256"] or "unknown")[:12]
    return f"{card}, torch {environment['torch']}, {environment['date'][:10]}, sources {source}"


def _unmeasured(command: str) -> list[str]:
    return paragraph(f"*No record yet: `{command}` makes it.*")


def _table(lines: Iterable[Sequence[str]]) -> list[str]:
    head, *rest = lines
    return markdown_table(head, rest)


def decode(records: ClientRecords) -> list[str]:
    record = records.decode()
    if record is None:
        return _unmeasured(f"python benchmarks/decode.py --out {DECODE}")
    shape = record["shape"]
    short = [
        f"{label} ({measured:.2f} %, need {'more than 0' if not need else f'{need:.2f}'})"
        for label, need, measured, holds in decoding.verdicts(record)
        if not holds
    ]
    count = len(decoding.verdicts(record))
    verdict = f"falls short at {', '.join(short)}" if short else "holds"
    about = (
        f"Microseconds per output token, {shape['layers']} layers, K = {shape['k']}, "
        f"{record['dtype']}; "
        f'"{decoding.claimed(record)} over radix" is how much less time a token takes, '
        '"the paper\'s" what '
        "arXiv 2604.22312 reports at that context. For one request (at least the paper's gain, "
        f"and a gain anywhere else: {count} cells) the claim {verdict}."
    )
    if record["skipped"]:
        about += f" Not measured for want of time: {', '.join(record['skipped'])}."
    return [
        *paragraph(about),
        "",
        *_table(decoding.table(record)),
        "",
        *paragraph(f"*{conditions(record)}.*"),
    ]


def serving_calls(records: ClientRecords) -> list[str]:
    record = records.serving()
    if record is None:
        return _unmeasured(f"python benchmarks/serving.py --out {SERVING}")
    about = (
        "Microseconds per call by rows x N, K = 2048, cold L2, in brackets over those of `step`:"
    )
    return [
        about,
        "",
        *_table(serving.table(record)),
        "",
        *paragraph(f"*{conditions(record)}.*"),
    ]


def hint_sizes(records: ClientRecords) -> list[str]:
    """What fewer hints cost in time: over the same step with all of them."""
    record = records.serving()
    if record is None:
        return _unmeasured(f"python benchmarks/serving.py --out {SERVING}")
    times: dict[tuple[tuple[int, int], str], float] = {
        ((e["rows"], e["n"]), e["call"]): e["median_us"] for e in record["entries"] if e["exact"]
    }
    shapes = [shape for shape, call in times if call == serving.STEP]
    sizes = {int(call.split()[-2]) for _, call in times if call.endswith(" hints")}
    full, *fewer = sorted(sizes, reverse=True)
    parts = []
    for algorithm, prefix, whole in (
        ("auto", "step", serving.STEP),
        ("gvr", "step, gvr", f"step, gvr, {full} hints"),
    ):
        for size in fewer:
            call = f"{prefix}, {size} hints"
            both = [s for s in shapes if (s, call) in times and (s, whole) in times]
            change = [100 * (times[s, call] / times[s, whole] - 1) for s in both]
            if change:
                parts.append(
                    f"`{algorithm}` with {size}: {statistics.median(change):+.1f} % "
                    f"({min(change):+.1f} to {max(change):+.1f})"
                )
    return paragraph(
        f"Measured time of a step with fewer hints against {full}, median and range over "
        f"{len(shapes)} shapes: {'; '.join(parts)}."
    )


def prefill(records: ClientRecords) -> list[str]:
    record = records.serving()
    if record is None:
        return _unmeasured(f"python benchmarks/serving.py --out {SERVING}")
    found = serving.prefill(record)
    parts = [f"{r.label}: {r.ratio:.2f}x" for r in found]
    verdict = "holds" if all(r.holds for r in found) else "falls short"
    return paragraph(
        "Time per valid score of causal windows, without hints, over that of the decode call at "
        f"its fastest batch: {', '.join(parts)}; need at most {serving.MOST}x: {verdict}."
    )


def _no_ranks() -> list[str]:
    return paragraph(f"*No record yet: the commands above make {' and '.join(GPU_RANKS)}.*")


def scaling_times(records: ClientRecords) -> list[str]:
    lines: list[str] = []
    for record in records.ranks():
        lines += [*paragraph(f"*{conditions(record)}, NCCL {record['nccl']}.*"), ""]
        lines += scaling.times_table(record)
    return lines[:-1] or _no_ranks()


def scaling_verdict(records: ClientRecords) -> list[str]:
    measured = records.ranks()
    if not measured:
        return _no_ranks()
    lines = []
    for found in scaling.verdicts(measured[-1]):
        slower = [f"{label} ({ratio:.2f}x)" for label, ratio in found.ratios if ratio < 1]
        text = (
            f'* `{found.method}`, `return_="{found.return_}"`: ahead of all-gathering the scores '
            f"in {len(found.ratios) - len(slower)} of {len(found.ratios)} cells"
        )
        lines += paragraph(text + (f"; behind at {', '.join(slower)}." if slower else "."), "  ")
    return lines


def scaling_model(records: ClientRecords) -> list[str]:
    measured = records.ranks()
    return list(scaling.model_tables(measured, MODEL_KEYS))[:-1] if measured else _no_ranks()


def links(records: ClientRecords) -> list[str]:
    """Python: the constants of gvr_topk/distributed/model.py."""
    lines = []
    for kind, names in (("cuda", GPU_RANKS), ("cpu", CPU_RANKS)):
        measured = records.ranks(names)
        if measured:
            link = scaling.Inputs.read(measured).link
            figures = (f"{x:.2g}" for x in (link.base, link.hop, link.bandwidth))
            numbers = ", ".join(figures).replace("e+", "e")
            about = f"{measured[-1]['backend']}, {conditions(measured[-1])}"
        else:
            numbers, about = _GUESSED[kind], "orders of magnitude, not measured"
        base, hop, bandwidth = numbers.split(", ")
        lines += [f"    # {line}" for line in paragraph(about, width=94)]
        lines.append(f'    "{kind}": Link(base={base}, hop={hop}, bandwidth={bandwidth}),')
    return ["LINKS = {", *lines, "}"]


BLOCKS = {
    "decode": decode,
    "serving": serving_calls,
    "hint-size": hint_sizes,
    "prefill": prefill,
    "scaling-times": scaling_times,
    "scaling-verdict": scaling_verdict,
    "scaling-model": scaling_model,
    "links": links,
}
