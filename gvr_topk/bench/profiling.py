# SPDX-License-Identifier: Apache-2.0
"""Why a cell takes the time it takes: timed as in every suite, then launched once under ncu.

The record is a benchmark record. Beside the times of a result lie the `counters` of one launch,
beside the cells the `ladder` and what is to be known about `ncu`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from . import ladder, ncu
from .cells import GIB, KIB, MIB, Cell, Suite, recorded
from .contenders import REGISTRY
from .launches import KERNELS, Job
from .results import Results, ResultsError
from .runner import Progress, Runner
from .targets import Verdict, judge

NAME = "profile"
PLAIN = ("floor", "auto")
STATE = ("floor", "op", "op-values", "step", "step-values")
# How many of the cells that fall short are profiled, by suite; beside them two that do not.
FALLING_SHORT = {"grid": 6, "short": 2, "adversarial": 1, "state": 1}
_HOLDING = 2
_SIZE = {"": 1, "K": KIB, "M": MIB}


@dataclass(frozen=True)
class Group:
    """Cells with the contenders that meet there."""

    cells: tuple[Cell, ...]
    contenders: tuple[str, ...] = PLAIN

    @property
    def paired(self) -> bool:
        """A state needs the step before."""
        return any(name.startswith("step") for name in self.contenders)

    def suite(self) -> Suite:
        return Suite(
            "cells under Nsight Compute",
            self.cells,
            self.contenders,
            warm=False,
            paired=self.paired,
        )


def groups(
    cells: Sequence[str], contenders: Sequence[str], record: Callable[[str], Results]
) -> list[Group]:
    """Of the cells that are named as `cell_named` reads them, or else the default."""
    if not cells:
        if contenders:
            raise ValueError(f"--contender: got {contenders[0]!r} without --cell, need both")
        return default_groups(record)
    unknown = [name for name in contenders if name not in REGISTRY]
    if unknown:
        raise ValueError(f"--contender: got {unknown[0]!r}, need one of {', '.join(REGISTRY)}")
    return [Group(tuple(map(cell_named, cells)), tuple(contenders) or PLAIN)]


def default_groups(record: Callable[[str], Results]) -> list[Group]:
    """The cells of the committed records that miss their targets by most, and two that meet them.

    `record`: the record of a suite, by name.
    """
    plain: list[Cell] = []
    for suite in ("grid", "short", "adversarial"):
        short, holding = _ranked(record(suite))
        plain += _distinct(short, FALLING_SHORT[suite], plain)
        if suite == "grid":
            met = _distinct(holding, _HOLDING, ())
    state = _distinct(_ranked(record("state"))[0], FALLING_SHORT["state"], ())
    groups = [Group((*plain, *met)), Group(tuple(state), STATE)]
    found = [group for group in groups if group.cells]
    if not found:
        raise ResultsError("the records have no cell that a target judges; name some with --cell")
    return found


def _ranked(results: Results) -> tuple[list[Cell], list[Cell]]:
    """(cells that fall short, cells that meet every target), each target's worst and best first.

    Targets take turns, so that no single one fills the list.
    """
    cells = {entry.cell.label: entry.cell for entry in results.entries}
    verdicts = [verdict for verdict in judge(results) if verdict.at_most]
    short = {m.label for verdict in verdicts for m in verdict.measured if not verdict.holds(m)}

    def in_turns(labels: Callable[[Verdict], list[str]]) -> list[Cell]:
        lists = [labels(verdict) for verdict in verdicts]
        longest = max(map(len, lists), default=0)
        order = [found[i] for i in range(longest) for found in lists if i < len(found)]
        return [cells[label] for label in dict.fromkeys(order) if label in cells]

    def worst(verdict: Verdict) -> list[str]:
        failing = [m for m in verdict.measured if not verdict.holds(m)]
        return [m.label for m in sorted(failing, key=lambda m: -m.ratio)]

    def best(verdict: Verdict) -> list[str]:
        ordered = sorted(verdict.measured, key=lambda m: m.ratio)
        return [m.label for m in ordered if m.label not in short]

    return in_turns(worst), in_turns(best)


def _distinct(cells: Iterable[Cell], count: int, taken: Sequence[Cell]) -> list[Cell]:
    """The first of them, no two of one shape and kind of rows."""
    seen = {(cell.rows, cell.n, cell.data) for cell in taken}
    found: list[Cell] = []
    for cell in cells:
        shape = cell.rows, cell.n, cell.data
        if shape not in seen and len(found) < count:
            seen.add(shape)
            found.append(cell)
    return found


def cell_named(text: str) -> Cell:
    """ROWSxN:K, or ROWSxN:K:DATA with a kind of rows that workload.py knows."""
    form = re.fullmatch(r"(\d+)x(\d+)([KM]?):(\d+)(?::([a-z-]+))?", text)
    if form is None:
        raise ValueError(f"--cell: got {text!r}, need ROWSxN:K or ROWSxN:K:DATA, as 64x128K:2048")
    rows, n, k = int(form[1]), int(form[2]) * _SIZE[form[3]], int(form[4])
    cell = Cell(rows, n, k, data=form[5] or recorded(n))
    if not (rows >= 1 and 1 <= k < n and cell.bytes <= 4 * GIB):
        raise ValueError(f"--cell: got {text!r}, need 1 <= K < N and at most 4 GiB of scores")
    return cell


def gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise ValueError("profile: torch sees no CUDA device, need one")
    return torch.device("cuda", 0)


@dataclass(frozen=True)
class Request:
    """What `run` is asked to do; `ncu` is the path of the program."""

    groups: Sequence[Group]
    ncu: str
    out: Path
    traces: Sequence[Path] = ()
    seconds: float = 60.0  # after which the profiled program starts no further cell
    clocks: str = "none"
    keep: Path | None = None
    arguments: Sequence[str] = ()


def run(request: Request, device: torch.device, progress: Progress | None = None) -> dict[str, Any]:
    """The record, written after each of its parts: times, counters, ladder."""
    began = perf_counter()
    progress = progress or Progress()
    record = _timed(request, device, progress)

    def write() -> None:
        record["seconds"] = round(perf_counter() - began, 1)
        request.out.write_text(json.dumps(record, indent=1) + "\n")

    record["ladder"] = None
    record["ncu"] = {"problem": "not run yet"}
    write()
    progress.cell("ncu")
    try:
        record["ncu"] = _counted(request, record)
    except ncu.NcuError as error:
        record["ncu"] = {"problem": str(error)}
    write()
    if device.type == "cuda":
        progress.cell("ladder")
        record["ladder"] = ladder.measure(device, progress)
        write()
    return record


def _timed(request: Request, device: torch.device, progress: Progress) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for group in request.groups:
        contenders = [REGISTRY[name] for name in group.contenders]
        part = Runner(
            NAME,
            group.suite(),
            contenders,
            device,
            request.traces,
            request.out,
            arguments=request.arguments,
            progress=progress,
        ).run()
        for entry in part["cells"]:
            entry["paired"] = group.paired
        if not record:
            record = part
        else:
            for key in ("cells", "skipped"):
                record[key] += part[key]
    return record


def _counted(request: Request, record: dict[str, Any]) -> dict[str, Any]:
    """Launches what was timed under ncu, adds `counters` to its results; the part `ncu`."""
    job = _job(request, record)
    if not job.cells:
        raise ncu.NcuError("ncu: nothing to launch, since no cell was timed")
    began = perf_counter()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the program needs room for its rows, and ncu for a copy of them
    with tempfile.TemporaryDirectory() as directory:
        orders, done = Path(directory) / "job.json", Path(directory) / "done.json"
        orders.write_text(job.to_json())
        program = [sys.executable, "-m", "gvr_topk.bench.launches", str(orders), str(done)]
        report = request.keep or Path(directory) / "launches.ncu-rep"
        try:
            profile = ncu.collect(
                request.ncu,
                program,
                kernels=KERNELS,
                seconds=request.seconds,
                clocks=request.clocks,
                keep=report,
            )
            launched = json.loads(done.read_text()) if done.is_file() else []
            attach(record, profile, launched)
        except ncu.NcuError as error:
            raise ncu.NcuError(_with_report(str(error), report, request)) from error
        unread = profile.unread and _with_report(profile.unread, report, request)
    missing = sum(len(wanted) for wanted in job.wanted) - len(launched)
    late = f"{missing} launches were not made within {request.seconds:g} s" if missing else None
    return {
        "version": profile.version,
        "metrics": profile.metrics,
        "unavailable": list(profile.unavailable),
        "clock_control": request.clocks,
        "cache_control": "all",
        "seconds": round(perf_counter() - began, 1),
        "problem": "; ".join(filter(None, (profile.problem or late, unread))) or None,
    }


def _with_report(problem: str, report: Path, request: Request) -> str:
    """What ncu has collected and nobody could read stays beside the record."""
    if request.keep is not None or not report.is_file():
        return problem
    for path in (report, *ncu.exports(report)):
        shutil.copyfile(path, request.out.with_suffix("".join(path.suffixes)))
    return f"{problem}; see its report {request.out.with_suffix('.ncu-rep').name}"


def _job(request: Request, record: Mapping[str, Any]) -> Job:
    entries = _launched_entries(record)
    return Job(
        tuple(Cell(**entry["cell"]) for entry in entries),
        tuple(
            {r["contender"]: r.get("variant", {}) for r in entry["results"] if r.get("exact")}
            for entry in entries
        ),
        tuple(entry["paired"] for entry in entries),
        tuple(request.traces),
        request.seconds,
    )


def _launched_entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those with a result that has a time."""
    return [e for e in record["cells"] if any(r.get("exact") for r in e["results"])]


def attach(
    record: dict[str, Any], profile: ncu.Profile, launched: Sequence[Mapping[str, Any]]
) -> None:
    """Gives every result the counters of its launch: both come in the order of the launches."""
    results = {
        (place, result["contender"]): result
        for place, entry in enumerate(_launched_entries(record))
        for result in entry["results"]
    }
    made, seen = len(launched), len(profile.launches)
    if seen < made or (seen > made and profile.problem is None):
        raise ncu.NcuError(f"ncu: {seen} kernels were profiled, {made} were launched")
    for one, launch in zip(launched, profile.launches, strict=False):
        result = results[one["cell"], one["contender"]]
        family = _kernel_of(result)
        if family not in launch.kernel:
            raise ncu.NcuError(
                f"ncu: {launch.kernel} was profiled where {one['contender']} launched {family}"
            )
        result["exact"] = result["exact"] and one["exact"]
        result["counters"] = {"kernel": launch.kernel, **launch.counters}
        if one.get("telemetry"):
            result["telemetry"] = one["telemetry"]


def _kernel_of(result: Mapping[str, Any]) -> str:
    if result["contender"].startswith("floor"):
        return "floor_kernel"
    plan = result.get("plan")
    return f"{plan['family']}_kernel" if plan else "_kernel"
