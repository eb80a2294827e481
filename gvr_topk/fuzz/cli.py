# SPDX-License-Identifier: Apache-2.0
"""The command `fuzz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .campaign import Campaign, Options, replay
from .draw import DTYPES
from .rows import row_names
from .workers import run_workers


def check_arguments(options: Options) -> None:
    """ValueError for what the command line can get wrong."""
    for option, given, known in (
        ("rows", options.rows, row_names()),
        ("dtype", options.dtypes, list(DTYPES)),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"--{option}: got {name!r}, need one of {', '.join(known)}")
    for name in ("cases", "most_failures", "workers"):
        if getattr(options, name) < 1:
            text = name.replace("_", "-")
            raise ValueError(f"--{text}: got {getattr(options, name)}, need at least 1")
    if options.most_rows is not None and options.most_rows < 1:
        raise ValueError(f"--most-rows: got {options.most_rows}, need at least 1")
    if options.first_call < 0:
        raise ValueError(f"--first-call: got {options.first_call}, need at least 0")


def run(options: Options, out: Path | None) -> int:
    """The exit code: 0 when every case was exact and as many as wanted were checked."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("cases", total=options.cases)

        def advance(cases: int, failures: int) -> None:
            described = f"cases, {failures} failed" if failures else "cases"
            bar.update(task, completed=min(cases, options.cases), description=described)

        # Made by the first failure: a campaign without one leaves its evidence alone.
        folder = out.with_name(f"{out.stem}-failures") if out else Path("fuzz-failures")
        run_campaign = run_workers if options.workers > 1 else _run_here
        evidence = run_campaign(options, failures_to=folder, progress=advance)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(evidence, indent=1) + "\n")
    _report(evidence, folder, console)
    return 1 if evidence["failures"] or evidence["problem"] else 0


def _run_here(options: Options, **wanted: Any) -> dict[str, Any]:
    return Campaign(options, **wanted).run()


def _report(evidence: dict[str, Any], folder: Path, console: Console) -> None:
    for failure in evidence["failures"]:
        print(f"failed: {failure['problem']}")
        print(f"  given   {failure['given']}")
        print(f"  shrunk  {failure['shrunk']}")
        print(f"  repeat  {failure['command']}")
        if failure["file"]:
            print(f"  or      python -m gvr_topk.fuzz --replay {folder / failure['file']}")
    print(
        f"{evidence['cases']:,} cases in {evidence['calls']:,} calls on "
        f"{evidence['options']['device']}, {evidence['scores']:,} scores, "
        f"{evidence['seconds']} s: {len(evidence['failures'])} failures"
    )
    if evidence["problem"]:
        console.print(evidence["problem"], markup=False)


def run_replay(path: Path) -> int:
    problem = replay(path)
    print(f"{path.name}: {'exact' if problem is None else problem}")
    return 0 if problem is None else 1
