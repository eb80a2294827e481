# SPDX-License-Identifier: Apache-2.0
"""The command line. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .bench.cli import app as bench_app
from .traces.cli import app as trace_app

if TYPE_CHECKING:
    from torch import Tensor

    from .plan import Plan
    from .traces import Trace

# click's class where typer stands on click, typer's own copy of it where not.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_HELP = """Exact Guess-Verify-Refine Top-K for sparse-attention decoding.

\b
Examples:
  python -m gvr_topk env
  python -m gvr_topk demo --k 512 --steps 20
  python -m gvr_topk explain --step 40 --hint none
"""

app = typer.Typer(
    name="gvr_topk",
    help=_HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(trace_app, name="trace")
app.add_typer(bench_app, name="bench")


class UserError(Exception):
    """Something about the input, told in one line without a traceback."""


class DeviceName(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class AlgorithmName(str, Enum):
    auto = "auto"
    gvr = "gvr"
    resident = "resident"
    stream = "stream"
    radix = "radix"


DeviceOption = Annotated[
    DeviceName, typer.Option(help="Where to run; auto takes CUDA when there is a usable GPU.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; 2 stands for an error of the user."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return app(args=given, prog_name="python -m gvr_topk", standalone_mode=False) or 0
    except _UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command
            print(message, file=sys.stderr)
            return 2
    except UserError as error:
        message = str(error)
    except typer.Abort:  # Ctrl-C
        return 130
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _user_errors() -> Iterator[None]:
    """What input can cause, as UserError. Wraps the reading and checking of input, nothing else."""
    try:
        yield
    except (ValueError, TypeError, IndexError, OSError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(lines[0]) from error


@app.command()
def env(
    import_time: Annotated[
        bool, typer.Option("--import-time", help="Also measure the import, in a fresh process.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Describe this installation and say what is wrong with it.

    Versions, the compiled extension, devices, installed size. Works where the extension does not
    load.

    \b
    Examples:
      python -m gvr_topk env
      python -m gvr_topk env --import-time
      python -m gvr_topk env --json
    """
    from .env import collect, render

    report = collect(import_time=import_time)
    print(json.dumps(report, indent=2) if json_output else render(report))


