# SPDX-License-Identifier: Apache-2.0
"""Runs the tests on this machine and records what came of them, whatever it was."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from . import environment

SCHEMA = 1
_MOST_NAMED = 200


def gather(
    arguments: Sequence[str], timeout: float | None = None, command: str | None = None
) -> dict[str, Any]:
    """Runs pytest with these arguments in the current directory; or a command that runs pytest, to
    which the arguments are handed in PYTEST_ADDOPTS.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "test-evidence",
        "environment": environment.describe(),
        "command": command,
        "arguments": list(arguments),
        "exit_code": None,
        "seconds": 0.0,
        "totals": None,
        "failed": [],
        "skipped": {},
        "problem": None,
    }
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "junit.xml"
        arguments = [f"--junitxml={report}", *arguments]
        variables = dict(os.environ)
        variables.pop("PYTEST_ADDOPTS", None)
        if command is None:
            words = [sys.executable, "-m", "pytest", *arguments]
        else:
            words = shlex.split(command)
            variables["PYTEST_ADDOPTS"] = shlex.join(arguments)
        began = perf_counter()
        try:
            record["exit_code"] = subprocess.run(words, timeout=timeout, env=variables).returncode
        except FileNotFoundError as error:
            record["problem"] = f"could not run: {error}"
        except subprocess.TimeoutExpired:
            record["problem"] = f"stopped after {timeout:g} s"
        record["seconds"] = round(perf_counter() - began, 1)
        try:
            _read_report(report, record)
        except (OSError, ElementTree.ParseError, ValueError) as error:
            record["problem"] = record["problem"] or f"no readable report of the tests: {error}"
    totals = record["totals"]
    if record["problem"] is None and record["exit_code"] == 0 and totals["passed"] == 0:
        record["problem"] = "no test passed"
    return record


def _read_report(report: Path, record: dict[str, Any]) -> None:
    cases = list(ElementTree.parse(report).iter("testcase"))
    totals = {"tests": len(cases), "passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    skipped: dict[str, int] = {}
    for case in cases:
        outcome = _outcome(case)
        totals[outcome] += 1
        if outcome == "skipped":
            reason = case.find("skipped").get("message") or "no reason given"  # type: ignore[union-attr]
            skipped[reason] = skipped.get(reason, 0) + 1
        elif outcome != "passed" and len(record["failed"]) < _MOST_NAMED:
            record["failed"].append(f"{case.get('classname')}::{case.get('name')}")
    record["totals"] = totals
    record["skipped"] = skipped


def _outcome(case: ElementTree.Element) -> str:
    for tag, outcome in (("failure", "failed"), ("error", "errors"), ("skipped", "skipped")):
        if case.find(tag) is not None:
            return outcome
    return "passed"


def succeeded(record: dict[str, Any]) -> bool:
    return record["exit_code"] == 0 and record["problem"] is None
