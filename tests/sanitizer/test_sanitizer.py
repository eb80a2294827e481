# SPDX-License-Identifier: Apache-2.0
"""The sanitizer suite without the sanitizer: its workload is exact, its reader believes nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gvr_topk._C import make_plan
from gvr_topk.fuzz.case import Case, check
from gvr_topk.testing import tuning

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sanitizer_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run, plants, workload = _load("run"), _load("plants"), _load("workload")


def _workload(*arguments: str) -> dict[str, Any] | None:
    command = [sys.executable, str(HERE / "workload.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return run.workload_line(done.stdout)


def test_the_workload_is_exact_on_every_device(device: str) -> None:
    record = _workload("--device", device)
    assert record["calls"] == record["of"] == sum(record["by_family"].values()) >= 70
    for family in ("stream", "gvr", "radix", "resident"):
        for part in ("", ", state", ", noise", ", telemetry", ", sorted, guarded", ", places"):
            assert record["by_family"][family + part] >= 1
    assert {"auto", "sort", "large k"} <= set(record["by_family"])


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_of_the_workload_are_the_whole(shares: int) -> None:
    whole = workload.calls("cpu")
    parts = [workload.deal(whole, which, shares) for which in range(1, shares + 1)]
    assert sorted(id(call) for part in parts for call in part) == sorted(id(call) for call in whole)
    for part in parts:
        assert {"stream", "gvr", "resident"} <= {family for family, _ in part}


def test_a_part_of_the_workload_is_chosen_by_family() -> None:
    few = _workload("--device", "cpu", "--only", "radix", "--share", "2/2")
    assert 0 < few["calls"] == few["of"] < 10 and all("radix" in name for name in few["by_family"])


def test_a_workload_that_is_out_of_time_checks_nothing_and_says_so() -> None:
    assert _workload("--device", "cpu", "--until", "1") is None


@pytest.mark.parametrize("family", ["resident", "stream", "gvr", "radix"])
def test_the_workload_enters_every_continuation_of_a_family(family: str, device: str) -> None:
    """By telemetry: what the tools watch are the rare paths, not the usual ones alone."""
    if (device, family) == ("cpu", "resident"):
        pytest.skip("on the CPU resident is stream")
    entered: Counter[str] = Counter()
    for shape in workload.SHAPES:
        if family not in shape.families:
            continue
        scores, hint = workload._rows(shape.n, shape.k, torch.float32)
        case = Case(
            scores.to(device), shape.k, "explain", hint.to(device),
            algorithm=family, tuning=shape.tuning,
        )  # fmt: skip
        stats = check(case)
        assert stats is not None
        with tuning(**shape.tuning):
            plan = make_plan(len(scores), shape.n, shape.k, algorithm=family)
        for name in ("overflows", "undershoots"):
            entered[name] += int((stats.column(name) > 0).sum())
        entered["refine rounds"] += int((stats.refine_rounds > 1).sum())
        entered["another read"] += int((stats.passes > 1).sum())
        entered[f"{plan['ctas_per_row']} CTAs"] += 1
        entered[f"{plan['threads']} threads"] += 1
    wanted = {"refine rounds"}
    if family != "radix":
        wanted |= {"another read", "1 CTAs", "8 CTAs", "16 CTAs"}
    if family in ("gvr", "stream"):
        wanted |= {"overflows"}
    if family == "stream":
        wanted |= {"undershoots"}
    if family == "resident":
        wanted |= {"512 threads", "1024 threads"}
    assert all(entered[name] > 0 for name in wanted), entered


def test_every_tool_has_an_error_planted_for_it() -> None:
    assert set(plants.PLANTS) == set(run.OPTIONS)
    assert {"memcheck", "racecheck", "initcheck", "synccheck"} == set(run.OPTIONS)


@pytest.mark.parametrize(
    "output, expected",
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= ERROR SUMMARY: 12 errors\n", 12),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", 3),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n", 1),
        ("========= Error: Device not supported.\n", None),
        ("", None),
    ],
)
def test_findings_are_counted_and_silence_is_not_a_zero(output: str, expected: int | None) -> None:
    assert run.findings(output) == expected


def _sanitizer(folder: Path, workload: str, planted: str, code: int) -> str:
    """A stand-in that says `workload` or `planted`, depending on the script it is given."""
    script = folder / "compute-sanitizer"
    script.write_text(
        f"#!/bin/sh\ncase \"$*\" in *plants.py*) printf '%s\\n' '{planted}'; exit 99;; esac\n"
        f"printf '%s\\n' '{workload}'\nexit {code}\n"
    )
    script.chmod(0o755)
    return str(script)


CALLS = json.dumps({"calls": 5, "of": 5, "by_family": {"gvr": 5}})
FEWER = json.dumps({"calls": 4, "of": 5, "by_family": {"gvr": 4}})
ZERO, ONE = "========= ERROR SUMMARY: 0 errors", "========= ERROR SUMMARY: 1 error"


@pytest.mark.parametrize(
    "workload, planted, code, clean",
    [
        (f"{CALLS}\n{ZERO}", ONE, 0, True),
        (f"{CALLS}\n{ONE}", ONE, 99, False),
        (f"{CALLS}\n{ZERO}", ONE, 1, False),  # the workload failed
        (ZERO, ONE, 0, False),  # the workload checked nothing
        (f"{FEWER}\n{ZERO}", ONE, 0, False),  # it did not get to its end
        (CALLS, ONE, 0, False),  # the tool said nothing
        (f"{CALLS}\n{ZERO}", ZERO, 0, False),  # the planted error was missed
    ],
)
def test_only_a_tool_that_ran_and_watched_is_clean(
    workload: str, planted: str, code: int, clean: bool, tmp_path: Path
) -> None:
    sanitizer = _sanitizer(tmp_path, workload, planted, code)
    out = tmp_path / "evidence.json"
    record = run.examine(sanitizer, ["memcheck"], shares=2, out=out)
    assert record["clean"] is clean
    [tool] = record["tools"]
    assert tool["complete"] is record["complete"] is (CALLS in workload)
    assert tool["clean"] is clean and ("output" in tool) is (not clean)
    assert json.loads(out.read_text())["tools"] == record["tools"]
    if clean:
        assert tool["calls"] == 10 and tool["by_family"] == {"gvr": 10}


def test_a_tool_that_never_ends_is_stopped_and_its_record_is_incomplete(tmp_path: Path) -> None:
    """With what it started: a child that lives on would hold the GPU."""
    script, child = tmp_path / "compute-sanitizer", tmp_path / "child"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in --version) exit;; esac\n'
        f"printf '%s\\n' '{FEWER}'\n"
        "sleep 100 &\n"
        f'case "$*" in *workload*) echo $! > {child};; esac\n'
        "wait\n"
    )
    script.chmod(0o755)
    record = run.examine(str(script), ["racecheck"], shares=1, seconds=4.0)
    [tool] = record["tools"]
    assert not record["clean"] and not record["complete"]
    assert tool["exit_codes"] == [None] and tool["findings"] is None and tool["calls"] == 4
    try:
        ended = os.pidfd_open(int(child.read_text()))
    except ProcessLookupError:
        return
    assert select.select([ended], [], [], 60.0)[0], "it lives on"


def test_evidence_is_written_while_tools_still_run(tmp_path: Path) -> None:
    """One process waits until the record tells of the three others."""
    out, script = tmp_path / "evidence.json", tmp_path / "compute-sanitizer"
    all_others = f"grep -q '\"complete\": true' {out} && [ $(grep -c planted_output {out}) = 2 ]"
    script.write_text(
        f"#!/bin/sh\nprintf '%s\\n' '{CALLS}' '{ZERO}'\n"
        'case "$*" in *racecheck*workload*)\n'
        f"until {all_others}; do sleep 0.1; done 2> {tmp_path}/waiting\n"
        f"cp {out} {tmp_path}/before.json;;\nesac\n"
    )
    script.chmod(0o755)
    run.examine(str(script), ["memcheck", "racecheck"], shares=1, seconds=120.0, out=out)
    seen = json.loads((tmp_path / "before.json").read_text())
    assert seen["complete"] is False
    assert {tool["tool"]: tool["complete"] for tool in seen["tools"]} == {
        "memcheck": True,
        "racecheck": False,
    }
