# SPDX-License-Identifier: Apache-2.0
"""The workload under compute-sanitizer's four tools, and one record of what they said.

    python tests/sanitizer/run.py --out h200-sanitizer.json --seconds 140   # all tools at once
    python tests/sanitizer/run.py --tool racecheck --only radix             # a part

The exit code is 0 only if every tool ran over the whole workload, found nothing in the library, and
found the error that was planted for it. Each tool works in several processes, each over a share of
the workload; the record is written anew whenever one of them ends, and says `complete` only when
all have checked every call. Needs a GPU and compute-sanitizer (part of the CUDA toolkit).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gvr_topk.bench import environment
from gvr_topk.bench.process import run_group

HERE = Path(__file__).parent
SCHEMA = 2
OPTIONS = {
    "memcheck": ["--padding", "512"],
    "racecheck": ["--racecheck-report", "all"],
    "initcheck": [],
    "synccheck": [],
}
_FOUND = 99  # compute-sanitizer's exit code where it found something
_PORTS = 12  # of each process, so that processes do not meet
_FIRST_PORT = 49_152
_SECONDS = 280.0
_TO_END = 0.8  # of the time: then no further call begins, so that the tool can sum up


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
    """What the workload printed last; None where it checked no call."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"calls"'):
            return json.loads(line)
    return None


@dataclass(frozen=True)
class Job:
    """One process: a tool over a share of the workload, or over the error planted for it."""

    tool: str
    share: str | None  # None: the planted error
    port: int

    def script(self, only: str | None, until: float) -> list[str]:
        if self.share is None:
            return [str(HERE / "plants.py"), self.tool]
        words = [str(HERE / "workload.py"), "--share", self.share, "--until", f"{until:.0f}"]
        return words + (["--only", only] if only else [])


def jobs(tools: list[str], shares: int) -> list[Job]:
    wanted = [(tool, f"{i + 1}/{shares}") for tool in tools for i in range(shares)]
    wanted += [(tool, None) for tool in tools]
    return [Job(*job, _FIRST_PORT + _PORTS * number) for number, job in enumerate(wanted)]


def watch(sanitizer: str, job: Job, only: str | None, seconds: float) -> dict[str, Any]:
    """Runs one job to its end, or for `seconds`; with what it started it ends in any case."""
    began, until = perf_counter(), time.time() + _TO_END * seconds
    command = [sanitizer, "--tool", job.tool, *OPTIONS[job.tool]]
    command += ["--error-exitcode", str(_FOUND), "--print-limit", "20", "--port", str(job.port)]
    command += [sys.executable, *job.script(only, until)]
    # Without the caching allocator every tensor is an allocation, with a fence of its own.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    variables["OMP_NUM_THREADS"] = "1"
    code, output = run_group(command, seconds, variables=variables)
    return {
        "exit_code": code,
        "seconds": round(perf_counter() - began, 1),
        "findings": findings(output),
        "workload": workload_line(output),
        "output": output,
    }


def said(output: str, most: int = 12_000) -> str:
    """The tool's own lines, from its first finding on, then how the process ended."""
    lines = output.splitlines()
    findings = "\n".join(line for line in lines if line.startswith("====="))
    return findings[:most] + "\n...\n" + "\n".join(lines[-20:])[-3000:]


def tool_record(tool: str, watched: dict[Job, dict[str, Any]], shares: int) -> dict[str, Any]:
    """What the processes of a tool that have ended say together."""
    parts = [seen for job, seen in watched.items() if job.tool == tool and job.share is not None]
    plants = [seen for job, seen in watched.items() if job.tool == tool and job.share is None]
    lines = [part["workload"] or {"calls": 0, "of": None, "by_family": {}} for part in parts]
    families = sorted({family for line in lines for family in line["by_family"]})
    record: dict[str, Any] = {
        "tool": tool,
        "options": OPTIONS[tool],
        "calls": sum(line["calls"] for line in lines),
        "by_family": {
            name: sum(line["by_family"].get(name, 0) for line in lines) for name in families
        },
        "findings": None
        if any(part["findings"] is None for part in parts)
        else sum(part["findings"] for part in parts),
        "exit_codes": [part["exit_code"] for part in parts],
        "seconds": max((part["seconds"] for part in parts), default=0.0),
        "complete": len(parts) == shares and all(line["calls"] == line["of"] for line in lines),
        "planted_error_found": any(
            plant["exit_code"] == _FOUND and (plant["findings"] or 0) > 0 for plant in plants
        ),
    }
    record["clean"] = (
        record["complete"]
        and set(record["exit_codes"]) == {0}
        and record["findings"] == 0
        and record["planted_error_found"]
    )
    if len(parts) == shares and not record["clean"]:
        suspect = next((p for p in parts if p["exit_code"] != 0 or p["findings"] != 0), parts[0])
        record["output"] = said(suspect["output"])
    if plants and not record["planted_error_found"]:
        record["planted_output"] = said(plants[0]["output"])
    return record


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{home}/bin:{home}/compute-sanitizer"
    )


def _version(sanitizer: str) -> str:
    told = subprocess.run([sanitizer, "--version"], capture_output=True, text=True).stdout
    return next((line for line in told.splitlines() if line.startswith("Version")), "unknown")


def examine(
    sanitizer: str,
    tools: list[str],
    *,
    shares: int = 2,
    only: str | None = None,
    seconds: float = _SECONDS,
    out: Path | None = None,
) -> dict[str, Any]:
    """All tools at once. The evidence, written whenever one of the processes ends."""
    began = perf_counter()
    watched: dict[Job, dict[str, Any]] = {}
    machine = {"environment": environment.describe(), "compute_sanitizer": _version(sanitizer)}

    def evidence() -> dict[str, Any]:
        records = [tool_record(tool, watched, shares) for tool in tools]
        return {
            "schema": SCHEMA,
            "kind": "sanitizer-evidence",
            **machine,
            "only": only,
            "seconds": round(perf_counter() - began, 1),
            "complete": all(record["complete"] for record in records) and only is None,
            "clean": all(record["clean"] for record in records),
            "tools": records,
        }

    wanted = jobs(tools, shares)
    with ThreadPoolExecutor(len(wanted)) as pool:
        running = {pool.submit(watch, sanitizer, job, only, seconds): job for job in wanted}
        for ended in as_completed(running):
            watched[running[ended]] = ended.result()
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(evidence(), indent=1) + "\n")
    return evidence()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tool", choices=tuple(OPTIONS), action="append", help="repeatable; all")
    parser.add_argument("--shares", type=int, default=2, help="processes of each tool")
    parser.add_argument("--only", help="a part of a family's name")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="the end of all of it")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("error: no compute-sanitizer on the PATH or in CUDA_HOME", file=sys.stderr)
        return 2
    evidence = examine(
        sanitizer,
        arguments.tool or list(OPTIONS),
        shares=arguments.shares,
        only=arguments.only,
        seconds=arguments.seconds,
        out=arguments.out,
    )
    for record in evidence["tools"]:
        planted = "found" if record["planted_error_found"] else "MISSED"
        print(
            f"{record['tool']:10} {'clean' if record['clean'] else 'NOT CLEAN'}: "
            f"{record['calls']} calls{'' if record['complete'] else ' (INCOMPLETE)'}, "
            f"{record['findings']} findings, exit {record['exit_codes']}, planted error {planted}, "
            f"{record['seconds']} s"
        )
        if not record["clean"]:
            print(record.get("output", "")[-2500:])
            print(record.get("planted_output", "")[-1500:])
    return 0 if evidence["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
