# SPDX-License-Identifier: Apache-2.0
"""Time per output token of a DeepSeek-V3.2-shaped decoder under different Top-K selections.

\b
    python benchmarks/decode.py --out decode.json              # on a GPU, about two minutes
    python benchmarks/decode.py --out decode.json --budget 150 # no further cell starts after 150 s
    python benchmarks/decode.py --quick --out decode.json      # tiny sizes, also without a GPU
    python benchmarks/decode.py --show decode.json             # the tables of a record

`gvr` and `auto` are steps of gvr_topk.nn.TopK, which stores each answer as the next hint; `radix`
and `auto, no state` are calls of gvr_topk.topk_indices. Each is one operator and one launch.
Every step of a variant is one CUDA graph of all layers. The variants take turns step by step, on
the same hidden states and caches, so that clocks and data are equal. In the last two steps the
selection of every variant and layer is compared with the exact one of the scores that it saw. All
drafts count as accepted: a step gives 1 + drafts tokens per request. The cells run in the order of
what they tell: one request without drafts first.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

# As a script it finds its own modules, and gvr_topk here where it is not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import gvr_topk
from benchmarks.decoder import (
    QUICK,
    Batch,
    Caches,
    Decoder,
    Layer,
    Select,
    Shape,
    evolving_states,
    plain_scores,
)
from gvr_topk.bench import environment, exact
from gvr_topk.bench.decoding import (
    KIND,
    PAPER,
    SCHEMA,
    STATELESS,
    cells,
    claimed,
    failures,
    gain,
    label_of,
    load,
    token_time,
    variants,
    verdicts,
)
from gvr_topk.bench.results import ResultsError
from gvr_topk.bench.runner import without_folder
from gvr_topk.bench.timing import summarize
from gvr_topk.nn import TopK

CONTEXTS = (16, 32, 64, 100, 128)  # in 1,024 keys
BATCHES = (1, 32)
DRAFTS = (0, 1, 3)
WARM_UP = 3
CHECKED = 2  # steps at the end
# Half a millisecond: the launch of a graph of some hundred kernels takes less.
_LAUNCH_CYCLES = 1_000_000


@dataclass(frozen=True)
class Variant:
    """A selection: `make(shape, batch, device)` gives it fresh state."""

    name: str
    make: Callable[[Shape, Batch, torch.device], Select]
    tie_rule: bool = True  # takes the lowest of equal scores; otherwise any of them


def _torch_topk(shape: Shape, batch: Batch, device: torch.device) -> Select:
    return lambda scores, layer, lengths: scores.topk(shape.k, sorted=False).indices


def _stateless(algorithm: str) -> Callable[[Shape, Batch, torch.device], Select]:
    def make(shape: Shape, batch: Batch, device: torch.device) -> Select:
        def select(scores: Tensor, layer: int, lengths: Tensor) -> Tensor:
            return gvr_topk.topk_indices(
                scores, shape.k, lengths=lengths, next_n=batch.next_n, algorithm=algorithm
            )

        return select

    return make


def _stateful(algorithm: str) -> Callable[[Shape, Batch, torch.device], Select]:
    def make(shape: Shape, batch: Batch, device: torch.device) -> Select:
        module = TopK(
            shape.k,
            batch.requests,
            layers=shape.layers,
            depth=batch.next_n,
            algorithm=algorithm,
            device=device,
        )
        slots = torch.arange(batch.requests, device=device)

        def select(scores: Tensor, layer: int, lengths: Tensor) -> Tensor:
            return module(scores, slots, lengths, layer=layer, next_n=batch.next_n)

        return select

    return make


def _no_selection(shape: Shape, batch: Batch, device: torch.device) -> Select:
    """Fixed positions: what the rest of the decoder takes."""
    spread = torch.linspace(0, batch.context - 1, shape.k, device=device).int()
    indices = spread.expand(batch.rows, -1).contiguous()
    return lambda scores, layer, lengths: indices


NO_SELECTION = "no selection"
VARIANTS = (
    Variant("torch.topk", _torch_topk, tie_rule=False),
    Variant("radix", _stateless("radix")),
    Variant("gvr", _stateful("gvr")),
    Variant("auto", _stateful("auto")),
    Variant(STATELESS, _stateless("auto")),
    Variant(NO_SELECTION, _no_selection),
)


class Run:
    """One variant on one batch: its own time, state and CUDA graph."""

    def __init__(self, variant: Variant, decoder: Decoder) -> None:
        self.variant, self.decoder = variant, decoder
        device = decoder.states.device
        self.time = torch.zeros(1, dtype=torch.int64, device=device)
        self.select = variant.make(decoder.shape, decoder.batch, device)
        self.selected: list[Tensor] = []
        self.samples: list[float] = []
        self.exact = True
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    def _step(self) -> None:
        _, self.selected = self.decoder.step(self.time, self.select)
        self.time.add_(1)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()
        self.time.zero_()

    def step(self, timed: bool) -> None:
        """Microseconds of one step go to `samples`."""
        if self._graph is None:
            began = perf_counter()
            self._step()
            elapsed = 1e6 * (perf_counter() - began)
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_LAUNCH_CYCLES)  # the graph is queued when the timed part begins
            start.record()
            self._graph.replay()
            end.record()
            end.synchronize()
            elapsed = 1e3 * start.elapsed_time(end)
        if timed:
            self.samples.append(elapsed)


@dataclass
class Settings:
    shape: Shape
    batches: list[Batch]
    steps: int
    correlation: float
    device: torch.device
    variants: tuple[Variant, ...] = VARIANTS
    dtype: torch.dtype = torch.bfloat16
    budget: float | None = None  # seconds
    arguments: list[str] = field(default_factory=list)


def measure(
    settings: Settings, out: Path, advance: Callable[[str], None] = lambda label: None
) -> dict[str, Any]:
    """Runs every batch and writes the record after each of them."""
    began = perf_counter()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "device": settings.device.type,
        "arguments": settings.arguments,
        "environment": environment.describe(),
        "shape": asdict(settings.shape),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "correlation": settings.correlation,
        "steps": settings.steps,
        "cells": [],
        "skipped": [],  # for want of time
    }
    generator = torch.Generator(settings.device).manual_seed(20260422)
    shape = settings.shape
    layers = [Layer(shape, generator, settings.dtype) for _ in range(shape.layers)]
    for batch in settings.batches:
        advance(batch.label)
        if settings.budget is not None and perf_counter() - began > settings.budget:
            record["skipped"].append(batch.label)
        else:
            record["cells"].append(_measure_batch(settings, layers, batch, generator))
        record["seconds"] = round(perf_counter() - began, 1)
        _write(record, out)
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()  # the graphs' pools and caches of another size
    advance("done")
    return record


@torch.inference_mode()
def _measure_batch(
    settings: Settings, layers: list[Layer], batch: Batch, generator: torch.Generator
) -> dict[str, Any]:
    shape, steps = settings.shape, WARM_UP + settings.steps
    # The capture runs one step before time is set back.
    caches = Caches(shape, batch, steps + 1, generator, settings.dtype)
    states = evolving_states(
        shape, batch, steps + 1, settings.correlation, generator, settings.dtype
    )
    decoder = Decoder(shape, layers, batch, caches, states)
    _check_scores(decoder)
    runs = [Run(variant, decoder) for variant in settings.variants]
    best: list[list[Tensor]] = []  # by checked step and layer
    for step in range(steps):
        for run in runs:
            run.step(timed=step >= WARM_UP)
            if step >= steps - CHECKED:
                expected = [exact.exact_topk(scores, shape.k) for scores in decoder.scores]
                run.exact = run.exact and _agrees(run, decoder.scores, expected)
                if run is runs[0]:
                    best.append(expected)
    before, last = best[-2:]
    overlaps = [
        float(exact.overlap(_newest(b, batch), _newest(a, batch)).mean())
        for a, b in zip(last, before, strict=True)
    ]
    results = []
    for run in runs:
        timing = summarize(run.samples, 1, "as in the decoder")
        name = run.variant.name
        results.append(
            {
                "variant": name,
                "step": timing.to_json(),
                "token_us": round(timing.median_us / batch.next_n, 3),
                "exact": None if name == NO_SELECTION else run.exact,
            }
        )
    return {
        **asdict(batch),
        "label": batch.label,
        "rows": batch.rows,
        "overlap": [round(share, 4) for share in overlaps],
        "results": results,
    }


def _newest(indices: Tensor, batch: Batch) -> Tensor:
    """Of each request the row of the step's last token."""
    return indices.view(batch.requests, batch.next_n, -1)[:, -1]


