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
from typer.testing import CliRunner

from gvr_topk.bench.distributed import app
from gvr_topk.bench.scaling import Inputs, model_tables
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
