# SPDX-License-Identifier: Apache-2.0
"""What the serving shapes cost beside a plain step: places, differences, fewer hints, prefill.

\b
    python benchmarks/serving.py --out serving.json                # on a GPU; --device cpu without
    python benchmarks/serving.py --show serving.json               # the tables of a record

Rows drift: consecutive ones share most of their Top-K, which the JSON records. Times are medians of
CUDA-graph replays over cold buffers, as in gvr_topk.bench; the outputs of the last replay, of every
buffer, are compared with the exact Top-K.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

# As a script it finds gvr_topk here where it is not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import gvr_topk
from gvr_topk.bench import environment, exact
from gvr_topk.bench import serving as records
from gvr_topk.bench.results import ResultsError
from gvr_topk.bench.runner import without_folder
from gvr_topk.bench.timing import CpuTimer, CudaTimer, Timer, buffer_count

DRIFT = 0.25  # of the standard deviation, from row to row
PAGE_SIZES = (64, 1)
HINT_SIZES = (512, 256, 64)
Step = Callable[[Tensor], Tensor]


def drifting(buffers: int, rows: int, n: int, device: torch.device) -> list[Tensor]:
    """[rows, n] scores for each buffer, each a little off the one before."""
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.randn(rows, n, generator=generator, device=device)
    result = []
    for _ in range(buffers):
        noise = torch.randn(rows, n, generator=generator, device=device)
        scores = (scores + DRIFT * noise) / (1 + DRIFT**2) ** 0.5
        result.append(scores)
    return result


def decode_steps(rows: int, n: int, k: int, device: torch.device) -> Iterator[tuple[str, Step]]:
    slots = torch.arange(rows - 1, -1, -1, device=device)
    lengths = torch.full((rows,), n, dtype=torch.int32, device=device)
    offsets = torch.arange(rows, device=device) * n

    def cache(hint_size: int = k) -> gvr_topk.TopKCache:
        return gvr_topk.TopKCache(1, rows, k, hint_size=hint_size, device=device)

    def table(page_size: int) -> Tensor:
        order = torch.randperm(rows * (n // page_size), device=device)
        return order.reshape(rows, n // page_size).to(torch.int32)

    yield records.PLAIN, lambda scores: gvr_topk.topk_indices(scores, k, lengths=lengths)
    state = cache()
    yield records.STEP, lambda scores: state.step(scores, 0, slots, lengths)
    for page_size in PAGE_SIZES:
        paged, pages = cache(), table(page_size)
        yield (
            f"step_kv, pages of {page_size}",
            lambda scores, c=paged, t=pages, s=page_size: (
                c.step_kv(scores, 0, slots, lengths, page_table=t, page_size=s).indices
            ),
        )
    ragged = cache()
    yield (
        "step_kv, ragged",
        lambda scores: ragged.step_kv(scores, 0, slots, lengths, offsets=offsets).indices,
    )
    compared = cache()
    yield (
        "step_difference",
        lambda scores: compared.step_difference(scores, 0, slots, lengths).indices,
    )
    for algorithm in ("auto", "gvr"):
        for hint_size in (k, *HINT_SIZES):
            if hint_size == k and algorithm == "auto":
                continue  # the step above
            narrow = cache(hint_size)
            name = "step" if algorithm == "auto" else f"step, {algorithm}"
            yield (
                f"{name}, {hint_size} hints",
                lambda scores, c=narrow, a=algorithm: c.step(
                    scores, 0, slots, lengths, algorithm=a
                ),
            )


def prefill_steps(rows: int, n: int, k: int, device: torch.device) -> Iterator[tuple[str, Step]]:
    """Causal windows of a chunk: row i sees n - rows + i + 1 scores."""
    ends = causal_ends(rows, n, device)
    yield records.PREFILL, lambda scores: gvr_topk.topk_indices(scores, k, lengths=ends)
    request = torch.zeros(rows, dtype=torch.int32, device=device)
    pages = torch.randperm(n // 64, device=device).to(torch.int32)[None]
    yield (
        f"{records.PREFILL}, pages and a map",
        lambda scores: gvr_topk.topk_kv(
            scores, k, lengths=ends, row_to_request=request, windows_per_row=True,
            page_table=pages, page_size=64,
        ).indices,
    )  # fmt: skip


def causal_ends(rows: int, n: int, device: torch.device) -> Tensor:
    return torch.arange(n - rows + 1, n + 1, dtype=torch.int32, device=device)


@dataclass
class Bench:
    """Settings, the clock, and the record that grows."""

    out: Path
    device: torch.device
    timer: Timer
    replays: int
    k: int
    budget: float | None
    began: float = field(default_factory=perf_counter)

    def __post_init__(self) -> None:
        self.record: dict[str, Any] = {
            "schema": records.SCHEMA,
            "kind": records.KIND,
            "device": self.device.type,
            "arguments": [without_folder(argument) for argument in sys.argv[1:]],
            "environment": environment.describe(),
            "entries": [],
            "skipped": [],
        }

    def decode(self, rows: int, n: int) -> None:
        count = buffer_count(4 * rows * n, self.device)
        buffers = drifting(max(count, 2), rows, n, self.device)
        expected = [exact.exact_topk(scores, self.k) for scores in buffers]
        share = float(exact.overlap(expected[0], expected[1]).mean())
        shape = {"rows": rows, "n": n, "k": self.k, "overlap": round(share, 4)}
        for name, step in decode_steps(rows, n, self.k, self.device):
            self._measure({**shape, "call": name}, step, buffers, expected, rows * n)

    def prefill(self, rows: int, n: int) -> None:
        buffers = drifting(1, rows, n, self.device)
        ends = causal_ends(rows, n, self.device)
        beyond = torch.arange(n, device=self.device) >= ends.unsqueeze(1)
        expected = [exact.exact_topk(buffers[0].masked_fill(beyond, -torch.inf), self.k)]
        shape = {"rows": rows, "n": n, "k": self.k, "overlap": None}
        for name, step in prefill_steps(rows, n, self.k, self.device):
            self._measure({**shape, "call": name}, step, buffers, expected, int(ends.sum()))

    def _measure(
        self,
        shape: dict[str, Any],
        step: Step,
        buffers: list[Tensor],
        expected: list[Tensor],
        valid: int,
    ) -> None:
        """valid: scores that the call has to look at."""
        if self.budget is not None and perf_counter() - self.began > self.budget:
            self.record["skipped"].append(shape)
            return
        calls = [lambda scores=scores: step(scores) for scores in buffers]
        timing, answers = self.timer.cold(calls, buffers[0].nbytes, self.replays)
        pairs = zip(answers, expected, strict=True)
        self.record["entries"].append(
            {
                **shape,
                **timing.to_json(),
                "scores_per_us": round(valid / timing.median_us, 1),
                "exact": all(exact.same_indices(given, best) for given, best in pairs),
            }
        )
        self._write()

    def _write(self) -> None:
        self.record["seconds"] = round(perf_counter() - self.began, 1)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_name(self.out.name + ".partial")
        partial.write_text(json.dumps(self.record, indent=1) + "\n")
        os.replace(partial, self.out)


def show(record: dict[str, Any]) -> None:
    console = Console() if Console().is_terminal else Console(width=160)
    lines = list(records.table(record))
    table = Table(title="us per call (over those of step)")
    for column in lines[0]:
        table.add_column(column, justify="left" if column == "call" else "right")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)
    for entry in record["entries"]:
        if entry["call"].startswith("prefill"):
            times = f"{entry['median_us']:.0f} us, {entry['scores_per_us']:.0f} scores per us"
            console.print(f"{entry['call']}, {records.label(entry)}: {times}")
    for found in records.prefill(record):
        verdict = "pass" if found.holds else "falls short"
        console.print(
            f"prefill {found.label}: {found.ratio:.2f}x the decode kernel's time per score, "
            f"need <= {records.MOST}: {verdict}"
        )
    if record["skipped"]:
        console.print(f"{len(record['skipped'])} calls were not measured for want of time")
    for line in records.failures(record):
        print(f"failed: {line}", file=sys.stderr)


def _fail(message: object) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    return typer.Exit(2)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    out: Annotated[Path | None, typer.Option(help="The JSON to write.")] = None,
    show_record: Annotated[
        Path | None, typer.Option("--show", help="Only print the tables of this JSON.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    replays: Annotated[int, typer.Option(min=1, help="Samples of each time.")] = 30,
    rows: Annotated[list[int], typer.Option(min=1, help="Batch sizes of decode steps.")] = [  # noqa: B006
        1, 16, 64, 512,
    ],
    n: Annotated[list[int], typer.Option(help="Row lengths.")] = [65536, 131072],  # noqa: B006
    k: Annotated[int, typer.Option(help="Winners per row.")] = 2048,
    prefill_rows: Annotated[int, typer.Option(min=1, help="Rows of the prefill chunk.")] = 4096,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which nothing more is measured.")
    ] = None,
) -> None:  # fmt: skip
    if (out is None) == (show_record is None):
        raise _fail("need --out FILE to measure, or --show FILE")
    if out is None:
        assert show_record is not None
        try:
            record = records.load(show_record)
        except ResultsError as error:
            raise _fail(error) from error
        show(record)
        raise typer.Exit(1 if records.failures(record) else 0)
    if device not in ("cuda", "cpu"):
        raise _fail(f"--device: got {device}, need cuda or cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise _fail("--device: got cuda, but torch sees no CUDA device; use --device cpu")
    if k <= max(HINT_SIZES) or min(n) < k + prefill_rows or any(size % 64 for size in n):
        raise _fail(
            f"--k, --n, --prefill-rows: got {k}, {n}, {prefill_rows}, need k > {max(HINT_SIZES)}, "
            "n >= k + prefill-rows, and multiples of 64 for n"
        )
    timer: Timer = CudaTimer() if device == "cuda" else CpuTimer()
    bench = Bench(out, torch.device(device), timer, replays, k, budget)
    for length in n:
        for batch in rows:
            bench.decode(batch, length)
        bench.prefill(prefill_rows, length)
    if not bench.record["entries"]:
        raise _fail(f"--budget: got {budget}, which setting up took; need more seconds")
    show(bench.record)
    print(f"{len(bench.record['entries'])} calls in {bench.record['seconds']} s: {out}")
    raise typer.Exit(1 if records.failures(bench.record) else 0)


if __name__ == "__main__":
    app()
