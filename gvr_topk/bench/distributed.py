# SPDX-License-Identifier: Apache-2.0
"""Sharded selection beside all-gathering the scores, on 1, 2 or more ranks.

    NCCL_NVLS_ENABLE=0 torchrun --nproc-per-node 2 -m gvr_topk.bench.distributed run --out two.json
    python -m gvr_topk.bench.distributed table two.json
    python -m gvr_topk.bench.distributed model one.json two.json

Every timed result is checked against an int64 rank-key sort of the whole rows. A time is the
slowest rank's median over CUDA-graph replays of several calls on different buffers; on CPUs, over
single calls. `gather-gvr` gives what the methods give with return_="global": values and indices,
best first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise, product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor

import gvr_topk.distributed as sharded
from gvr_topk.distributed.model import LINKS, METHODS, moved

from . import environment
from .cells import GIB, KIB, MIB
from .exact import exact_topk
from .runner import without_folder
from .timing import buffer_count, summarize

SCHEMA = 2
KIND = "distributed"
SIZES = (256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB)
ROWS = (1, 4, 16, 64)
# (keys in all, rows): where the kernels between the collectives weigh most. Best first, since a
# budget cuts the compilations.
COMPILED_AT = (
    (512 * KIB, 1),
    (512 * KIB, 16),
    (MIB, 1),
    (512 * KIB, 4),
    (2 * MIB, 1),
    (MIB, 4),
)
GROUP_TIMEOUT = timedelta(seconds=120)  # a rank that fails ends the others
COMPILED = ("candidates-global", "threshold-global", "threshold-local", "splitters-local")
MESSAGES = (8, KIB, 8 * KIB, 64 * KIB, 512 * KIB, 4 * MIB, 32 * MIB)
MERGED_RANKS = (2, 8, 16, 32, 64)
_CALLS = 8  # in one graph
_REPLAYS = 20
_LEAST_REPLAYS = 5
_LONG_US = 400_000.0  # longer replays in all are cut down to the least
_MOST_BYTES = 8 * GIB  # scores of all buffers of one rank

Calls = list[Callable[[], Tensor]]

app = typer.Typer(
    help="Sharded Top-K beside all-gathering the scores.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@dataclass
class Bench:
    """One process's side of a run."""

    device: torch.device
    k: int
    rank: int
    world: int

    def median(self, calls: Calls) -> tuple[dict[str, Any], list[Tensor]]:
        """Time of one call in microseconds, the slowest rank's, and the last outputs."""
        samples, outputs = (self._replay if self.device.type == "cuda" else self._clock)(calls)
        timing = summarize(samples, len(calls), "rotation")
        figures = torch.tensor(
            [timing.median_us, timing.p10_us, timing.p90_us],
            dtype=torch.float64,
            device=self.device,
        )
        dist.all_reduce(figures, op=dist.ReduceOp.MAX)
        names = ("median_us", "p10_us", "p90_us")
        slowest = {n: round(t, 3) for n, t in zip(names, figures.tolist(), strict=True)}
        return {**slowest, "samples": len(samples), "calls_per_sample": len(calls)}, outputs

    def _replay(self, calls: Calls) -> tuple[list[float], list[Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                calls[0]()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # The watchdog of NCCL asks events about their state in a thread of its own.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = [call() for call in calls]
        with torch.cuda.stream(stream):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            replays = self._replays(1e3 * begin.elapsed_time(end))
            events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
            graph.replay()
            for output in outputs:
                output.fill_(-7)  # an index that no answer holds
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
        torch.cuda.synchronize()
        answers = [output.clone() for output in outputs]
        graph.reset()
        pairs = pairwise(events)
        return [1e3 * a.elapsed_time(b) / len(calls) for a, b in pairs], answers

    def _replays(self, replay_us: float) -> int:
        """How many fit into the time, the same on every rank."""
        slowest = torch.tensor([replay_us], dtype=torch.float64, device=self.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return max(_LEAST_REPLAYS, min(_REPLAYS, int(_LONG_US / slowest.item())))

    def _clock(self, calls: Calls) -> tuple[list[float], list[Tensor]]:
        samples = []
        outputs = [call() for call in calls]
        for _ in range(_REPLAYS // 4):
            dist.barrier()
            begin = perf_counter()
            outputs = [call() for call in calls]
            samples.append(1e6 * (perf_counter() - begin) / len(calls))
        return samples, outputs

    def every(self, good: bool) -> bool:
        """Whether it is good on every rank."""
        verdict = torch.tensor([good], dtype=torch.int32, device=self.device)
        dist.all_reduce(verdict, op=dist.ReduceOp.MIN)
        return bool(verdict.item())


@dataclass
class Cell:
    """Shards of `rows` rows with n keys in all, in as many buffers as a cold cache needs."""

    bench: Bench
    rows: int
    n: int
    _expected: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bench = self.bench
        self.size = self.n // bench.world
        self.offsets = tuple(self.size * rank for rank in range(bench.world))
        size = self.rows * self.size * 4
        self.buffers = max(1, min(_CALLS, buffer_count(size, bench.device), _MOST_BYTES // size))
        generator = torch.Generator(bench.device).manual_seed(1000 * bench.rank + self.rows)
        self.shards = [
            torch.randn(self.rows, self.size, generator=generator, device=bench.device)
            for _ in range(self.buffers)
        ]

    def calls(self, select: Callable[[Tensor], Tensor]) -> Calls:
        return [
            lambda shard=self.shards[place % self.buffers]: select(shard)  # type: ignore[misc]
            for place in range(_CALLS)
        ]

    def gather(self, shard: Tensor) -> Tensor:
        """The whole rows on every rank: what the sharded methods avoid."""
        world = self.bench.world
        gathered = shard.new_empty(world * shard.numel())
        dist.all_gather_into_tensor(gathered, shard.view(-1))
        parts = gathered.view(world, self.rows, self.size)
        return parts.transpose(0, 1).reshape(self.rows, self.n)

    def sharded(self, method: Any, return_: Any) -> Callable[[Tensor], Tensor]:
        def select(shard: Tensor) -> Tensor:
            return sharded.topk(
                shard, self.bench.k, layout=self.offsets, method=method, return_=return_
            ).indices

        return select

    def contenders(self, compiled: bool) -> Iterator[tuple[str, str, Callable[[Tensor], Tensor]]]:
        """(name, kind of answer, call on a shard); compiled forms last."""
        k = self.bench.k
        yield "local", "none", lambda shard: torch.ops.gvr.topk(shard, k, sorted=True)[1]
        yield (
            "gather-gvr",
            "global",
            lambda s: torch.ops.gvr.topk(self.gather(s), k, sorted=True)[1],
        )
        yield "gather-torch", "values", lambda s: torch.topk(self.gather(s), k).values
        for method, return_ in product(METHODS, ("global", "local")):
            yield f"{method}-{return_}", return_, self.sharded(method, return_)
        for name in COMPILED if compiled else ():
            method, return_ = name.split("-")
            torch._dynamo.reset()
            select = torch.compile(self.sharded(method, return_), fullgraph=True, dynamic=False)
            yield f"{name}-compiled", return_, select

    def is_exact(self, kind: str, outputs: list[Tensor]) -> bool:
        """The last outputs of the first and the last buffer."""
        for place in {0, self.buffers - 1} if kind != "none" else ():
            expected, best = self.expected(place)
            # The call that used this buffer last.
            last = max(call for call in range(_CALLS) if call % self.buffers == place)
            given = outputs[last]
            if kind == "values":
                good = torch.equal(given, best)
            elif kind == "global":
                good = torch.equal(given, expected)
            else:
                good = torch.equal(given, self._mine(expected))
            if not self.bench.every(good):
                return False
        return True

    def expected(self, place: int) -> tuple[Tensor, Tensor]:
        """(indices, values) of the whole rows of a buffer, best first."""
        if place not in self._expected:
            whole = self.gather(self.shards[place])
            indices = exact_topk(whole, self.bench.k)
            self._expected[place] = indices, whole.gather(-1, indices.long())
        return self._expected[place]

    def _mine(self, expected: Tensor) -> Tensor:
        """This rank's part of the answer as local indices, best first, then -1."""
        local = expected - self.offsets[self.bench.rank]
        mine = (local >= 0) & (local < self.size)
        order = (~mine).int().sort(stable=True, dim=-1).indices
        return torch.where(mine, local, -1).gather(-1, order)

    def traffic(self, name: str, select: Callable[[Tensor], Tensor]) -> list[tuple[str, int]]:
        if name == "local":
            return []
        if name.startswith("gather"):
            return [("all_gather", self.shards[0].numel() * 4)] if self.bench.world > 1 else []
        method, return_ = name.split("-")[:2]
        with sharded.count_traffic() as counted:
            self.sharded(method, return_)(self.shards[0])
        return counted.operations

    def record(self, compiled: bool, in_time: Callable[[], bool]) -> dict[str, Any]:
        """`in_time` says, alike on every rank, whether another compilation may begin."""
        results: list[dict[str, Any]] = []
        for name, kind, select in self.contenders(compiled):
            if name.endswith("compiled") and not in_time():
                break
            times, outputs = self.bench.median(self.calls(select))
            operations = self.traffic(name, select)
            received = sum(moved(op, size, self.bench.world) for op, size in operations)
            results.append(
                {
                    "contender": name,
                    **times,
                    "exact": self.is_exact(kind, outputs) if kind != "none" else None,
                    "collectives": operations,
                    "bytes_received": int(received),
                }
            )
        return {
            "rows": self.rows,
            "n": self.n,
            "k": self.bench.k,
            "dtype": "fp32",
            "buffers": self.buffers,
            "results": results,
        }


def time_messages(bench: Bench, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Latency of each collective by the bytes of one rank's operand."""
    found = []
    for size in sizes:
        operand = torch.zeros(size // 4, dtype=torch.int32, device=bench.device)
        gathered = operand.new_empty(bench.world * operand.numel())

        def gather(a: Tensor = operand, b: Tensor = gathered) -> Tensor:
            dist.all_gather_into_tensor(b, a)
            return b

        def reduce(a: Tensor = operand) -> Tensor:
            dist.all_reduce(a)
            return a

        for kind, call in (("all_gather", gather), ("all_reduce", reduce)):
            times, _ = bench.median([call] * _CALLS)
            found.append({"kind": kind, "bytes": size, **times})
    return found


def time_merges(bench: Bench, rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """The merge of W lists of K winners on one rank, by W."""
    found = []
    for count, world in product(rows, MERGED_RANKS):
        scores = torch.randn(world, count, bench.k, device=bench.device).sort(-1, descending=True)
        indices = torch.arange(world * bench.k, device=bench.device, dtype=torch.int32)
        lists = indices.view(world, 1, bench.k).expand(scores.values.shape)
        gathered = torch.stack((lists, scores.values.view(torch.int32)), 2)

        def merge(gathered: Tensor = gathered) -> Tensor:
            return torch.ops.gvr.merge_winners(gathered, torch.float32)[1]

        times, _ = bench.median([merge] * _CALLS)
        found.append({"rows": count, "ranks": world, **times})
    return found


@contextmanager
def process_group() -> Iterator[torch.device]:
    """The group that torchrun describes, or one of this process alone."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc-per-node: got rank {local} of this machine, "
                f"need at most {torch.cuda.device_count()} ranks (its GPUs)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    named = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=GROUP_TIMEOUT, **named)  # type: ignore[arg-type]
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _empty_record(bench: Bench) -> dict[str, Any]:
    cuda = bench.device.type == "cuda"
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "environment": environment.describe(),
        "arguments": [without_folder(argument) for argument in sys.argv[1:]],
        "world": bench.world,
        "backend": dist.get_backend(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "nccl_environment": {n: v for n, v in sorted(os.environ.items()) if n[:5] == "NCCL_"},
        "k": bench.k,
        # For what "threshold" chose its digits.
        "link": asdict(LINKS["cuda" if cuda else "cpu"]),
        "cells": [],
        "collectives": [],
        "merges": [],
        "skipped": [],
    }


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="JSON to write, by rank 0, after every cell.")],
    rows: Annotated[list[int] | None, typer.Option(help="Batches, repeatable.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Keys in all, repeatable.")] = None,
    k: Annotated[int, typer.Option()] = 2048,
    compiled: Annotated[bool, typer.Option(help="Also under torch.compile, few rows.")] = True,
    budget: Annotated[
        float, typer.Option(help="Seconds; no cell and no compilation starts later.")
    ] = 170.0,
) -> None:
    """Measure. Run it under torchrun; the exit code is 1 when a result was not exact."""
    batches, sizes = tuple(rows or ROWS), tuple(size or SIZES)
    try:
        with process_group() as device:
            bench = Bench(device, k, dist.get_rank(), dist.get_world_size())
            bad = [n for n in sizes if n % bench.world or n // bench.world < 1]
            if bad or min(batches) < 1 or k < 1:
                raise ValueError(
                    f"--size, --rows, --k: got {sizes}, {batches}, {k}, need positive numbers, "
                    f"and sizes that are multiples of the {bench.world} ranks"
                )
            record = _measure(bench, batches, sizes, compiled, budget, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if bench.rank == 0:
        print_table(record)
    raise typer.Exit(1 if inexact(record) else 0)


def _measure(
    bench: Bench,
    batches: tuple[int, ...],
    sizes: tuple[int, ...],
    compiled: bool,
    budget: float,
    out: Path,
) -> dict[str, Any]:
    began = perf_counter()
    record = _empty_record(bench)
    cuda = bench.device.type == "cuda"
    record["collectives"] = time_messages(bench, MESSAGES if cuda else MESSAGES[:5])
    record["merges"] = time_merges(bench, batches)
    # Long compilations last, so that a budget cuts them and not the plain cells.
    plan = [(n, r, False) for n, r in product(sizes, batches)]
    if compiled and cuda and bench.world > 1:
        plan += [(n, r, True) for n, r in COMPILED_AT if n in sizes and r in batches]

    def in_time() -> bool:
        return bench.every(perf_counter() - began < budget)

    for n, count, with_compiled in plan:
        if not in_time():
            record["skipped"].append({"n": n, "rows": count, "compiled": with_compiled})
            continue
        cell = Cell(bench, count, n).record(with_compiled, in_time)
        places = {(c["n"], c["rows"]): place for place, c in enumerate(record["cells"])}
        if (n, count) in places:  # measured again beside its compiled forms
            record["cells"][places[n, count]] = cell
        else:
            record["cells"].append(cell)
        record["seconds"] = round(perf_counter() - began, 1)
        _write(bench, record, out)
    _write(bench, record, out)  # what was skipped, too
    return record


def _write(bench: Bench, record: dict[str, Any], out: Path) -> None:
    if bench.rank == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(partial, out)


def inexact(record: dict[str, Any]) -> list[str]:
    return [
        f"{result['contender']} at {cell['rows']} x {cell['n']}"
        for cell in record["cells"]
        for result in cell["results"]
        if result["exact"] is False
    ]


def print_table(record: dict[str, Any]) -> None:
    from .scaling import times_table, verdicts

    for line in times_table(record):
        print(line)
    for found in verdicts(record) if record["world"] > 1 else ():
        ahead = sum(ratio > 1 for _, ratio in found.ratios)
        label, least = min(found.ratios, key=lambda r: r[1])
        print(
            f"{found.method}-{found.return_}: ahead of all-gathering the scores in {ahead} of "
            f"{len(found.ratios)} cells, least {least:.2f}x at {label}"
        )
    for skipped in record["skipped"]:
        print(f"not measured for want of time: {skipped['rows']} x {skipped['n']}")
    for line in inexact(record):
        print(f"not exact: {line}", file=sys.stderr)


@app.command()
def table(record: Annotated[Path, typer.Argument(help="JSON written by `run`.")]) -> None:
    """Print times and bytes of a record as Markdown."""
    from .scaling import RecordError, load

    try:
        print_table(load(record))
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


@app.command()
def model(
    records: Annotated[list[Path], typer.Argument(help="JSON of `run` on 1 and on more ranks.")],
    keys: Annotated[int, typer.Option(help="Keys of the whole row.")] = 10_000_000,
) -> None:
    """Print the scaling model of docs/scaling.md, with the records' figures as its inputs."""
    from .scaling import RecordError, load, model_tables

    try:
        for line in model_tables([load(path) for path in records], keys):
            print(line)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