def _check_scores(decoder: Decoder) -> None:
    """The fused index scores are those of the definition, for the first request."""
    if not decoder.states.is_cuda:
        return
    s, batch = decoder.shape, decoder.batch
    rows, keys = slice(0, batch.next_n), decoder.caches.index[0][:1]
    generator = torch.Generator(keys.device).manual_seed(1)
    device = keys.device
    queries = torch.randn(
        batch.rows, s.index_heads, s.index_width, device=device, generator=generator
    )
    queries = queries.to(keys.dtype)
    weights = torch.randn(batch.rows, s.index_heads, device=device, generator=generator)
    lengths = torch.full((batch.requests,), batch.context - 1, device=device)
    from benchmarks.indexer_scores import score_into

    score_into(decoder.scores[0], queries, weights, decoder.caches.index[0], lengths)
    expected = plain_scores(queries[rows], weights[rows], keys, lengths[:1])
    if not torch.allclose(decoder.scores[0, rows], expected, rtol=1e-3, atol=0.1):
        raise RuntimeError("the fused index scores differ from their definition")


def _agrees(run: Run, scores: Tensor, expected: list[Tensor]) -> bool:
    """Whether the last step's selections are exact; `scores` are those that it saw, by layer."""
    for indices, seen, best in zip(run.selected, scores, expected, strict=True):
        same = exact.same_indices(indices, best)
        if not same and (run.variant.tie_rule or not exact.same_values(indices, seen, best)):
            return False
    return True


