# SPDX-License-Identifier: Apache-2.0
"""The workload under compute-sanitizer's four tools, and one record of what they said.

    python tests/sanitizer/run.py --out h200-sanitizer.json            # all tools at once
    python tests/sanitizer/run.py --tool racecheck                     # one of them

The exit code is 0 only if every tool ran, found nothing in the library, and found the error that
was planted for it. Needs a GPU and compute-sanitizer (part of the CUDA toolkit).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gvr_topk.bench import environment

HERE = Path(__file__).parent
SCHEMA = 1
OPTIONS = {
    "memcheck": ["--padding", "512"],
    "racecheck": ["--racecheck-report", "all"],
    "initcheck": [],
    "synccheck": [],
}
_FOUND = 99  # compute-sanitizer's exit code where it found something
_PORTS = 24  # of each tool, so that tools do not meet
_TIMEOUT = 280.0


def findings(output: str) -> int | None:
    """Number of errors, hazards and warnings of a tool's output; None where no tool reported."""
    racecheck = re.search(
        r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", output
    )
    if racecheck:
        return max(int(racecheck[1]), int(racecheck[2]) + int(racecheck[3]))
    summary = re.search(r"ERROR SUMMARY: (\d+) errors?", output)
    return int(summary[1]) if summary else None


def workload_line(output: str) -> dict[str, Any] | None:
    """What the workload printed at its end; None where it did not get there."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"calls"'):
            return json.loads(line)
    return None


def _run(sanitizer: str, tool: str, script: list[str], port: int) -> tuple[int | None, str, float]:
    command = [sanitizer, "--tool", tool, *OPTIONS[tool]]
    command += ["--error-exitcode", str(_FOUND), "--print-limit", "20", "--port", str(port)]
    command += [sys.executable, *script]
    # Without the caching allocator every tensor is an allocation, with a fence of its own.
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    began = perf_counter()
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            env=variables,
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return None, text, perf_counter() - began
    return done.returncode, done.stdout, perf_counter() - began


def examine(sanitizer: str, tool: str, port: int) -> dict[str, Any]:
    """One tool: over the library's workload, then over its planted error."""
    code, output, seconds = _run(sanitizer, tool, [str(HERE / "workload.py")], port)
    record: dict[str, Any] = {
        "tool": tool,
        "options": OPTIONS[tool],
        "exit_code": code,
        "seconds": round(seconds, 1),
        "findings": findings(output),
        "workload": workload_line(output),
    }
    planted_code, planted, _ = _run(sanitizer, tool, [str(HERE / "plants.py"), tool], port + 12)
    record["planted_error_found"] = planted_code == _FOUND and (findings(planted) or 0) > 0
    record["clean"] = (
        code == 0
        and record["findings"] == 0
        and record["workload"] is not None
        and record["planted_error_found"]
    )
    if not record["clean"]:
        record["output"] = output[-6000:]
        if not record["planted_error_found"]:
            record["planted_output"] = planted[-3000:]
    return record


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{home}/bin:{home}/compute-sanitizer"
    )


def _version(sanitizer: str) -> str:
    told = subprocess.run([sanitizer, "--version"], capture_output=True, text=True).stdout
    return next((line for line in told.splitlines() if line.startswith("Version")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tool", choices=tuple(OPTIONS), action="append", help="repeatable; all")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("error: no compute-sanitizer on the PATH or in CUDA_HOME", file=sys.stderr)
        return 2
    tools = arguments.tool or list(OPTIONS)
    began = perf_counter()
    with ThreadPoolExecutor(len(tools)) as pool:
        ports = (49152 + _PORTS * number for number in range(len(tools)))
        records = list(pool.map(lambda at: examine(sanitizer, *at), zip(tools, ports, strict=True)))
    evidence = {
        "schema": SCHEMA,
        "kind": "sanitizer-evidence",
        "environment": environment.describe(),
        "compute_sanitizer": _version(sanitizer),
        "seconds": round(perf_counter() - began, 1),
        "clean": all(record["clean"] for record in records),
        "tools": records,
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(evidence, indent=1) + "\n")
    for record in records:
        planted = "found" if record["planted_error_found"] else "MISSED"
        calls = record["workload"]["calls"] if record["workload"] else 0
        print(
            f"{record['tool']:10} {'clean' if record['clean'] else 'NOT CLEAN'}: {calls} calls, "
            f"{record['findings']} findings, exit {record['exit_code']}, planted error {planted}, "
            f"{record['seconds']} s"
        )
        if not record["clean"]:
            print(record["output"][-2500:])
            print(record.get("planted_output", "")[-1500:])
    return 0 if evidence["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
