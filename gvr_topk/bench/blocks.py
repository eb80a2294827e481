# SPDX-License-Identifier: Apache-2.0
"""The blocks of the documentation that hold measured numbers, each a text made from the records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import serving
from .cells import DTYPES, HOSTILE_HINTS, KIB, Cell, size_label
from .dispatch import decisions
from .markdown import markdown_table as _table
from .markdown import paragraph as _paragraph
from .published import FLOOR_AND_BEST
from .results import Entry, Results, ResultsError, quotient
from .targets import judge

if TYPE_CHECKING:
    from .report import Records

_WORTH_NAMING = 10.0  # per cent
_NAMES = {"auto": "gvr_topk"}
_KINDS_OF_ROWS = {
    "normal": "random",
    "plateau": "a plateau of exact zeros (ReLU) that holds the K-th place",
    "equal": "all scores equal",
    "few-values": "a dozen distinct values",
    "same-prefix": "the 16 leading bits are the same",
    "ascending": "ascending",
    "descending": "descending",
    "one-tile": "all winners side by side",
    "infinities": "fewer +inf than K, as many -inf, some NaN",
}
_HEADLINE = ((1, 64), (1, 1024), (16, 128), (64, 64), (128, 1024), (512, 64))  # rows, N / 1024


def _us(time: float | None) -> str:
    if time is None:
        return ""
    return f"{time:.1f}" if time < 99.5 else f"{time:.0f}"


def _span(values: Sequence[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def _name(contender: str) -> str:
    return _NAMES.get(contender, contender)


def _conditions(results: Results) -> str:
    environment = results.header["environment"]
    gpu = environment["gpu"]
    return (
        f"{gpu['name']}, {gpu['sm_count']} SMs, driver {gpu['driver']}, "
        f"CUDA {environment['torch_cuda']}, torch {environment['torch']}, "
        f"{environment['date'][:10]}, sources {environment['source_sha256'][:12]}"
    )


def headline(records: Records) -> list[str]:
    grid = records.suite("grid")
    names = [n for n in ("floor", "auto", "torch.topk", "flashinfer") if n in grid.contenders]
    lines = []
    for rows, kib in _HEADLINE:
        entry = _at(grid, rows, 1024 * kib, 2048)
        times = [f"{time} us" if (time := _us(entry.time(name))) else "" for name in names]
        lines.append(
            [
                f"{rows} x {size_label(1024 * kib)}",
                *times,
                _times(entry.ratio("torch.topk", "auto")),
            ]
        )
    return _table(["rows x N, K = 2048", *map(_name, names), "torch.topk / gvr_topk"], lines)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _at(results: Results, rows: int, n: int, k: int) -> Entry:
    for entry in results.entries:
        cell = entry.cell
        if (cell.rows, cell.n, cell.k, cell.hint, cell.dtype) == (rows, n, k, "real", "fp32"):
            return entry
    raise ResultsError(
        f"the {results.header['suite']} record lacks {rows} x {size_label(n)}, K {k}"
    )


def conditions(records: Records) -> list[str]:
    return _paragraph(f"*{_conditions(records.suite('grid'))}.*")


def against_torch(records: Records) -> list[str]:
    ratios = _ratios(records.suite("grid").entries, "torch.topk", "auto")
    slower = [label for label, ratio in ratios if ratio <= 1]
    least, most = min(ratios, key=lambda r: r[1]), max(ratios, key=lambda r: r[1])
    verdict = "in all of them" if not slower else f"not in {', '.join(slower)}"
    return _paragraph(
        f"Against torch.topk in the {len(ratios)} cells of the grid: faster {verdict}, by a factor "
        f"of {least[1]:.1f} ({least[0]}) to {most[1]:.1f} ({most[0]}), "
        f"{statistics.geometric_mean(r for _, r in ratios):.1f} in the geometric mean."
    )


def _ratios(entries: Iterable[Entry], over: str, under: str) -> list[tuple[str, float]]:
    found = [(entry.cell.label, entry.ratio(over, under)) for entry in entries]
    return [(label, ratio) for label, ratio in found if ratio is not None]


def _published(results: Results) -> list[tuple[Cell, float, float]]:
    """(cell, our time, the best published time), where both are known."""
    found = []
    for entry in results.entries:
        cell, time = entry.cell, entry.time("auto")
        pair = FLOOR_AND_BEST.get(cell.k, {}).get((cell.rows, cell.n))
        if pair is not None and time is not None:
            found.append((cell, time, pair[1]))
    return found


def public_kernels(records: Records) -> list[str]:
    """Where the fastest of the public kernels is faster, by N."""
    cells = _published(records.suite("grid"))
    behind = [(cell, ours / best) for cell, ours, best in cells if ours >= best]
    if not behind:
        return _paragraph(
            f"* **Public kernels**: in all {len(cells)} cells in which nine of them were measured "
            "on an H200, gvr_topk is faster than the fastest.",
            indent="  ",
        )
    by_length = []
    for n in sorted({cell.n for cell, _, _ in cells}):
        count = sum(cell.n == n for cell, _ in behind)
        if count:
            by_length.append(f"{count} of {sum(c.n == n for c, _, _ in cells)} at {size_label(n)}")
    widest = max(behind, key=lambda b: b[1])
    return _paragraph(
        f"* **Public kernels.** Of the {len(cells)} cells in which nine of them were measured on "
        f"an H200, gvr_topk is faster than the fastest in {len(cells) - len(behind)} and "
        f"slower in {', '.join(by_length)}; at worst {widest[1]:.2f} times as slow "
        f"({widest[0].label}).",
        indent="  ",
    )


def hostile_rows(records: Records) -> list[str]:
    """Rows on which auto loses to torch.topk."""
    results = records.suite("adversarial")
    hard = [e for e in results.entries if e.cell.data != "normal"]
    ratios = _ratios(hard, "auto", "torch.topk")
    lost = sorted({e.cell.data for e in hard if (e.ratio("auto", "torch.topk") or 0) > 1})
    if not lost:
        return _paragraph(
            f"* **Rows made to defeat a guess** cost time, but in all {len(ratios)} measured cells "
            "`auto` stays faster than torch.topk.",
            indent="  ",
        )
    worst = max(ratios, key=lambda r: r[1])
    names = "; ".join(_KINDS_OF_ROWS[kind] for kind in _kinds_in_order(hard) if kind in lost)
    return _paragraph(
        f"* **Rows made to defeat a guess.** In {sum(r > 1 for _, r in ratios)} of {len(ratios)} "
        f"measured cells `auto` is slower than torch.topk, at worst {worst[1]:.1f} times "
        f"({worst[0]}). Such rows: {names}.",
        indent="  ",
    )


def _kinds_in_order(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(e.cell.data for e in entries))


def state_cost(records: Records) -> list[str]:
    entries = records.suite("state").entries
    step = [ratio for _, ratio in _ratios(entries, "step", "op")]
    values = [ratio for _, ratio in _ratios(entries, "op-values", "op")]
    served = serving.step_over_plain(records.clients.serving())
    also = f" ({_span(served, 2)} with slots and lengths)" if served else ""
    return _paragraph(
        f"* **State and values** cost time: `TopKCache.step` takes {_span(step, 2)} times as long "
        f"as the bare operator{also}, values beside indices {_span(values, 2)} times.",
        indent="  ",
    )


def hint_worth(records: Records) -> list[str]:
    entries = records.suite("issue").entries
    change = [100 * (ratio - 1) for _, ratio in _ratios(entries, "auto", "auto-nohint")]
    costs = [
        with_hint - without
        for entry in entries
        if (with_hint := entry.time("stream")) is not None
        and (without := entry.time("stream-nohint")) is not None
    ]
    little = min(change) > -_WORTH_NAMING
    verdict = "is worth little here" if little else "does not always pay"
    return _paragraph(
        f"* **The hint {verdict}.** A sample of the row itself also sets a threshold. Made to "
        f"gather the hint, `stream` takes {statistics.median(costs):.1f} us more in the median of "
        f"{len(costs)} shapes ({_span(costs)}); `auto`, which may leave a hint alone, takes "
        f"{_span(change)} % more with one than without.",
        indent="  ",
    )


def grid_tables(records: Records) -> list[str]:
    return _tables_by_k(records.suite("grid").entries)


def _tables_by_k(entries: Sequence[Entry]) -> list[str]:
    """Per K: microseconds and multiples of the floor, rows down, N across."""
    text: list[str] = []
    for k in sorted({entry.cell.k for entry in entries}, reverse=True):
        here = {(e.cell.rows, e.cell.n): e for e in entries if e.cell.k == k}
        sizes = sorted({n for _, n in here})
        lines = []
        for rows in sorted({r for r, _ in here}):
            cells = [here.get((rows, n)) for n in sizes]
            lines.append([str(rows), *(_with_multiple(entry) for entry in cells)])
        text += ["", f"**K = {k}**", "", *_table(["rows", *map(size_label, sizes)], lines)]
    return [*text[1:], ""]


def _with_multiple(entry: Entry | None) -> str:
    time = entry.time("auto") if entry else None
    if entry is None or time is None:
        return ""
    multiple = entry.ratio("auto", "floor")
    return _us(time) + (f" ({multiple:.1f}x)" if multiple else "")


def contenders(records: Records) -> list[str]:
    issue = records.suite("issue")
    lines = [
        [
            f"{e.cell.rows} x {size_label(e.cell.n)}",
            *(_us(e.time(name)) for name in issue.contenders),
        ]
        for e in issue.entries
    ]
    return _table(["rows x N", *issue.contenders], lines)


def warm(records: Records) -> list[str]:
    names = [n for n in ("floor", "auto", "torch.topk") if n in records.suite("issue").contenders]
    lines = [
        [
            f"{e.cell.rows} x {size_label(e.cell.n)}",
            *(f"{_us(e.time(name))} / {_us(e.time(name, 'warm'))}" for name in names),
        ]
        for e in records.suite("issue").entries
    ]
    return _table(["rows x N, cold / warm", *map(_name, names)], lines)


def paper_over_ours(records: Records) -> list[str]:
    """The paper's algorithm beside ours with its answer as a hint, and over the hint's overlap."""
    hints = records.suite("hints")
    ratios = [
        (f"{d.rows} x {size_label(d.n)}", min(times) / d.auto_us)
        for d in decisions(records.suite("dispatch"))
        if (times := d.times("gvr", hint=True).values())
    ]
    least, most = min(ratios, key=lambda r: r[1]), max(ratios, key=lambda r: r[1])
    spans = []
    for name in ("gvr", "stream", "auto"):
        by_shape: dict[Cell, list[float]] = {}
        for entry in hints.entries:
            time = entry.time(name)
            if time is not None:
                by_shape.setdefault(replace(entry.cell, hint="real"), []).append(time)
        worst = max(max(times) / min(times) for times in by_shape.values())
        spans.append(f"{worst:.2f}x for `{name}`")
    return _paragraph(
        f"With the real hint and its best number of CTAs the paper's algorithm (`gvr`) takes "
        f"{least[1]:.1f} ({least[0]}) to {most[1]:.1f} ({most[0]}) times as long as `auto`, in "
        f"{len(ratios)} shapes. Between the kindest and the most hostile hint a shape's time "
        f"changes by up to {', '.join(spans)}."
    )


def hint_ablation(records: Records) -> list[str]:
    """Time by kind of hint: real, none, hostile."""
    hints = records.suite("hints")
    kinds = ("real", "none", *HOSTILE_HINTS, "badrow")
    at = {e.cell: e for e in hints.entries}
    lines = []
    cells = [e.cell for e in hints.entries if e.cell.hint == "real"]
    for cell in sorted(cells, key=lambda c: (c.n, c.rows)):
        for name in ("auto", "stream", "gvr"):
            found = (at.get(replace(cell, hint=kind)) for kind in kinds)
            times = [_us(entry.time(name)) if entry else "" for entry in found]
            lines.append([f"{cell.rows} x {size_label(cell.n)}", name, *times])
    heads = ["rows x N", "algorithm", "real", "none", "worst K", "all zeros", "random"]
    heads += ["another row's", "one bad row"]
    return _table(heads, lines)


def hint_choice(records: Records) -> list[str]:
    """In how many cells auto looks at its hint, where the record says so."""
    found = []
    for suite in ("grid", "dispatch"):
        plans = [e.plan("auto") for e in records.suite(suite).entries if e.plan("auto")]
        if plans:
            ignored = sum(plan["hint"] == "ignored" for plan in plans)
            found.append(f"{ignored} of the {len(plans)} cells of `{suite}`")
    if not found:
        return ["This record does not say in which cells `auto` ignores its hint."]
    return _paragraph(f"`auto` ignores the hint that it is given in {' and '.join(found)}.")


def short_tables(records: Records) -> list[str]:
    return _tables_by_k(records.suite("short").entries)


def adversarial(records: Records) -> list[str]:
    """Time of auto by kind of row, and over its time on random rows."""
    results = records.suite("adversarial")
    shapes = list(dict.fromkeys((e.cell.rows, e.cell.n) for e in results.entries))
    kinds = _kinds_in_order(results.entries)
    at = {(e.cell.data, e.cell.rows, e.cell.n): e for e in results.entries}
    lines = []
    for kind in kinds:
        texts = []
        for shape in shapes:
            entry = at.get((kind, *shape))
            time = entry.time("auto") if entry else None
            over = results.against(entry, "auto", data="normal") if entry else None
            texts.append(_us(time) + (f" ({over:.1f}x)" if over and kind != "normal" else ""))
        text = _KINDS_OF_ROWS[kind]
        short = "random" if kind == "normal" else kind  # its label in the plot
        lines.append([text if text == short else f"{text} (`{short}`)", *texts])
    return _table(["rows", *(f"{r} x {size_label(n)}" for r, n in shapes)], lines)


def dtypes(records: Records) -> list[str]:
    """Time of auto by dtype, and how much faster than fp32."""
    results = records.suite("dtypes")
    shapes = list(dict.fromkeys((e.cell.rows, e.cell.n, e.cell.data) for e in results.entries))
    at = {((e.cell.rows, e.cell.n, e.cell.data), e.cell.dtype): e for e in results.entries}
    lines = []
    for shape in shapes:
        full = at[shape, "fp32"].time("auto")
        texts = []
        for dtype in DTYPES:
            time = at[shape, dtype].time("auto")
            gain = quotient(full, time)
            texts.append(_us(time) + (f" ({gain:.2f}x)" if gain and dtype != "fp32" else ""))
        lines.append([f"{shape[0]} x {size_label(shape[1])}", *texts])
    return _table(["rows x N", *DTYPES], lines)


def dense(records: Records) -> list[str]:
    """How far the time of auto falls back as K or N grows."""
    results = records.suite("dense")
    texts = []
    for verdict in judge(results):
        fall = 100 * (1 - 1 / verdict.worst.ratio)
        texts.append(
            f"over {verdict.name[-1]} a larger one is at most {fall:.1f} % faster than a smaller "
            f"one ({verdict.worst.label})"
        )
    return _paragraph(f"In {len(results.entries)} cells: {'; '.join(texts)}.")


def dense_table(records: Records) -> list[str]:
    """Every second step of the sweep, so that the page stays readable."""
    plain = records.suite("dense").entries
    text: list[str] = []
    for label, axis, entries in (
        ("N = 64K", "k", [e for e in plain if e.cell.n == 64 * KIB]),
        ("K = 2048", "n", [e for e in plain if e.cell.k == 2048]),
    ):
        values = sorted({getattr(e.cell, axis) for e in entries})[::2]
        at = {(e.cell.rows, getattr(e.cell, axis)): e for e in entries}
        lines = [
            [str(rows), *(_us(_time_of(at.get((rows, v)))) for v in values)]
            for rows in sorted({e.cell.rows for e in entries})
        ]
        heads = [size_label(v) if axis == "n" else str(v) for v in values]
        text += ["", *_table([f"rows, {label}, {axis.upper()} =", *heads], lines)]
    return [*text[1:], ""]


def _time_of(entry: Entry | None) -> float | None:
    return entry.time("auto") if entry else None


def state(records: Records) -> list[str]:
    """Values and the cache's step beside the bare operator."""
    lines = []
    for entry in records.suite("state").entries:
        texts = [_us(entry.time("op"))]
        for name in ("op-values", "step", "step-values"):
            over = entry.ratio(name, "op")
            texts.append(_us(entry.time(name)) + (f" ({over:.2f}x)" if over else ""))
        lines.append([f"{entry.cell.rows} x {size_label(entry.cell.n)}", *texts])
    heads = ["rows x N", "indices", "values and indices", "`TopKCache.step`", "step with values"]
    return _table(heads, lines)


