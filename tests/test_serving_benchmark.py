# SPDX-License-Identifier: Apache-2.0
"""benchmarks/serving.py: every call that it times is exact, and its words follow its record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmarks import serving
from gvr_topk.bench import serving as records
from gvr_topk.bench.timing import CpuTimer

SMALL = ["--rows", "2", "--n", "2048", "--k", "600", "--prefill-rows", "64", "--replays", "1"]
HINTS = [*(f"step, {h} hints" for h in (512, 256, 64)), "step, gvr, 600 hints"]
CALLS = ["topk_indices", "step", "step_kv, pages of 64", "step_kv, pages of 1", "step_kv, ragged"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(serving.app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, device: str) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("serving") / "serving.json"
    code, output = run(*SMALL, "--device", device, "--out", str(out))
    assert code == 0, output
    return json.loads(out.read_text())


def test_every_call_is_measured_and_exact(record: dict[str, Any], device: str) -> None:
    calls = [entry["call"] for entry in record["entries"]]
    assert set(CALLS + HINTS + ["step_difference", "step, gvr, 64 hints"]) < set(calls)
    assert calls[-2:] == [records.PREFILL, f"{records.PREFILL}, pages and a map"]
    assert len(calls) == len(set(calls)) and record["device"] == device
    for entry in record["entries"]:
        assert entry["exact"] is True and entry["median_us"] > 0 and entry["k"] == 600
    assert 0.3 < record["entries"][0]["overlap"] < 1.0
    prefill = record["entries"][-2]
    valid = prefill["median_us"] * prefill["scores_per_us"]
    assert valid == pytest.approx(sum(range(2048 - 63, 2049)), rel=0.01)


def test_a_wrong_answer_is_reported(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    bench = serving.Bench(tmp_path / "wrong.json", cpu, CpuTimer(), 1, 4, None)
    scores = torch.randn(2, 64)
    best = scores.topk(4).indices.int()

    def wrong(given: Tensor) -> Tensor:
        return scores.topk(5).indices[:, 1:].int()

    for step in (lambda given: best.clone(), wrong):
        shape = {"rows": 2, "n": 64, "k": 4, "call": "topk_indices", "overlap": None}
        bench._measure(shape, step, [scores], [best], 128)
    assert [entry["exact"] for entry in bench.record["entries"]] == [True, False]
    code, output = run("--show", str(tmp_path / "wrong.json"))
    assert code == 1 and "failed: 2 x 64: topk_indices: not exact" in output


def test_the_verdict_on_prefill_follows_from_the_times(
    record: dict[str, Any], tmp_path: Path, device: str
) -> None:
    changed = copy.deepcopy(record)
    for entry in changed["entries"]:
        entry["scores_per_us"] = 300.0 if entry["call"] == records.PLAIN else 100.0
    assert [(r.label, r.ratio, r.holds) for r in records.prefill(changed)] == [
        ("64 x 2K", 3.0, False)
    ]
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(changed))
    code, output = run("--show", str(path))
    assert code == 0 and "prefill 64 x 2K: 3.00x" in output and "falls short" in output
    changed["entries"][0]["scores_per_us"] = 150.0
    assert records.prefill(changed)[0].holds


def test_a_budget_ends_the_measurements(tmp_path: Path) -> None:
    code, output = run(
        *SMALL, "--device", "cpu", "--budget", "0", "--out", str(tmp_path / "x.json")
    )
    assert code == 2 and "--budget: got 0.0" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "need --out FILE to measure, or --show FILE"),
        (["--show", "nowhere.json"], "nowhere.json"),
        (["--out", "x.json", "--device", "tpu"], "--device: got tpu"),
        (["--out", "x.json", "--device", "cpu", "--k", "64"], "got 64"),
        (["--out", "x.json", "--device", "cpu", "--n", "4000"], "need k > 512"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2 and message in output and "Traceback" not in output
