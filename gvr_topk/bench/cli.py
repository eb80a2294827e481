# SPDX-License-Identifier: Apache-2.0
"""The command line of the benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

_HELP = """Measure gvr_topk beside its baselines, and check every result.

\b
Examples:
  python -m gvr_topk bench suites
  python -m gvr_topk bench run --suite smoke --out smoke.json
  python -m gvr_topk bench table smoke.json
"""

app = typer.Typer(
    help=_HELP,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Record = Annotated[list[Path], typer.Argument(help="JSON written by `run`.")]


class DeviceName(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def _fail(message: object) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    return typer.Exit(2)


@contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise _fail(error) from error


def _console() -> Console:
    # Wide enough for every contender when the output is no terminal.
    console = Console()
    return console if console.is_terminal else Console(width=220)


@app.command()
def suites() -> None:
    """List the suites and the contenders.

    \b
    Example:
      python -m gvr_topk bench suites
    """
    from .cells import SUITES, suite_named
    from .contenders import REGISTRY

    for name in SUITES:
        suite = suite_named(name)
        print(f"{name:12} {len(suite.cells):4} cells  {suite.about}")
    print(f"contenders: {', '.join(REGISTRY)}")


def _device(wanted: DeviceName, of_suite: str | None, suite: str) -> Any:
    import torch

    name = wanted.value
    if name == "auto":
        name = of_suite or ("cuda" if torch.cuda.is_available() else "cpu")
    if of_suite not in (None, name):
        raise ValueError(f"--device: got {name}, need {of_suite} for the suite {suite}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: got cuda, but torch sees no CUDA device")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def _sweep(given: list[str]) -> dict[str, tuple[int, ...]]:
    parsed = {}
    for text in given:
        name, _, values = text.partition("=")
        try:
            parsed[name] = tuple(int(value) for value in values.split(","))
        except ValueError as error:
            raise ValueError(f"--sweep: got {text!r}, need NAME=INT,INT,...") from error
    return parsed


@app.command()
def run(
    suite: Annotated[str, typer.Option(help="One of `suites`.")],
    out: Annotated[Path, typer.Option(help="JSON to write; rewritten after every cell.")],
    device: Annotated[DeviceName, typer.Option()] = DeviceName.auto,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which no further cell starts.")
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded traces, repeatable; the packaged one by default."),
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Only these, repeatable; the suite's by default.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Tuning constants to combine, NAME=INT,INT,..., repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No tables at the end.")] = False,
) -> None:
    """Run a suite. The exit code is 1 when a result was not exact or a contender failed.

    \b
    Examples:
      python -m gvr_topk bench run --suite smoke --out smoke.json
      python -m gvr_topk bench run --suite grid --out grid.json --budget 60
      python -m gvr_topk bench run --suite issue --out issue.json --trace a.safetensors
    """
    from . import tables
    from .cells import suite_named
    from .contenders import of_suite
    from .results import Results
    from .runner import Runner, failures
    from .targets import judge

    with _user_errors():
        chosen = suite_named(suite)
        if sweep:
            chosen = replace(chosen, sweep=_sweep(sweep))
        where = _device(device, chosen.device, suite)
        out.parent.mkdir(parents=True, exist_ok=True)
        contenders = of_suite(chosen, where, tuple(contender or ()))
        with _progress_bar() as progress:
            runner = Runner(
                suite, chosen, contenders, where, trace or [], out, budget, sys.argv[1:], progress
            )
            record = runner.run()
    results = Results.load(out)
    console = _console()
    if not quiet:
        console.print(tables.times(results))
        if found := judge(results):
            console.print(tables.verdicts(found, results))
    for line in tables.notes(results):
        console.print(line, markup=False)
    failed = failures(record)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    console.print(f"{len(record['cells'])} cells in {record['seconds']} s: {out}", markup=False)
    raise typer.Exit(1 if failed else 0)


@contextmanager
def _progress_bar() -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from .runner import Progress

    columns = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("setting up", total=None)
        yield Progress(
            start=lambda more: bar.update(task, total=(bar.tasks[task].total or 0) + more),
            cell=lambda label: bar.update(task, description=label),
            result=lambda: bar.advance(task),
        )


@app.command()
def table(
    files: Record,
    warm: Annotated[bool, typer.Option("--warm", help="Times with a warm L2.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Contender that the multiples refer to; floor by default.")
    ] = None,
) -> None:
    """Print the times of a record.

    \b
    Example:
      python -m gvr_topk bench table benchmarks/results/h200-issue.json --baseline torch.topk
    """
    from . import tables
    from .results import Results

    with _user_errors():
        results = Results.load(*files)
        if baseline is not None and baseline not in results.contenders:
            known = ", ".join(results.contenders)
            raise ValueError(f"--baseline: got {baseline!r}, need one of {known}")
    console = _console()
    console.print(tables.times(results, "warm" if warm else "cold", baseline or "floor"))
    for line in tables.notes(results):
        console.print(line, markup=False)


def _need_matplotlib() -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise _fail(f"{error}; install matplotlib (the extra `bench`)") from error
    matplotlib.use("Agg")  # files only: no display is needed


@app.command()
def plot(
    files: Record,
    out: Annotated[Path | None, typer.Option(help="Directory; that of the record by default.")] = (
        None
    ),
    suffix: Annotated[str, typer.Option(help="png, svg or pdf.")] = "png",
) -> None:
    """Draw the plots that a record has data for.

    \b
    Example:
      python -m gvr_topk bench plot benchmarks/results/h200-grid.json --out plots --suffix svg
    """
    from .results import Results

    with _user_errors():
        results = Results.load(*files)
    _need_matplotlib()
    from . import plots

    for path in plots.draw(results, out or files[0].parent, suffix):
        print(path)


@app.command()
def targets(
    files: Record,
    worst: Annotated[int, typer.Option(help="Further cells to name where one falls short.")] = 3,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 when a target falls short.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print which targets the records meet, each with its ratio.

    \b
    Example:
      python -m gvr_topk bench targets benchmarks/results/h200-grid.json --worst 10
    """
    from . import tables
    from .results import Results
    from .targets import judge

    with _user_errors():
        # One by one: cells of two suites may be equal and their times come from other runs.
        found = [(judge(results), results) for results in map(Results.load, files)]
    if as_json:
        every = [(results.header["suite"], v) for verdicts, results in found for v in verdicts]
        print(json.dumps([{"suite": suite, **verdict.to_json()} for suite, verdict in every]))
    else:
        for verdicts, results in found:
            _console().print(tables.verdicts(verdicts, results, worst))
    short = any(not verdict.passed for verdicts, _ in found for verdict in verdicts)
    raise typer.Exit(1 if strict and short else 0)


