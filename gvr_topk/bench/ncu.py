# SPDX-License-Identifier: Apache-2.0
"""Hardware counters of single launches, read by Nsight Compute (`ncu`).

Names of metrics: `ncu --query-metrics` and the Metrics Reference of the Nsight Compute Profiling
Guide. One run collects all launches into a report; two exports of it as CSV are read: the numbers,
and the executed instructions by opcode. ncu_tables.py reads the CSV.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .ncu_tables import NcuError, instances, kernel_rows, number, volume
from .process import run_group

STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle",
    "long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction",
    "not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait",
)  # fmt: skip
# Key in a record -> names of the metric, of which the first that this ncu knows counts.
METRICS: dict[str, tuple[str, ...]] = {
    "duration_us": ("gpu__time_duration.sum",),
    "cycles_elapsed": ("sm__cycles_elapsed.max",),
    "cycles_active": ("sm__cycles_active.avg",),
    "dram_read_bytes": ("dram__bytes_read.sum", "dram__bytes_op_read.sum"),
    "dram_percent": ("dram__throughput.avg.pct_of_peak_sustained_elapsed",),
    "l2_hit_percent": ("lts__t_sector_hit_rate.pct",),
    "instructions": ("smsp__inst_executed.sum",),
    "issue_percent": ("smsp__issue_active.avg.pct_of_peak_sustained_active",),
    "occupancy_percent": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "occupancy_limit_percent": ("sm__maximum_warps_per_active_cycle_pct",),
    "grid": ("launch__grid_size",),
    "block": ("launch__block_size",),
    "cluster": ("launch__cluster_size",),
    "waves": ("launch__waves_per_multiprocessor",),
    "registers": ("launch__registers_per_thread",),
    "shared_bytes": ("launch__shared_mem_per_block",),
    **{
        f"stall_{reason}": (f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio",)
        for reason in STALLS
    },
}
OPCODES = "sass__inst_executed_per_opcode"
# bar.sync, barrier.cluster.arrive and .wait, and the fence of a cluster barrier, as sm_90 has them.
BARRIER_OPCODES = ("BAR", "UCGABAR_ARV", "UCGABAR_WAIT", "MEMBAR")
_MOST_OPCODES = 10  # of a launch, beside the barriers
_BASE_UNITS = {"duration_us": "ns"}  # where an export does not say
# Exports that are tried for the opcodes, by the name of their file. A report also holds values by
# instruction, more than 128 KiB a launch for a large kernel, which only the first one leaves out.
_INSTANCES = ("--print-metric-instances", "details")
_OPCODE_EXPORTS = {"opcodes": ("--metrics", OPCODES, *_INSTANCES), "instances": _INSTANCES}
_GRACE = 60.0  # seconds beyond those of the program: start, and writing the report
_EXPORT_SECONDS = 60.0
_QUERY_SECONDS = 60.0
_UNKNOWN_METRIC = re.compile(r"Failed to find metric\s+(?:regex:\^)?\"?([A-Za-z]\w*)")


class Launch(NamedTuple):
    kernel: str
    counters: dict[str, Any]  # keys of METRICS, and "opcodes"; what ncu does not say is missing


@dataclass(frozen=True)
class Profile:
    launches: tuple[Launch, ...]
    version: str
    metrics: dict[str, str]  # what was asked for, by key
    unavailable: tuple[str, ...]  # metrics that this ncu or this GPU does not have
    problem: str | None  # what went wrong after some launches had been profiled
    unread: str | None = None  # the part of the report that could not be read, and why


def find(given: str | None = None) -> str:
    """The path of ncu: as given, on PATH, under CUDA_HOME or where its installer puts it."""
    if given is not None:
        if found := shutil.which(given):
            return found
        raise NcuError(f"--ncu: got {given}, need an executable file")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    installed = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True)
    for candidate in ("ncu", f"{home}/bin/ncu", *map(str, installed)):
        if found := shutil.which(candidate):
            return found
    raise NcuError(
        f"ncu: not on PATH nor in {home}/bin; install Nsight Compute (part of the CUDA toolkit) or "
        "name it with --ncu"
    )


def version(ncu: str) -> str:
    told = subprocess.run([ncu, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"^Version (\S+)", told, re.MULTILINE)
    return found[1] if found else "unknown"


def known_metrics(ncu: str) -> set[str] | None:
    """Base names that this ncu has for this machine's GPUs; None where it does not say."""
    try:
        done = subprocess.run(
            [ncu, "--query-metrics"], capture_output=True, text=True, timeout=_QUERY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None
    words = (line.split()[0] for line in done.stdout.splitlines() if line.strip())
    names = {word for word in words if "__" in word}
    return names if METRICS["duration_us"][0].partition(".")[0] in names else None


def choose_metrics(known: set[str] | None) -> tuple[dict[str, str], list[str]]:
    """(key -> metric to ask for, metrics that are not to be had)."""
    chosen, missing = {}, []
    for key, names in METRICS.items():
        # Names without a dot are of collections of their own, which the query leaves out.
        usable = [n for n in names if known is None or "." not in n or n.partition(".")[0] in known]
        if usable:
            chosen[key] = usable[0]
        else:
            missing.append(names[0])
    return {**chosen, "opcodes": OPCODES}, missing


def collect(
    ncu: str,
    program: Sequence[str],
    *,
    kernels: str,
    seconds: float,
    clocks: str = "none",
    keep: Path | None = None,
) -> Profile:
    """Runs `program` and reads the counters of what it launches between cudaProfilerStart and Stop.

    `kernels`: a regular expression over names of kernels. `seconds`: what the program takes. The
    report is kept at `keep`, also where it could not be read, and beside it what ncu exported.
    """
    metrics, unavailable = choose_metrics(known_metrics(ncu))
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "launches.ncu-rep"
        while True:
            options = ["--profile-from-start", "off", "--target-processes", "all"]
            options += ["--kernel-name", f"regex:{kernels}", "--replay-mode", "kernel"]
            options += ["--cache-control", "all", "--clock-control", clocks]
            options += ["--metrics", ",".join(metrics.values())]
            options += ["--export", str(report), "--force-overwrite"]
            code, output = _run([ncu, *options, *program], seconds + _GRACE)
            if report.is_file():
                break
            refused = _refused(output, metrics)
            if not refused:
                raise NcuError(explain(output, code))
            unavailable += [metrics.pop(key) for key in refused]
        if keep is not None:
            shutil.copyfile(report, keep)
        launches, unread = _read(ncu, report, keep or report, metrics)
    seen = {key for launch in launches for key in launch.counters}
    if unread is not None:
        seen.add("opcodes")
    unavailable += [name for key, name in metrics.items() if launches and key not in seen]
    problem = explain(output, code) if code != 0 else None
    return Profile(tuple(launches), version(ncu), metrics, tuple(unavailable), problem, unread)


def _run(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    # Numbers with a decimal point.
    return run_group(command, seconds, variables={"LC_ALL": "C.UTF-8"})


def _refused(output: str, metrics: Mapping[str, str]) -> list[str]:
    """Keys of the metrics for whose sake nothing was profiled."""
    unknown = set(_UNKNOWN_METRIC.findall(output))
    keys = [key for key, name in metrics.items() if name.partition(".")[0] in unknown]
    if keys:
        return keys
    # Opcodes are counted by patched instructions, which some machines refuse; counters are not.
    patched = "opcodes" in metrics and _remedy(output) is None and "==ERROR==" in output
    return ["opcodes"] if patched else []


def _remedy(output: str) -> str | None:
    if "ERR_NVGPUCTRPERM" in output:
        return (
            "ncu: this user may not read the GPU's counters (ERR_NVGPUCTRPERM); run as root, or "
            "load the driver with NVreg_RestrictProfilingToAdminUsers=0"
        )
    if "LibraryNotLoaded" in output or "Failed to initialize the profiler" in output:
        return (
            "ncu: the profiler does not start here (LibraryNotLoaded); run on the host or in a "
            "virtual machine with the whole driver, since sandboxed containers hide the counters"
        )
    if "ResourceUnavailable" in output or "DriverResource" in output:
        return "ncu: another profiler holds the GPU's counters; end it (dcgm, nsys) and run again"
    return None


def explain(output: str, code: int | None) -> str:
    """One line on why ncu failed."""
    if remedy := _remedy(output):
        return remedy
    errors = [line for line in output.splitlines() if line.startswith("==ERROR==")]
    said = errors or [line for line in output.splitlines() if line.strip()]
    reason = "took too long and was ended" if code is None else f"exit code {code}"
    text = "; ".join(line.removeprefix("==ERROR==").strip() for line in said[-3:])
    return f"ncu: {reason}: {text or 'it said nothing'}"


def _read(
    ncu: str, report: Path, kept: Path, metrics: Mapping[str, str]
) -> tuple[list[Launch], str | None]:
    """(launches, why they have no opcodes); the exports go beside `kept`."""

    def exported(name: str, *options: str) -> str:
        command = [ncu, "--import", str(report), "--csv", "--page", "raw", "--print-units", "base"]
        code, output = _run([*command, *options], _EXPORT_SECONDS)
        kept.with_suffix(f".{name}.csv").write_text(output)
        if code != 0:
            raise NcuError(explain(output, code))
        return output

    launches = parse(exported("raw"), metrics)
    if "opcodes" not in metrics or not launches:
        return launches, None
    reasons = []
    for name, options in _OPCODE_EXPORTS.items():
        try:
            counted = parse_opcodes(exported(name, *options))
        except NcuError as error:
            reasons.append(str(error))
            continue
        if len(counted) != len(launches):
            reasons.append(f"got {len(counted)} of {len(launches)} launches")
        elif not any(counted):
            reasons.append("got no counts")
        else:
            pairs = zip(launches, counted, strict=True)
            return [_with_opcodes(launch, counts) for launch, counts in pairs], None
    return launches, f"{OPCODES}: {'; '.join(dict.fromkeys(reasons))}"


def _with_opcodes(launch: Launch, counts: Mapping[str, int]) -> Launch:
    if not counts:
        return launch
    return launch._replace(counters={**launch.counters, "opcodes": most_executed(counts)})


def exports(report: Path) -> list[Path]:
    """What `collect` has left beside a report."""
    names = [report.with_suffix(f".{name}.csv") for name in ("raw", *_OPCODE_EXPORTS)]
    return [path for path in names if path.is_file()]


def parse(text: str, metrics: Mapping[str, str]) -> list[Launch]:
    """The launches of a raw page as CSV: times in microseconds, sizes in bytes."""
    units, rows = kernel_rows(text)
    launches = []
    for row in rows:
        counters: dict[str, Any] = {}
        for key, name in metrics.items():
            unit = units.get(name) or _BASE_UNITS.get(key)
            value = number(row.get(name), unit) if name != OPCODES else None
            if value is not None:
                counters[key] = value
        for key, column in (("grid", "Grid Size"), ("block", "Block Size")):
            if key not in counters and (size := volume(row.get(column))):
                counters[key] = size
        launches.append(Launch(row.get("Kernel Name") or "", counters))
    return launches


def parse_opcodes(text: str) -> list[dict[str, int]]:
    """Warp instructions by opcode for every launch; empty where ncu did not count them."""
    _, rows = kernel_rows(text)
    if rows and OPCODES not in rows[0]:
        raise NcuError(f"ncu: its export has no column {OPCODES}")
    return [instances(row[OPCODES]) for row in rows]


def most_executed(counts: Mapping[str, int]) -> dict[str, int]:
    kept = sorted(counts, key=lambda name: -counts[name])[:_MOST_OPCODES]
    kept += [name for name in BARRIER_OPCODES if name in counts and name not in kept]
    return {name: counts[name] for name in kept}