def dispatch(records: Records) -> list[str]:
    """How much time the choice of auto loses to the best one."""
    found = decisions(records.suite("dispatch"))
    mean = statistics.geometric_mean(d.regret for d in found)
    near = sum(d.regret <= 1.05 for d in found)
    return _paragraph(
        f"In {len(found)} shapes `auto` takes {mean:.2f} times as long as the best alternative in "
        f"the geometric mean, and in {near} at most 5 % longer."
    )


def dispatch_table(records: Records) -> list[str]:
    """The shapes in which another choice was more than 5 % faster."""
    results = records.suite("dispatch")
    lines = []
    for decision in sorted(decisions(results), key=lambda d: -d.regret):
        if decision.regret > 1.05:
            lines.append(
                [
                    f"{decision.rows} x {size_label(decision.n)}",
                    _us(decision.auto_us),
                    decision.taken,
                    _us(decision.best.time_us),
                    str(decision.best),
                    f"{decision.regret:.2f}x",
                ]
            )
    if not lines:
        return ["No shape has an alternative that is more than 5 % faster."]
    heads = ["rows x N", "`auto`, us", "which took", "best, us", "which is", "regret"]
    return _table(heads, lines)


def targets(records: Records) -> list[str]:
    lines = []
    for results in records.suites():
        for verdict in judge(results):
            sign = "at most" if verdict.at_most else "at least"
            worst = verdict.worst if verdict.judged else None
            decided = f"{verdict.shown(worst)}, {worst.label}" if worst else ""
            lines.append(
                [
                    f"{verdict.name} ({results.header['suite']})",
                    f"{sign} {verdict.need:g}{verdict.unit}",
                    "; ".join(filter(None, (decided, verdict.note))),
                    f"{verdict.cells_passed} of {len(verdict.measured)}" if worst else "",
                    verdict.outcome if verdict.passed else f"**{verdict.outcome}**",
                ]
            )
    return _table(["target", "need", "worst cell", "cells that hold", "verdict"], lines)