@app.command()
def demo(
    device: DeviceOption = DeviceName.auto,
    k: Annotated[int, typer.Option("--k", help="Winners per step.")] = 2048,
    steps: Annotated[int | None, typer.Option(help="Steps to replay; all by default.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A factored trace; by default the packaged one.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Replay a recorded decode and check every step bit for bit.

    The exit code is 0 only if every step was exact.

    \b
    Examples:
      python -m gvr_topk demo
      python -m gvr_topk demo --device cpu --k 512 --steps 16
      python -m gvr_topk demo --trace trace.safetensors --json
    """
    with _user_errors():
        from .demo import check_arguments, run

        recorded = _load_trace(trace, device)
        check_arguments(recorded, k, steps)
    raise typer.Exit(run(recorded, k, steps, json_output=json_output))


@app.command()
def explain(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Scores (.pt, .npy: [n] or [rows, n]) or a trace (.safetensors); "
            "by default the packaged trace.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Winners per row.")] = 2048,
    step: Annotated[int | None, typer.Option(help="Step of a trace; the last by default.")] = None,
    keys: Annotated[
        int | None, typer.Option(help="The last KEYS visible keys of the step; all by default.")
    ] = None,
    hint: Annotated[
        str | None,
        typer.Option(
            help="previous (the answer of the step before, default for a trace), none (default "
            "for scores), or a .pt or .npy file of int32 indices."
        ),
    ] = None,
    algorithm: Annotated[AlgorithmName, typer.Option(help="How to select.")] = AlgorithmName.auto,
    device: DeviceOption = DeviceName.auto,
    json_output: JsonOption = False,
) -> None:
    """Print how each row was answered, the plan of the kernel, and why.

    The rows are a file of scores or one step of a trace. Without a GPU the plan is that of an H200.

    \b
    Examples:
      python -m gvr_topk explain
      python -m gvr_topk explain --step 40 --keys 16384 --k 512 --hint none
      python -m gvr_topk explain scores.npy --k 64 --algorithm radix --json
    """
    with _user_errors():
        from . import explain as explain_topk

        case = _load_case(source, k, step, keys, hint, device)
        answer = explain_topk(
            case.scores,
            k,
            hint=case.hint,
            hint_offset=case.hint_offset,
            algorithm=algorithm.value,
        )
    title = f"{case.label}: Top-{k} of {case.scores.shape[-1]} on {case.scores.device}"
    plan, device_name = _plan(case, k, algorithm)
    if json_output:
        rows = [{**row._asdict(), "path": row.path_name} for row in answer.stats]
        planned = {**asdict(plan), "device": device_name}
        found = {"title": title, "algorithm": algorithm.value, "plan": planned, "rows": rows}
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    Console().print(answer.stats.table(title=title))
    if not case.scores.is_cuda:
        print("The CPU kernel has no plan: it takes the algorithm by name, and stream for auto.")
    print(f"Plan on {device_name}: {plan}")
    for reason in plan.reasons:
        print(f"  {reason}")


@app.command()
def fuzz(
    device: DeviceOption = DeviceName.auto,
    cases: Annotated[int, typer.Option(help="Rows to check, each with its own hint.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same calls.")] = 0,
    first_call: Annotated[int, typer.Option(help="Number of the first call.")] = 0,
    rows: Annotated[
        list[str] | None, typer.Option(help="Only this kind of rows, repeatable.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Only fp32, bf16 or fp16, repeatable.")
    ] = None,
    most_failures: Annotated[int, typer.Option(help="Stop after so many.")] = 5,
    seconds: Annotated[float | None, typer.Option(help="Start no call after so long.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the calls.")] = 1,
    most_rows: Annotated[
        int | None, typer.Option(help="Rows of one call; unset: as many as fit.")
    ] = None,
    shrink_seconds: Annotated[float, typer.Option(help="For making a failure small.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Evidence to write, as JSON.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Check this saved call instead.")] = None,
) -> None:
    """Check random hostile calls against an exact oracle, bit for bit.

    The exit code is 0 only if every case was exact. A failure is shrunk, saved in a folder beside
    the evidence, and told with the command that repeats it.

    \b
    Examples:
      python -m gvr_topk fuzz --device cpu --cases 20000 --seed 7
      python -m gvr_topk fuzz --device cuda --cases 5000000 --workers 8 --out h200-fuzz.json
      python -m gvr_topk fuzz --rows random_bits --rows constant
    """
    with _user_errors():
        from .fuzz.campaign import Options
        from .fuzz.cli import check_arguments, run, run_replay

        options = Options(
            _torch_device(device),
            cases,
            seed,
            first_call,
            tuple(rows or ()),
            tuple(dtype or ()),
            most_failures,
            seconds,
            workers,
            most_rows,
            shrink_seconds,
        )
        check_arguments(options)
        if replay is not None and not replay.is_file():
            raise UserError(f"--replay: {replay}: no such file")
    raise typer.Exit(run(options, out) if replay is None else run_replay(replay))


class _Case(NamedTuple):
    """The input of one `explain`."""

    scores: Tensor
    hint: Tensor | None
    hint_offset: int
    label: str


def _plan(case: _Case, k: int, algorithm: AlgorithmName) -> tuple[Plan, str]:
    """The plan of the call, or that of an H200 where the scores are on the CPU."""
    from .plan import H200, Device, plan

    scores = case.scores
    device = Device.of(scores.device) if scores.is_cuda else H200
    chosen = plan(
        scores.shape[:-1].numel(),
        scores.shape[-1],
        k,
        dtype=scores.dtype,
        has_hint=case.hint is not None,
        algorithm=algorithm.value,
        device=device,
    )
    return chosen, device.name


def _torch_device(name: DeviceName) -> str:
    import torch

    from . import _C

    reasons = []
    if not _C.has_cuda:
        reasons.append("this build of gvr_topk has no CUDA code")
    if not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    if name is DeviceName.cuda and reasons:
        raise ValueError(f"--device: got cuda, but {' and '.join(reasons)}; need cpu or auto")
    return "cpu" if name is DeviceName.cpu or reasons else "cuda"


def _load_trace(path: Path | None, device: DeviceName) -> Trace:
    from .traces import Trace, packaged_trace

    place = _torch_device(device)
    return packaged_trace(place) if path is None else Trace.load(path, place)


def _load_case(
    source: Path | None,
    k: int,
    step: int | None,
    keys: int | None,
    hint: str | None,
    device: DeviceName,
) -> _Case:
    if source is None or source.suffix == ".safetensors":
        return _trace_case(_load_trace(source, device), k, step, keys, hint or "previous")
    for name, value in (("step", step), ("keys", keys)):
        if value is not None:
            raise ValueError(f"--{name}: got {value} with scores from {source}, need a trace")
    if hint == "previous":
        raise ValueError(f"--hint: got previous with scores from {source}, need none or a file")
    scores = _load_tensor(source).to(_torch_device(device))
    return _Case(scores, _load_hint(hint, scores), 0, source.name)


def _trace_case(trace: Trace, k: int, step: int | None, keys: int | None, hint: str) -> _Case:
    from . import topk_indices

    step = trace.steps - 1 if step is None else step
    scores = trace.scores(step, keys)[None]
    label = f"{trace.name} step {step}"
    if hint != "previous" or step == 0:
        given = None if hint == "previous" else _load_hint(hint, scores)
        return _Case(scores, given, 0, label)
    # The same number of keys one step earlier ends one key earlier; hints are absolute positions.
    before = trace.window(step - 1, min(scores.shape[-1], trace.visible(step - 1)))
    previous = topk_indices(trace.scores(step - 1, len(before))[None], k)
    return _Case(scores, previous, before.start - trace.window(step, keys).start, label)


def _load_hint(hint: str | None, scores: Tensor) -> Tensor | None:
    if hint is None or hint == "none":
        return None
    if Path(hint).suffix not in (".pt", ".npy"):
        raise UserError(f"--hint: got {hint}, need previous, none, or a .pt or .npy file")
    loaded = _load_tensor(Path(hint)).to(scores.device)
    return loaded.expand(*scores.shape[:-1], -1) if loaded.dim() == 1 else loaded


def _load_tensor(path: Path) -> Tensor:
    import torch

    if path.suffix not in (".pt", ".npy"):
        raise UserError(f"{path}: got suffix {path.suffix!r}, need .pt, .npy or .safetensors")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    loaded: Any
    try:
        if path.suffix == ".pt":
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            import numpy

            loaded = torch.from_numpy(numpy.load(path, allow_pickle=False))
    # Bytes that are no pickle raise almost anything from an unpickler.
    except Exception as error:
        reason = (str(error).splitlines() or ["it ends early"])[0]
        raise UserError(f"{path}: not a readable tensor ({reason})") from error
    if not isinstance(loaded, torch.Tensor):
        raise UserError(f"{path}: got a {type(loaded).__name__}, need one tensor")
    return loaded
