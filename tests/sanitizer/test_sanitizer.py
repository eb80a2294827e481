# SPDX-License-Identifier: Apache-2.0
"""The sanitizer suite without the sanitizer: its workload is exact, its reader believes nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sanitizer_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run, plants = _load("run"), _load("plants")


def test_the_workload_is_exact_on_every_device(device: str) -> None:
    command = [sys.executable, str(HERE / "workload.py"), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = run.workload_line(done.stdout)
    assert record["calls"] == sum(record["by_family"].values()) >= 90
    for family in ("stream", "gvr", "radix", "auto", "sort", "large k", "gvr, state"):
        assert record["by_family"][family] >= 1


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


CALLS = json.dumps({"calls": 5, "by_family": {"gvr": 5}})
ZERO, ONE = "========= ERROR SUMMARY: 0 errors", "========= ERROR SUMMARY: 1 error"


@pytest.mark.parametrize(
    "workload, planted, code, clean",
    [
        (f"{CALLS}\n{ZERO}", ONE, 0, True),
        (f"{CALLS}\n{ONE}", ONE, 99, False),
        (f"{CALLS}\n{ZERO}", ONE, 1, False),  # the workload failed
        (ZERO, ONE, 0, False),  # the workload did not get to its end
        (CALLS, ONE, 0, False),  # the tool said nothing
        (f"{CALLS}\n{ZERO}", ZERO, 0, False),  # the planted error was missed
    ],
)
def test_only_a_tool_that_ran_and_watched_is_clean(
    workload: str, planted: str, code: int, clean: bool, tmp_path: Path
) -> None:
    sanitizer = _sanitizer(tmp_path, workload, planted, code)
    assert run.examine(sanitizer, "memcheck", 50_000)["clean"] is clean
