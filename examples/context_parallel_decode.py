#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Context-parallel decoding: the keys of a recorded trace on several ranks, Top-K on all of them.

    torchrun --nproc-per-node 2 examples/context_parallel_decode.py
    torchrun --nproc-per-node 4 examples/context_parallel_decode.py --layout interleaved --k 512
    NCCL_NVLS_ENABLE=0 torchrun --nproc-per-node 2 examples/context_parallel_decode.py --device cuda

Each rank holds its own index keys and a TopKCache. In every step it scores its keys, takes part in
the agreement, and gets its own winners, which is all that sharded attention needs; the ranks also
form the whole answer, which is compared with the reference on the uncut row, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

# As a script it finds gvr_topk here where it is not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import gvr_topk
import gvr_topk.distributed as sharded
from gvr_topk.reference import topk_reference
from gvr_topk.traces import Trace, packaged_trace


def shard_columns(layout: str, keys: int, rank: int, world: int) -> Tensor:
    """Global positions of the keys of one rank, ascending."""
    if layout == "interleaved":
        return torch.arange(rank, keys, world)
    return torch.arange(keys * rank // world, keys * (rank + 1) // world)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


class Decoder:
    """One rank of the decode."""

    def __init__(self, trace: Trace, k: int, layout: str, method: str) -> None:
        self.trace, self.k, self.method = trace, k, method
        rank, world = dist.get_rank(), dist.get_world_size()
        self.columns = shard_columns(layout, trace.keys, rank, world).to(trace.device)
        # Contiguous shards: the offsets are known, so the ranks need not agree on them.
        offsets = [trace.keys * r // world for r in range(world)]
        self.layout = layout if layout == "interleaved" else offsets
        self.cache = gvr_topk.TopKCache(1, 1, k, device=trace.device)
        self.row = torch.full((1, trace.keys), -torch.inf, device=trace.device)

    def step(self, step: int) -> tuple[int, bool, float]:
        """(winners of this rank, whether all was exact, milliseconds of the two calls)."""
        visible = self.trace.visible(step)
        # A real indexer would score the shard's keys alone; the trace has whole rows.
        self.row[0, :visible] = self.trace.scores(step)
        shard = self.row[:, self.columns]
        lengths = torch.tensor([visible], device=self.row.device)
        options = {"layout": self.layout, "lengths": lengths, "method": self.method}
        begin = perf_counter()
        own = sharded.topk(shard, self.k, return_="local", cache=self.cache, **options)
        whole = sharded.topk(shard, self.k, **options)
        if shard.is_cuda:
            torch.cuda.synchronize()
        elapsed = 1e3 * (perf_counter() - begin)
        values, indices = topk_reference(self.row, self.k, lengths=lengths)
        exact = torch.equal(whole.indices, indices) and same_bits(whole.values, values)
        count = int((own.indices >= 0).sum())
        mine = self.columns[own.indices[0, :count].long()]
        expected = indices[0][torch.isin(indices[0], self.columns)]
        exact = exact and torch.equal(mine, expected.long())
        return count, exact, elapsed


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decode a trace whose keys are sharded.")
    parser.add_argument("--trace", type=Path, help="a factored trace; the packaged one by default")
    parser.add_argument("--steps", type=int, default=16, help="decode steps (default 16)")
    parser.add_argument("--k", type=int, default=2048, help="winners per step (default 2048)")
    parser.add_argument("--layout", choices=("contiguous", "interleaved"), default="contiguous")
    parser.add_argument(
        "--method", choices=("auto", "candidates", "threshold", "splitters"), default="auto"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.k < 1:
        parser.error(f"--k: got {options.k}, need at least 1")
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, see the first lines of this file")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    local = int(os.environ["LOCAL_RANK"])
    try:
        device = torch.device(options.device)
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"--device: got cuda on local rank {local}, but torch sees "
                    f"{torch.cuda.device_count()} CUDA devices"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        trace = packaged_trace() if options.trace is None else Trace.load(options.trace)
        if not 1 <= options.steps <= trace.steps:
            raise ValueError(f"--steps: got {options.steps}, need 1 .. {trace.steps}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return decode(trace.to(device), options)
    finally:
        dist.destroy_process_group()


def decode(trace: Trace, options: argparse.Namespace) -> int:
    decoder = Decoder(trace, options.k, options.layout, options.method)
    rank, world = dist.get_rank(), dist.get_world_size()
    wrong = 0
    for step in range(trace.steps - options.steps, trace.steps):
        count, exact, elapsed = decoder.step(step)
        told = torch.tensor([count, int(exact)], device=trace.device)
        everyone = told.new_empty(2 * world)
        dist.all_gather_into_tensor(everyone, told)
        counts, verdicts = everyone.view(world, 2).unbind(1)
        good = bool(verdicts.all()) and int(counts.sum()) == min(options.k, trace.visible(step))
        wrong += not good
        if rank == 0:
            verdict = "exact" if good else "NOT EXACT"
            print(f"step {step:3}  winners by rank {counts.tolist()}  {elapsed:7.2f} ms  {verdict}")
    if rank == 0:
        steps = options.steps
        print(
            f"{steps - wrong} of {steps} steps exact on {world} ranks, {trace.keys} keys, "
            f"{options.layout}, {options.method}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