@app.command()
def report(
    root: Annotated[Path, typer.Option(help="The checkout.")] = Path("."),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 where something is stale.")
    ] = False,
) -> None:
    """Rewrite the numbers and plots of the documentation.

    README.md and docs/, from benchmarks/results/*.json.

    \b
    Examples:
      python -m gvr_topk bench report
      python -m gvr_topk bench report --check
    """
    _need_matplotlib()
    from .report import refresh, stale

    with _user_errors():
        lines = stale(root) if check else [str(path) for path in refresh(root)]
    for line in lines:
        print(line)
    raise typer.Exit(1 if check and lines else 0)


class Clocks(str, Enum):
    none = "none"
    base = "base"
    boost = "boost"


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="JSON to write.")],
    root: Annotated[Path, typer.Option(help="The checkout whose records choose the cells.")] = Path(
        "."
    ),
    cell: Annotated[
        list[str] | None,
        typer.Option(help="ROWSxN:K[:DATA] in place of those, as 64x128K:2048; repeatable."),
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="With --cell; floor and auto by default, repeatable.")
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded traces, repeatable; the packaged one by default."),
    ] = None,
    ncu: Annotated[str | None, typer.Option(help="Nsight Compute's command line.")] = None,
    clock_control: Annotated[
        Clocks, typer.Option(help="As of ncu; none leaves the clocks alone.")
    ] = Clocks.none,
    budget: Annotated[
        float, typer.Option(help="Seconds of profiling after which no further cell starts.")
    ] = 60.0,
    keep: Annotated[
        Path | None, typer.Option(help="Where to keep ncu's report; its CSV exports lie beside it.")
    ] = None,
) -> None:
    """Say why cells take their time: one launch of each under Nsight Compute, and its rungs.

    The exit code is 1 when a result was not exact, a contender failed or counters are missing.

    \b
    Examples:
      python -m gvr_topk bench profile --out profile.json
      python -m gvr_topk bench profile --out one.json --cell 1x1M:512 --cell 512x8K:512
    """
    from . import ncu as nsight
    from . import profile_report, profiling
    from .report import Records
    from .runner import failures

    try:
        with _user_errors():
            program = nsight.find(ncu)
            groups = profiling.groups(cell or (), contender or (), Records(root).suite)
            where = profiling.gpu()
            out.parent.mkdir(parents=True, exist_ok=True)
    except nsight.NcuError as error:
        raise _fail(error) from error
    with _user_errors(), _progress_bar() as progress:
        request = profiling.Request(
            groups, program, out, trace or (), budget, clock_control.value, keep, sys.argv[1:]
        )
        record = profiling.run(request, where, progress)
    for line in profile_report.summary(record):
        print(line)
    problem = record["ncu"]["problem"]
    failed = [*failures(record), *([problem] if problem else [])]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"{len(record['cells'])} cells in {record['seconds']} s: {out}")
    raise typer.Exit(1 if failed else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evidence(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="JSON to write.")],
    timeout: Annotated[float | None, typer.Option(help="Seconds given to the tests.")] = None,
    command: Annotated[
        str | None, typer.Option(help="What runs pytest, in place of pytest itself.")
    ] = None,
) -> None:
    """Run pytest on this machine and record what came of it.

    What stands after -- goes to pytest. The exit code is pytest's, or the command's; 1 when pytest
    was stopped, left no report, or no test passed.

    \b
    Example:
      python -m gvr_topk bench evidence --out tests.json -- -q tests
      python -m gvr_topk bench evidence --out all.json --command "make test" -- -n 8
    """
    from .evidence import gather, succeeded

    record = gather(context.args, timeout, command)
    with _user_errors():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    for label in ("totals", "problem"):
        if record[label]:
            print(f"{label}: {record[label]}")
    raise typer.Exit(0 if succeeded(record) else record["exit_code"] or 1)
