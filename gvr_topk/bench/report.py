# SPDX-License-Identifier: Apache-2.0
"""Every measured number and plot of the documentation, from the committed records alone.

A document holds marked blocks, `<!-- report:NAME -->` up to `<!-- /report -->`; what lies between
is the text of the block of that name. `refresh` writes them and draws the plots, `stale` names
what does not fit the records.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cells import Cell, size_label
from .published import FLOOR_AND_BEST
from .results import Entry, Results, ResultsError
from .targets import judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCUMENTS = ("README.md", "docs/*.md")
IMAGES = "docs/images"
_GRID, _ISSUE, _DEMO, _TESTS = (
    f"benchmarks/results/h200-{name}.json" for name in ("grid", "issue", "demo", "tests")
)
_TRACE = "gvr_topk/data/trace_A_layer6_cut.safetensors"
_BLOCK = re.compile(
    r"(?P<open>^<!-- report:(?P<name>[\w-]+) -->\n)(?P<text>.*?)(?P<close>^<!-- /report -->)",
    re.DOTALL | re.MULTILINE,
)
_WORTH_NAMING = 10.0  # per cent
_NAMES = {"auto": "gvr_topk"}
_HEADLINE = ((1, 64), (1, 1024), (16, 128), (64, 64), (128, 1024), (512, 64))  # rows, N / 1024


class Records:
    """The data that the documentation is made of, each file loaded once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def grid(self) -> Results:
        return Results.load(self.root / _GRID)

    @cached_property
    def issue(self) -> Results:
        return Results.load(self.root / _ISSUE)

    @cached_property
    def demo(self) -> dict[str, Any]:
        return _json(self.root / _DEMO)

    @cached_property
    def tests(self) -> dict[str, Any]:
        return _json(self.root / _TESTS)

    def digest(self, sources: Iterable[str]) -> str:
        """sha256 over the bytes of these files."""
        digest = hashlib.sha256()
        for source in sources:
            digest.update((self.root / source).read_bytes())
        return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Picture:
    """A figure and the files that it is drawn from, relative to the root."""

    sources: tuple[str, ...]
    draw: Callable[[Records], Figure | None]
    caption: Callable[[Records], str]


def refresh(root: Path) -> list[Path]:
    """Rewrites blocks and plots; the files that changed."""
    from . import plots

    records = Records(root)
    changed = []
    for path in _documents(root):
        before = path.read_text()
        after = rendered(before, records, path)
        if after != before:
            path.write_text(after)
            changed.append(path)
    for path in _stale_pictures(records):
        picture = PICTURES[path.stem]
        figure = picture.draw(records)
        if figure is None:
            raise ResultsError(f"{', '.join(picture.sources)}: nothing to draw {path.name} from")
        plots.save(figure, path, picture.caption(records), records.digest(picture.sources))
        changed.append(path)
    return changed


def stale(root: Path) -> list[str]:
    """What differs from the records, one line each; empty when all is current."""
    records = Records(root)
    found = []
    for path in _documents(root):
        text = path.read_text()
        for block in _BLOCK.finditer(text):
            if _text(block, records, path) != block["text"]:
                found.append(f"{path.relative_to(root)}: block {block['name']}")
    pictures = (path.relative_to(root) for path in _stale_pictures(records))
    return [*found, *(f"{path}: drawn from other data" for path in pictures)]


def rendered(text: str, records: Records, path: Path) -> str:
    """A document with the text of every block."""
    opened, closed = text.count("<!-- report:"), text.count("<!-- /report -->")
    if not opened == closed == len(_BLOCK.findall(text)):
        raise ValueError(
            f"{path}: got {opened} opening and {closed} closing markers that do not pair"
        )
    return _BLOCK.sub(lambda b: b["open"] + _text(b, records, path) + b["close"], text)


def _text(block: re.Match[str], records: Records, path: Path) -> str:
    if block["name"] not in BLOCKS:
        raise ValueError(
            f"{path}: got the block {block['name']!r}, need one of {', '.join(BLOCKS)}"
        )
    return "\n".join(BLOCKS[block["name"]](records)) + "\n"


def _documents(root: Path) -> list[Path]:
    return sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))


def _stale_pictures(records: Records) -> list[Path]:
    """Pictures that are missing or were drawn from other bytes."""
    from PIL import Image

    found = []
    for name, picture in PICTURES.items():
        path = records.root / IMAGES / f"{name}.png"
        source = None
        if path.is_file():
            with Image.open(path) as image:
                source = image.info.get("Source")
        if source != records.digest(picture.sources):
            found.append(path)
    return found


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)]


