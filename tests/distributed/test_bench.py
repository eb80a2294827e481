# SPDX-License-Identifier: Apache-2.0
"""The benchmark's record, its tables and the model on paper; the example."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from gvr_topk.bench.distributed import Bench, Cell, app, inexact
from gvr_topk.bench.scaling import Inputs, model_tables, times_table
from gvr_topk.distributed.model import METHODS, Shape, operands

ROOT = Path(__file__).parents[2]
runner = CliRunner()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one CPU rank measures."""
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "one.json"
    command = [sys.executable, "-m", "gvr_topk.bench.distributed", "run", "--out", str(out)]
    command += ["--rows", "2", "--size", "4096", "--k", "64"]
    environment = {**os.environ, "MASTER_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_checks_every_result_and_records_what_it_sent(record: Path) -> None:
    written = json.loads(record.read_text())
    assert written["world"] == 1 and written["backend"] == "gloo"
    assert {m["ranks"] for m in written["merges"]} == {2, 8, 16, 32, 64}
    (cell,) = written["cells"]
    names = [result["contender"] for result in cell["results"]]
    assert names[:3] == ["local", "gather-gvr", "gather-torch"]
    assert names[3:] == [f"{m}-{r}" for m in METHODS for r in ("global", "local")]
    for result in cell["results"]:
        assert result["exact"] is (None if result["contender"] == "local" else True)
        assert result["bytes_received"] == 0 and result["median_us"] > 0
    printed = runner.invoke(app, ["table", str(record)])
    assert printed.exit_code == 0 and "| 2 x 4K |" in printed.stdout


def test_a_wrong_answer_has_no_time(tmp_path: Path) -> None:
    """Of every kind of answer; the last call on the first and on the last buffer counts."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        bench = Bench(torch.device("cpu"), 8, 0, 1)
        cell = Cell(bench, 2, 64)
        for kind, place in (("global", 0), ("local", 0), ("values", 1)):
            right = [cell.expected(call % cell.buffers)[place].clone() for call in range(8)]
            assert cell.is_exact(kind, right)
            for call in (7, 8 - cell.buffers):
                wrong = [answer.clone() for answer in right]
                wrong[call][1, 3] += 1
                assert not cell.is_exact(kind, wrong)
    finally:
        dist.destroy_process_group()
    cell_record = {"rows": 2, "n": 64, "results": [{"contender": "x", "median_us": 5.0}]}
    cell_record["results"][0] |= {"exact": False, "bytes_received": 0}
    made = {"world": 1, "backend": "gloo", "k": 8, "cells": [cell_record]}
    assert inexact(made) == ["x at 2 x 64"]
    assert "| 2 x 64 | not exact |" in "\n".join(times_table(made))


def test_two_ranks_are_measured_under_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["-m", "gvr_topk.bench.distributed", "run", "--out", str(out)]
    command += ["--rows", "1", "--size", "2048", "--k", "32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    received = {r["contender"]: r["bytes_received"] for r in written["cells"][0]["results"]}
    assert received["local"] == 0 and received["gather-gvr"] == 4 * 1024
    assert received["candidates-global"] == 8 * 32 and received["threshold-local"] > 0
    assert {r["exact"] for r in written["cells"][0]["results"]} == {None, True}


def test_a_budget_cuts_cells_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "cut.json"
    command = [sys.executable, "-m", "gvr_topk.bench.distributed", "run", "--out", str(out)]
    command += ["--rows", "1", "--size", "1024", "--k", "8", "--budget", "0"]
    environment = {**os.environ, "MASTER_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "not measured for want of time: 1 x 1024" in done.stdout
    written = json.loads(out.read_text())
    assert written["cells"] == []
    assert written["skipped"] == [{"n": 1024, "rows": 1, "compiled": False}]


def two_ranks(record: dict[str, Any]) -> dict[str, Any]:
    """A record with round figures, in the form of a measured one."""
    made = copy.deepcopy(record)
    made["world"] = 2
    for message in made["collectives"]:
        message["median_us"] = 10.0 + message["bytes"] / 1e3  # 1 GB/s
        if message["kind"] == "all_reduce":
            message["median_us"] = 10.0 + message["bytes"] / 2e3
    for merge in made["merges"]:
        merge["median_us"] = float(merge["ranks"])
    for result in made["cells"][0]["results"]:
        result["median_us"] = 20.0 if result["contender"] == "local" else 100.0
    return made


def test_the_model_reproduces_what_it_was_fitted_to(record: Path) -> None:
    one = json.loads(record.read_text())
    two = two_ranks(one)
    inputs = Inputs.read([two])
    for method in METHODS:
        for return_ in ("global", "local"):
            assert inputs.predict_us(method, return_, 2, 2, 4096) == pytest.approx(100.0)
    far = Inputs.read([two]).gather_us(2, 64, 4096 * 64)
    assert far > inputs.gather_us(2, 2, 4096)
    text = "\n".join(model_tables([two], 4096))
    assert "hop 10.5" in text and "1.0 GB/s" in text and text.count("| 2 | 64 |") == 2


def test_the_model_says_what_it_lacks(record: Path, tmp_path: Path) -> None:
    alone = runner.invoke(app, ["model", str(record)])
    assert alone.exit_code == 2 and "needs a record of at least two ranks" in alone.output
    other = tmp_path / "other.json"
    other.write_text("{}")
    for command in ("model", "table"):
        given = runner.invoke(app, [command, str(other)])
        assert given.exit_code == 2 and "no record of the distributed benchmark" in given.output


def test_only_candidates_and_answers_grow_with_k() -> None:
    """threshold-local moves the same for every K; splitters-local grows slower than K."""

    def sent(method: str, k: int) -> int:
        return sum(size for _, size in operands(method, Shape(8, k, 8, whole=False)))

    assert sent("threshold", 512) == sent("threshold", 8192)
    assert sent("candidates", 8192) == 16 * sent("candidates", 512)
    assert sent("splitters", 8192) < 6 * sent("splitters", 512)


def test_the_example_decodes_exactly_on_two_ranks() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["examples/context_parallel_decode.py", "--steps", "2", "--k", "300"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 steps exact on 2 ranks" in done.stdout