def _write(record: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, out)


# What a record says: gvr_topk/bench/decoding.py.


def tables(record: dict[str, Any]) -> Iterator[Table]:
    shape = record["shape"]
    table = Table(
        title=f"time per output token, {shape['layers']} layers, K {shape['k']}: "
        "us (percent lower than radix)",
        caption=f"{record['environment']['date']}, sources "
        f"{(record['environment']['source_sha256'] or 'unknown')[:12]}",
    )
    names = variants(record)
    for column in ("batch x context", "overlap", *names):
        table.add_column(column, justify="left" if column == "batch x context" else "right")
    for cell in cells(record):
        times = []
        for name in names:
            time, lower = token_time(cell, name), gain(cell, name, "radix")
            text = "NOT EXACT" if time is None else f"{time:.1f}"
            times.append(text if lower is None or name == "radix" else f"{text} ({lower:+.2f})")
        table.add_row(label_of(cell), f"{statistics.mean(cell['overlap']):.2f}", *times)
    yield table
    if record["device"] == "cuda" and (found := verdicts(record)):
        title = f"{claimed(record)} against radix, percent lower time per output token"
        targets = Table(title=title)
        for column in ("batch x context", "need", "measured", "verdict"):
            targets.add_column(column)
        for label, need, measured, holds in found:
            words = f">= {need:.2f}" if need else "> 0"
            verdict = "[green]pass" if holds else "[bold red]falls short"
            targets.add_row(label, words, f"{measured:.2f}", verdict)
        yield targets