def _paragraph(text: str, indent: str = "") -> list[str]:
    """Lines as long as those of the documents; `indent` continues a list item."""
    return textwrap.wrap(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


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
    grid = records.grid
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
    return _paragraph(f"*{_conditions(records.grid)}.*")


def against_torch(records: Records) -> list[str]:
    ratios = _ratios(records.grid.entries, "torch.topk", "auto")
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


def short_rows(records: Records) -> list[str]:
    cells = _published(records.grid)
    behind = [cell for cell, ours, best in cells if ours >= best]
    by_length = []
    for n in sorted({cell.n for cell, _, _ in cells}):
        count = sum(cell.n == n for cell in behind)
        if count:
            by_length.append(f"{count} of {sum(c.n == n for c, _, _ in cells)} at {size_label(n)}")
    _, ours, best = next(c for c in cells if (c[0].rows, c[0].n, c[0].k) == (1, 8192, 2048))
    return _paragraph(
        f"* **Short rows.** Below 16K scores the fixed cost of a launch decides: {_us(ours)} us at "
        f"1 x 8K, K = 2048, where the fastest of nine public kernels took {_us(best)}. Of the "
        f"{len(cells)} cells in which those were measured on the same card, gvr_topk is faster in "
        f"{len(cells) - len(behind)} and slower in {', '.join(by_length) or 'none'}.",
        indent="  ",
    )


def hint_worth(records: Records) -> list[str]:
    entries = records.issue.entries
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
    """Per K: microseconds and multiples of the floor, rows down, N across."""
    text: list[str] = []
    entries = records.grid.entries
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
    issue = records.issue
    lines = [
        [
            f"{e.cell.rows} x {size_label(e.cell.n)}",
            *(_us(e.time(name)) for name in issue.contenders),
        ]
        for e in issue.entries
    ]
    return _table(["rows x N", *issue.contenders], lines)


def warm(records: Records) -> list[str]:
    names = [n for n in ("floor", "auto", "torch.topk") if n in records.issue.contenders]
    lines = [
        [
            f"{e.cell.rows} x {size_label(e.cell.n)}",
            *(f"{_us(e.time(name))} / {_us(e.time(name, 'warm'))}" for name in names),
        ]
        for e in records.issue.entries
    ]
    return _table(["rows x N, cold / warm", *map(_name, names)], lines)


def targets(records: Records) -> list[str]:
    lines = []
    for results in (records.issue, records.grid):
        for verdict in judge(results):
            sign = "at most" if verdict.at_most else "at least"
            worst = verdict.worst if verdict.judged else None
            lines.append(
                [
                    f"{verdict.name} ({results.header['suite']})",
                    f"{sign} {verdict.need:g}{verdict.unit}",
                    f"{verdict.shown(worst)}, {worst.label}" if worst else verdict.note,
                    f"{verdict.cells_passed} of {len(verdict.measured)}" if worst else "",
                    verdict.outcome if verdict.passed else f"**{verdict.outcome}**",
                ]
            )
    return _table(["target", "need", "worst cell", "cells that hold", "verdict"], lines)


def tests(records: Records) -> list[str]:
    record = records.tests
    totals, environment = record["totals"], record["environment"]
    reasons = "; ".join(f"{count} x {reason}" for reason, count in record["skipped"].items())
    return _paragraph(
        f"{totals['passed']} passed, {totals['failed']} failed, {totals['errors']} errors, "
        f"{totals['skipped']} skipped"
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
        f"{found['step_us']:.1f} us per step against {found['torch_us']:.1f} us of torch.topk, "
        f"{100 * found['overlap']:.0f} % of each answer known from the step before, "
        f"{found['survivors']:.0f} survivors staged and {found['passes']:.2f} reads of the row in "
        "the mean.",
    )


def _plot(name: str, results: Callable[[Records], Results]) -> Callable[[Records], Figure | None]:
    def draw(records: Records) -> Figure | None:
        from .plots import PLOTS

        return PLOTS[name](results(records))

    return draw


def _recorded_row(records: Records) -> Figure:
    from gvr_topk.traces import Trace

    from . import figures

    last = records.demo["steps"][-1]
    scores = Trace.load(records.root / _TRACE).scores(last["step"])
    return figures.row(scores, records.demo["k"], last["survivors"])


def _recorded_decode(records: Records) -> Figure:
    from . import figures

    return figures.decode(records.demo)


def _of_demo(records: Records) -> str:
    return f"{records.demo['trace']}, {records.demo['device_name']}, K = {records.demo['k']}"


PICTURES: dict[str, Picture] = {
    **{
        f"grid-{name}": Picture(
            (_GRID,), _plot(name, lambda r: r.grid), lambda r: r.grid.describe()
        )
        for name in ("headline", "time-over-n", "floor-multiple")
    },
    "issue-time-over-n": Picture(
        (_ISSUE,), _plot("time-over-n", lambda r: r.issue), lambda r: r.issue.describe()
    ),
    "algorithm-row": Picture((_DEMO, _TRACE), _recorded_row, _of_demo),
    "algorithm-decode": Picture((_DEMO,), _recorded_decode, _of_demo),
}

BLOCKS: dict[str, Callable[[Records], list[str]]] = {
    "headline": headline,
    "conditions": conditions,
    "against-torch": against_torch,
    "short-rows": short_rows,
    "hint-worth": hint_worth,
    "grid": grid_tables,
    "contenders": contenders,
    "warm": warm,
    "targets": targets,
    "tests": tests,
    "demo": demo,
}
