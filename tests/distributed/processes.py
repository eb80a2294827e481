# SPDX-License-Identifier: Apache-2.0
"""Runs one function in every process of a fresh process group and brings back what each said."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

GROUP_TIMEOUT = timedelta(seconds=60)

# What a rank does: (rank, world, device) -> a list of complaints, empty if all was right.
Job = Callable[[int, int, torch.device], list[str]]


def run_ranks(job: Job, world: int, backend: str = "gloo", timeout: float = 240.0) -> None:
    """AssertionError with the complaints of all ranks; `timeout` seconds for the whole job."""
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed"])
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.start_processes(
            _enter,
            args=(job, world, backend, folder),
            nprocs=world,
            join=False,
            start_method="forkserver",
        )
        assert context is not None
        deadline = monotonic() + timeout
        while not context.join(timeout=1.0):
            if monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise AssertionError(f"{world} ranks did not finish within {timeout:g} s")
        said = [pickle.loads(_report(folder, rank).read_bytes()) for rank in range(world)]
    complaints = [f"rank {rank}: {line}" for rank, lines in enumerate(said) for line in lines]
    assert not complaints, "\n".join([f"{len(complaints)} complaints", *complaints[:20]])


def _report(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank{rank}.pickle"


def _enter(rank: int, job: Any, world: int, backend: str, folder: str) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=GROUP_TIMEOUT,
    )
    try:
        said = job(rank, world, device)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    _report(folder, rank).write_bytes(pickle.dumps(said))
