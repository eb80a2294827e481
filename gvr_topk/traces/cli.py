# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk trace`: look into traces, cut, convert, make and replay them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as dataclass_replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from .dense import DenseTrace
    from .factored import Trace
    from .replaying import Replayed

_HELP = """Work with recorded and synthetic traces.

\b
Examples:
  python -m gvr_topk trace synth made.safetensors --overlap 0.7
  python -m gvr_topk trace info made.safetensors
  python -m gvr_topk trace replay made.safetensors --k 512
"""

app = typer.Typer(help=_HELP, rich_markup_mode=None)

Source = Annotated[Path, typer.Argument(help="A trace, factored or dense.")]
Output = Annotated[Path, typer.Argument(help="The file to write.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class DtypeName(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class CharacterName(str, Enum):
    ordinary = "ordinary"
    hard = "hard"


class AlgorithmName(str, Enum):
    auto = "auto"
    gvr = "gvr"
    stream = "stream"
    resident = "resident"
    radix = "radix"


@contextmanager
def _user_errors() -> Iterator[None]:
    """What input can cause, told in one line by the main command line."""
    from ..cli import UserError

    try:
        yield
    except (ValueError, TypeError, IndexError, OSError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(lines[0]) from error


def _torch_dtype(name: DtypeName) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name.value]


def _progress(rows: Any, total: int | None, what: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(rows, description=what, total=total, console=Console(stderr=True))


@app.command()
def info(
    source: Source,
    scan: Annotated[
        bool, typer.Option("--scan", help="Read every score: NaN, infinities, zeros, range.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Say what a trace holds, after checking that it is one.

    \b
    Examples:
      python -m gvr_topk trace info trace.safetensors
      python -m gvr_topk trace info trace.safetensors --scan --json
    """
    with _user_errors():
        from .files import open_trace

        trace = open_trace(source)
        report = _describe(trace, source)
        if scan:
            report["scores"] = _scan(trace)
    if json_output:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            print(name)
            for key, item in value.items():
                print(f"  {key:12} {item}")
        else:
            print(f"{name:14} {value}")


def _describe(trace: Trace | DenseTrace, path: Path) -> dict[str, Any]:
    from .factored import Trace

    report: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    if isinstance(trace, Trace):
        report |= {
            "flavour": "factored",
            "steps": trace.steps,
            "keys": trace.keys,
            "heads": trace.heads,
            "width": trace.width,
        }
    else:
        lengths = trace.columns["lengths"]
        report |= {
            "flavour": "dense",
            "rows": len(trace),
            "layers": len(trace.layers),
            "requests": len(trace.requests),
            "steps": len(trace.columns["step"].unique()),
            "lengths": {"least": int(lengths.min()), "greatest": int(lengths.max())},
            "k": trace.columns["k"].unique().tolist(),
            "dtype": str(trace.dtype).removeprefix("torch."),
        }
    return {**report, "metadata": {k: v for k, v in trace.metadata.items() if k != "format"}}


def _scan(trace: Trace | DenseTrace) -> dict[str, Any]:
    import torch

    from .factored import Trace

    count = dict.fromkeys(("all", "nan", "infinite", "zero"), 0)
    least, greatest = float("inf"), float("-inf")
    rows = trace.steps if isinstance(trace, Trace) else len(trace)
    for row in _progress(trace.rows(), rows, "reading"):
        scores = row.scores.float()
        count["all"] += len(scores)
        count["nan"] += int(scores.isnan().sum())
        count["infinite"] += int(scores.isinf().sum())
        count["zero"] += int((scores == 0).sum())
        finite = scores[torch.isfinite(scores)]
        if len(finite):
            least = min(least, float(finite.min()))
            greatest = max(greatest, float(finite.max()))
    known = least <= greatest
    return {**count, "least": least if known else None, "greatest": greatest if known else None}


@app.command()
def cut(
    source: Source,
    output: Output,
    keys: Annotated[int, typer.Option(help="Keep the last KEYS keys.")] = 32768,
    steps: Annotated[int, typer.Option(help="Keep the last STEPS steps.")] = 64,
) -> None:
    """Cut the end out of a trace.

    The packaged trace was made like this.

    Of a dense trace: the last STEPS steps of each sequence, the last KEYS scores of each row.

    \b
    Example:
      python -m gvr_topk trace cut trace_A_layer6.safetensors trace_A_layer6_cut.safetensors
    """
    with _user_errors():
        from .convert import write_dense
        from .cutting import cut as cut_factored
        from .cutting import last_rows, save
        from .factored import Trace
        from .files import open_trace

        trace = open_trace(source)
        if isinstance(trace, Trace):
            digest = save(cut_factored(trace, keys, steps), output)
            detail = f"{keys} keys, {steps} steps, {output.stat().st_size} bytes, sha256 {digest}"
        else:
            rows = _progress(last_rows(trace, keys, steps), None, "cutting")
            part = write_dense(rows, output, metadata={**trace.metadata, "source": trace.name})
            detail = f"{len(part)} rows, {output.stat().st_size} bytes"
    print(f"{output}: {detail}")


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A trace, or scores [n], [steps, n] or [steps, layers, n] in a .npy, .pt or, "
            "with --tensor, .safetensors file."
        ),
    ],
    output: Output,
    keys: Annotated[int | None, typer.Option(help="Keep the last KEYS scores of a row.")] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="Store the scores as this; theirs by default.")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="The tensor to take from a foreign safetensors file.")
    ] = None,
) -> None:
    """Write a dense trace from a factored one, or from arrays.

    \b
    Examples:
      python -m gvr_topk trace convert trace.safetensors dense.safetensors --keys 16384
      python -m gvr_topk trace convert scores.npy dense.safetensors --dtype bf16
      python -m gvr_topk trace convert dump.safetensors dense.safetensors --tensor index_scores
    """
    with _user_errors():
        from .convert import load_rows, write_dense

        rows = _progress(load_rows(source, keys=keys, tensor=tensor), None, "converting")
        trace = write_dense(
            rows,
            output,
            dtype=None if dtype is None else _torch_dtype(dtype),
            metadata={"source": source.name},
        )
    print(f"{output}: {len(trace)} rows, {output.stat().st_size} bytes")


@app.command()
def synth(
    output: Output,
    keys: Annotated[int, typer.Option(help="Keys of the whole context.")] = 65536,
    steps: Annotated[int, typer.Option(help="Decode steps.")] = 64,
    character: Annotated[
        CharacterName, typer.Option(help="Which recorded layer the rows resemble.")
    ] = CharacterName.ordinary,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of a Top-K that the step before has, 0 .. 1; the layer's if not given."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="The K that --overlap speaks of.")] = 2048,
    locality: Annotated[
        float | None, typer.Option(help="How much recent keys are preferred, 0 .. 1.")
    ] = None,
    zeros: Annotated[float, typer.Option(help="Share of scores that are exactly 0, 0 .. 1.")] = 0.0,
    ties: Annotated[int, typer.Option(help="How often every score occurs, the K-th too.")] = 1,
    yarn: Annotated[float, typer.Option(help="YaRN factor of the rotary frequencies.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trace.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Make a factored trace of synthetic rows.

    They are like those of a sparse-attention indexer.

    \b
    Examples:
      python -m gvr_topk trace synth rows.safetensors --overlap 0.5
      python -m gvr_topk trace synth plateau.safetensors --zeros 0.9 --ties 64 --json
    """
    with _user_errors():
        from .cutting import save
        from .synth import CHARACTERS, SynthSpec, synthesise

        chosen = CHARACTERS[character.value]
        if locality is not None:
            chosen = dataclass_replace(chosen, locality=locality)
        trace = synthesise(
            SynthSpec(
                keys=keys,
                steps=steps,
                character=chosen,
                overlap=overlap,
                k=k,
                zeros=zeros,
                ties=ties,
                yarn_factor=yarn,
                seed=seed,
            )
        )
        digest = save(trace, output)
    report = {"file": str(output), "sha256": digest, **trace.metadata["synthetic"]}
    if json_output:
        print(json.dumps(report, indent=2))
        return
    print(f"{output}: {keys} keys, {steps} steps, sha256 {digest}")
    if overlap is not None:
        print(f"overlap of the Top-{k}: {report['overlap']:.3f}, asked for {overlap:g}")


@app.command()
def replay(
    source: Source,
    k: Annotated[
        int | None, typer.Option("--k", help="Winners per row; the recorded number, else 2048.")
    ] = None,
    keys: Annotated[int | None, typer.Option(help="Only the last KEYS scores of each row.")] = None,
    algorithm: Annotated[
        list[AlgorithmName] | None, typer.Option(help="May be given several times.")
    ] = None,
    hint: Annotated[bool, typer.Option(help="Hint a row with the step before it.")] = True,
    check: Annotated[bool, typer.Option(help="Compare every answer with a stable sort.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_output: JsonOption = False,
) -> None:
    """Select every row of a trace as a decoder would.

    The exit code is 0 only if every answer that was checked was exact.

    \b
    Examples:
      python -m gvr_topk trace replay trace.safetensors
      python -m gvr_topk trace replay dense.safetensors --k 512 --algorithm gvr --algorithm radix
      python -m gvr_topk trace replay trace.safetensors --no-check --json
    """
    with _user_errors():
        from .factored import Trace
        from .files import open_trace
        from .replaying import replay as replay_rows

        trace = open_trace(source, _device(device))
        algorithms = [name.value for name in algorithm or [AlgorithmName.auto]]
        count = trace.steps if isinstance(trace, Trace) else len(trace)
        answers = replay_rows(
            trace.rows(keys), k, algorithms=algorithms, use_hint=hint, check=check
        )
        rows = list(_progress(answers, count * len(algorithms), "replaying"))
    wrong = sum(row.exact is False for row in rows)
    if json_output:
        report = {"trace": trace.name, "device": str(trace.device), "wrong": wrong}
        print(json.dumps({**report, "rows": [row._asdict() for row in rows]}, indent=2))
    else:
        from rich.console import Console

        Console().print(_replay_table(rows, f"{trace.name} on {trace.device}"))
    raise typer.Exit(1 if wrong else 0)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if _has_cuda() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: got {name}, need auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (
        not _has_cuda() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"--device: got {name}, which this machine or build does not have")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {name}, need auto, cpu, cuda or cuda:N")
    return name


def _has_cuda() -> bool:
    import torch

    from .. import _C

    return bool(_C.has_cuda and torch.cuda.is_available())


def _replay_table(rows: list[Replayed], title: str) -> Table:
    """One line per layer and algorithm: means over its rows."""
    from statistics import fmean

    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    names = ("layer", "algo-\nrithm", "rows", "N", "K", "over-\nlap", "passes", "sur-\nvivors")
    for name in (*names, "path", "exact"):
        left = name.startswith(("algo", "path"))
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for layer, algorithm in dict.fromkeys((row.layer, row.algorithm) for row in rows):
        part = [row for row in rows if (row.layer, row.algorithm) == (layer, algorithm)]
        overlaps = [row.overlap for row in part if row.overlap is not None]
        checked = [row.exact for row in part if row.exact is not None]
        paths = dict.fromkeys(row.path for row in part)
        table.add_row(
            str(layer),
            algorithm,
            str(len(part)),
            _span(row.n for row in part),
            _span(row.k for row in part),
            f"{fmean(overlaps):.3f}" if overlaps else "-",
            f"{fmean(row.passes for row in part):.2f}",
            f"{fmean(row.survivors for row in part):.0f}",
            ", ".join(paths),
            f"{sum(checked)}/{len(checked)}" if checked else "-",
        )
    return table


def _span(values: Iterator[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]}..{found[-1]}"
