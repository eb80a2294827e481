# SPDX-License-Identifier: Apache-2.0
"""What the serving shapes cost beside a plain step: places, differences, fewer hints, prefill.

    PYTHONPATH=. python benchmarks/serving.py --out serving.json   # on a GPU; --device cpu without

Rows drift: consecutive ones share most of their Top-K, which the JSON records. Times are medians of
CUDA-graph replays over cold buffers, as in gvr_topk.bench.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import gvr_topk
from gvr_topk.bench.environment import describe
from gvr_topk.bench.timing import CpuTimer, CudaTimer, Timer, buffer_count

K = 2048
DRIFT = 0.25  # of the standard deviation, from row to row
Step = Callable[[Tensor], Tensor]


def drifting(buffers: int, rows: int, n: int, device: str) -> list[Tensor]:
    """[rows, n] scores for each buffer, each a little off the one before."""
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.randn(rows, n, generator=generator, device=device)
    result = []
    for _ in range(buffers):
        noise = torch.randn(rows, n, generator=generator, device=device)
        scores = (scores + DRIFT * noise) / (1 + DRIFT**2) ** 0.5
        result.append(scores)
    return result


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of the first row's Top-K that the second row's holds, too."""
    answers = [gvr_topk.topk_indices(scores[:1], K)[0] for scores in (first, second)]
    return float(torch.isin(*answers).float().mean())


def decode_steps(rows: int, n: int, device: str) -> Iterator[tuple[str, Step]]:
    slots = torch.arange(rows - 1, -1, -1, device=device)
    lengths = torch.full((rows,), n, dtype=torch.int32, device=device)

    def cache(hint_size: int = K) -> gvr_topk.TopKCache:
        return gvr_topk.TopKCache(1, rows, K, hint_size=hint_size, device=device)

    def table(page_size: int) -> Tensor:
        pages = n // page_size
        order = torch.randperm(rows * pages, device=device)
        return order.reshape(rows, pages).to(torch.int32)

    yield "topk_indices", lambda scores: gvr_topk.topk_indices(scores, K, lengths=lengths)
    state = cache()
    yield "step", lambda scores: state.step(scores, 0, slots, lengths)
    for page_size in (64, 1):
        placed, pages = cache(), table(page_size)
        yield (
            f"step_kv, pages of {page_size}",
            lambda scores, c=placed, t=pages, s=page_size: (
                c.step_kv(scores, 0, slots, lengths, page_table=t, page_size=s).indices
            ),
        )
    compared = cache()
    yield (
        "step_difference",
        lambda scores: compared.step_difference(scores, 0, slots, lengths).indices,
    )
    for hint_size in (K, 512, 256, 64):
        narrow = cache(hint_size)
        yield (
            f"step, gvr, {hint_size} hints",
            lambda scores, c=narrow: c.step(scores, 0, slots, lengths, algorithm="gvr"),
        )


def prefill_step(rows: int, n: int, device: str) -> Step:
    """Causal windows of a chunk: row i sees n - rows + i + 1 scores."""
    ends = torch.arange(n - rows + 1, n + 1, dtype=torch.int32, device=device)
    return lambda scores: gvr_topk.topk_indices(scores, K, lengths=ends)


def measure(timer: Timer, step: Step, buffers: list[Tensor], replays: int) -> dict[str, Any]:
    calls = [lambda scores=scores: step(scores) for scores in buffers]
    timing, _ = timer.cold(calls, buffers[0].nbytes, replays)
    gigabytes = buffers[0].nbytes / 1e9
    return {**timing.to_json(), "gb_per_s": round(gigabytes / (1e-6 * timing.median_us), 1)}


def main(
    out: Annotated[Path, typer.Option(help="The JSON to write.")],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    replays: Annotated[int, typer.Option(min=1, help="Samples of each time.")] = 30,
    rows: Annotated[list[int], typer.Option(help="Batch sizes of decode steps.")] = [1, 16, 64],  # noqa: B006
    n: Annotated[list[int], typer.Option(help="Row lengths of decode steps.")] = [65536, 131072],  # noqa: B006
    prefill_rows: Annotated[int, typer.Option(min=1, help="Rows of the prefill chunk.")] = 4096,
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no GPU here; use --device cpu", param_hint="--device")
    timer: Timer = CudaTimer() if device == "cuda" else CpuTimer()
    entries: list[dict[str, Any]] = []
    for length in n:
        for batch in rows:
            count = buffer_count(4 * batch * length, torch.device(device))
            buffers = drifting(max(count, 2), batch, length, device)
            shape = {"rows": batch, "n": length, "k": K, "overlap": overlap(*buffers[:2])}
            for name, step in decode_steps(batch, length, device):
                entries.append(shape | {"call": name} | measure(timer, step, buffers, replays))
        chunk = min(prefill_rows, length)
        buffers = drifting(1, chunk, length, device)
        step = prefill_step(chunk, length, device)
        shape = {"rows": chunk, "n": length, "k": K, "call": "prefill, causal"}
        entries.append(shape | measure(timer, step, buffers, replays))
        del buffers
    out.write_text(json.dumps({"environment": describe(), "entries": entries}, indent=1) + "\n")
    table = Table("call", "rows", "n", "us", "GB/s")
    for e in entries:
        table.add_row(
            e["call"], str(e["rows"]), str(e["n"]), f"{e['median_us']:.1f}", str(e["gb_per_s"])
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