# The command line.

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _fail(message: str) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    return typer.Exit(2)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("weights", total=total)
        started = False

        def advance(label: str) -> None:
            nonlocal started
            bar.update(task, description=label, advance=int(started))
            started = True

        yield advance


def _settings(
    quick: bool, device: str | None, context: list[int], batch: list[int], drafts: list[int],
    layers: int | None, mlp: int | None, steps: int | None, correlation: float,
    budget: float | None,
) -> Settings:  # fmt: skip
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise _fail(f"--device: got {name}, need cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise _fail("--device: got cuda, but torch sees no CUDA device")
    if name == "cpu" and not quick:
        raise _fail("the full sizes need a GPU; without one: --quick")
    if not 0 <= correlation < 1:
        raise _fail(f"--correlation: got {correlation}, need 0 <= correlation < 1")
    shape = QUICK if quick else Shape()
    shape = Shape(**{**asdict(shape), "layers": layers or shape.layers, "mlp": mlp or shape.mlp})
    contexts = context or ([1, 2] if quick else list(CONTEXTS))
    requests = batch or ([1, 2] if quick else list(BATCHES))
    batches = [
        Batch(count, size * 1024, extra)
        for extra, count, size in product(drafts or DRAFTS, requests, contexts)
    ]
    # sorted() is stable: by drafts, by requests, and the contexts of the paper first.
    batches.sort(key=lambda b: (b.drafts, b.requests, b.context // 1024 not in PAPER))
    for batch in batches:
        if batch.requests < 1 or batch.drafts < 0 or batch.context < shape.k:
            raise _fail(f"{batch.label}: need a request, drafts >= 0 and {shape.k} keys or more")
    count = steps or (4 if quick else 24)
    # bf16 products on a CPU are slow to emulate and nothing here depends on the type.
    dtype = torch.float32 if name == "cpu" else torch.bfloat16
    where = torch.device(name, 0) if name == "cuda" else torch.device(name)
    arguments = [without_folder(argument) for argument in sys.argv[1:]]
    return Settings(
        shape, batches, count, correlation, where, dtype=dtype, budget=budget, arguments=arguments
    )


@app.command(help=__doc__)
def main(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, on any device.")] = False,
    show: Annotated[Path | None, typer.Option(help="Only print the tables of this JSON.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="In 1,024 keys, repeatable.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Requests, repeatable.")] = None,
    drafts: Annotated[list[int] | None, typer.Option(help="Draft tokens, repeatable.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of the decoder.", min=1)] = None,
    mlp: Annotated[int | None, typer.Option(help="Width of the MLP.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Timed steps of each cell.", min=2)] = None,
    correlation: Annotated[
        float, typer.Option(help="Of a token's hidden state with the one before.")
    ] = 0.97,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which no further cell starts.", min=0.0)
    ] = None,
) -> None:
    if (out is None) == (show is None):
        raise _fail("need --out FILE to measure, or --show FILE")
    if show is not None:
        try:
            record = load(show)
        except ResultsError as error:
            raise _fail(str(error)) from error
    else:
        settings = _settings(
            quick, device, context or [], batch or [], drafts or [], layers, mlp, steps,
            correlation, budget,
        )  # fmt: skip
        with _progress(len(settings.batches)) as advance:
            record = measure(settings, out, advance)
        if not record["cells"]:
            raise _fail(f"--budget: got {budget:g}, which setting up took; need more seconds")
    console = Console() if Console().is_terminal else Console(width=160)
    for table in tables(record):
        console.print(table)
    for line in failures(record):
        print(f"failed: {line}", file=sys.stderr)
    if record.get("skipped"):
        console.print(f"not measured for want of time: {', '.join(record['skipped'])}")
    if out is not None:
        console.print(f"{len(record['cells'])} cells in {record['seconds']} s: {out}", markup=False)
    raise typer.Exit(1 if failures(record) else 0)


if __name__ == "__main__":
    app()