def tests(records: Records) -> list[str]:
    return _evidence(records.tests)


def two_gpu_tests(records: Records) -> list[str]:
    record = records.two_gpu_tests
    if record is None:
        command = "python -m gvr_topk bench evidence --out h200x2-tests.json -- tests/distributed"
        return _paragraph(f"*No record yet: `{command}` on two GPUs makes it.*")
    return _evidence(record)


def _evidence(record: dict[str, Any]) -> list[str]:
    totals, environment = record["totals"], record["environment"]
    reasons = "; ".join(f"{count} x {reason}" for reason, count in record["skipped"].items())
    files = Counter(name.partition("::")[0].removeprefix("tests.") for name in record["failed"])
    failed = ", ".join(f"{count} in {name}" for name, count in files.items())
    return _paragraph(
        f"{totals['passed']} passed, {totals['failed']} failed"
        + (f" ({failed})" if failed else "")
        + f", {totals['errors']} errors, {totals['skipped']} skipped"
        + (f" ({reasons})" if reasons else "")
        + f", in {record['seconds']:.0f} s on {environment['gpu']['name']}, "
        f"torch {environment['torch']}, sources {environment['source_sha256'][:12]}.",
    )


def demo(records: Records) -> list[str]:
    record = records.demo
    found = record["summary"]
    return _paragraph(
        f"{found['exact_steps']} of {found['steps']} recorded steps exact on "
        f"{record['device_name']}, K = {record['k']}: "
        f"{found['step_us']:.1f} us per `TopKCache.step` against {found['torch_us']:.1f} us of "
        "torch.topk, "
        f"{100 * found['overlap']:.0f} % of each answer known from the step before, "
        f"{found['survivors']:,.0f} scores above the guess and {found['passes']:.2f} reads of the "
        "row in the mean.",
    )


BLOCKS: dict[str, Callable[[Records], list[str]]] = {
    "headline": headline,
    "conditions": conditions,
    "against-torch": against_torch,
    "public-kernels": public_kernels,
    "hostile-rows": hostile_rows,
    "state-cost": state_cost,
    "hint-worth": hint_worth,
    "grid": grid_tables,
    "contenders": contenders,
    "warm": warm,
    "paper-and-ours": paper_over_ours,
    "hints": hint_ablation,
    "hint-choice": hint_choice,
    "short": short_tables,
    "adversarial": adversarial,
    "dtypes": dtypes,
    "dense": dense,
    "dense-table": dense_table,
    "state": state,
    "dispatch": dispatch,
    "dispatch-table": dispatch_table,
    "targets": targets,
    "tests": tests,
    "two-gpu-tests": two_gpu_tests,
    "demo": demo,
}
