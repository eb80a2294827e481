# SPDX-License-Identifier: Apache-2.0
"""The command line: examples that run, one line for every mistake, a report from a broken build."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import typer
from tiny_trace import tiny_trace

from gvr_topk import explain
from gvr_topk.cli import app, main
from gvr_topk.traces import Trace, packaged_trace, save


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(tiny_trace(), path)
    return path


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_demo_runs_on_every_device(
    device: str, trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--device", device, "--k", "50", "--trace", str(trace_file))
    assert main(["demo", *arguments]) == 0
    assert "all 20 steps exact" in capsys.readouterr().out
    found = report(capsys, "demo", *arguments, "--steps", "5", "--json")
    assert found["summary"]["exact"] is True
    assert found["device"].startswith(device)


def test_module_runs_as_a_command() -> None:
    done = python("-m", "gvr_topk", "demo", "--device", "cpu", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["exact_steps"] == 2


def test_explain_a_step_of_the_packaged_trace(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("explain", "--step", "40", "--keys", "16384", "--k", "512", "--device", device)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "trace_A_layer6_cut step 40: Top-512 of 16384" in text and "survivors" in text

    trace = packaged_trace(device)
    before = explain(trace.scores(39, 16384)[None], 512)
    now = explain(trace.scores(40, 16384)[None], 512, hint=before.indices, hint_offset=-1)
    row = report(capsys, *arguments, "--json")["rows"][0]
    assert row == {**now.stats[0]._asdict(), "path": now.stats[0].path_name}
    assert row["hint_hits"] > 256
    assert report(capsys, *arguments, "--hint", "none", "--json")["rows"][0]["hint_valid"] == 0


def test_explain_the_first_step_and_the_whole_context(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, "explain", str(trace_file), "--step", "0", "--k", "50", "--json")
    assert found["rows"][0]["hint_valid"] == 0
    found = report(capsys, "explain", str(trace_file), "--k", "50", "--json")
    assert found["title"].startswith("tiny step 19: Top-50 of 600 on ")
    assert found["rows"][0]["hint_valid"] == 50


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_explain_scores_and_a_hint_from_files(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = torch.arange(900.0).view(3, 300)
    hint = torch.arange(296, 300, dtype=torch.int32)
    for name, tensor in (("scores", scores), ("hint", hint)):
        if suffix == ".pt":
            torch.save(tensor, tmp_path / f"{name}.pt")
        else:
            numpy.save(tmp_path / f"{name}.npy", tensor.numpy())
    arguments = ("explain", str(tmp_path / f"scores{suffix}"), "--k", "4", "--json")
    assert [row["hint_valid"] for row in report(capsys, *arguments)["rows"]] == [0] * 3
    hinted = report(capsys, *arguments, "--hint", str(tmp_path / f"hint{suffix}"))
    assert [row["hint_hits"] for row in hinted["rows"]] == [4] * 3
    radix = report(capsys, *arguments, "--algorithm", "radix")
    assert [row["path"] for row in radix["rows"]] == ["radix"] * 3


def test_explain_says_which_plan_and_why(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", device, "--k", "512"]) == 0
    text = capsys.readouterr().out
    assert "Plan on " in text and "per row: " in text and "hint " in text
    assert ("The CPU kernel has no plan" in text) == (device == "cpu")
    found = report(capsys, "explain", "--device", device, "--algorithm", "radix", "--json")["plan"]
    assert (found["family"], found["ctas_per_row"]) == ("radix", 1)
    assert found["device"] and len(found["reasons"]) == 3


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "suites" in capsys.readouterr().err


def test_trace_cut_writes_a_trace(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cut.safetensors"
    arguments = ["trace", "cut", str(trace_file), str(output), "--keys", "300", "--steps", "8"]
    assert main(arguments) == 0
    assert "300 keys, 8 steps" in capsys.readouterr().out
    part = Trace.load(output)
    assert torch.equal(part.scores(7), tiny_trace().scores(19)[300:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "bogus"),
        (["demo", "--k", "many"], "--k"),
        (["demo", "--k", "0"], "k: got 0, need 1 <= k < 32705"),
        (["demo", "--k", "40000"], "k: got 40000"),
        (["demo", "--steps", "65"], "steps: got 65, need 1 <= steps <= 64"),
        (["demo", "--device", "tpu"], "--device"),
        (["demo", "--trace", "absent.safetensors"], "absent.safetensors: no such file"),
        (["explain", "--k", "0"], "k: got 0"),
        (["explain", "--step", "64"], "step: got 64, need 0 <= step < 64"),
        (["explain", "--keys", "99999"], "keys: got 99999"),
        (["bench", "table", "absent.json"], "absent.json"),
        (["bench", "run", "--suite", "x", "--out", "y"], "suite: got 'x'"),
        (["explain", "--hint", "absent.npy"], "absent.npy: no such file"),
        (["explain", "--algorithm", "bitonic"], "--algorithm"),
        (["explain", "absent.pt"], "absent.pt: no such file"),
        (["explain", __file__], "got suffix '.py', need .pt, .npy or .safetensors"),
        (["trace", "cut", "absent.safetensors", "x"], "absent.safetensors: no such file"),
        (["trace"], "command"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert message in output.err


def test_files_that_hold_no_scores_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"scores": torch.zeros(3)}, tmp_path / "dict.pt")
    torch.save(torch.zeros(3, dtype=torch.int64), tmp_path / "int.pt")
    (tmp_path / "text.pt").write_text("no tensor")
    (tmp_path / "junk.pt").write_text("junk")
    (tmp_path / "short.pt").write_bytes((tmp_path / "int.pt").read_bytes()[:500])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no trace")
    for path in sorted(tmp_path.iterdir()):
        assert main(["explain", str(path), "--k", "2"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, path.name


def test_options_that_belong_to_a_trace_are_refused_for_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scores.pt"
    torch.save(torch.zeros(2, 30), path)
    for option, value in (("--step", "3"), ("--keys", "9"), ("--hint", "previous")):
        assert main(["explain", str(path), "--k", "2", option, value]) == 2
        assert f"{option}: got {value} with scores from" in capsys.readouterr().err


def test_cuda_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["demo", "--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


BENCH = ("suites", "run", "table", "plot", "targets", "report", "profile", "evidence")


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["explain"], ["env"], ["trace", "cut"], *(["bench", name] for name in BENCH)],
    ids=" ".join,
)
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "python -m gvr_topk" in capsys.readouterr().out
    assert main([]) == 0


def test_env_describes_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    assert torch.__version__ in capsys.readouterr().out
    assert torch.__version__ in json.dumps(report(capsys, "env", "--json"))


BROKEN = """
import runpy, sys
sys.modules["gvr_topk._C"] = None  # importing it raises ImportError
sys.argv = ["gvr_topk", *sys.argv[1:]]
runpy.run_module("gvr_topk", run_name="__main__")
"""


def test_env_works_and_demo_says_why_where_the_extension_is_broken() -> None:
    done = python("-c", BROKEN, "env", "--json")
    assert done.returncode == 0, done.stderr
    assert torch.__version__ in json.dumps(json.loads(done.stdout))
    done = python("-c", BROKEN, "env")
    assert done.returncode == 0 and done.stdout and not done.stderr
    for command in ("demo", "explain"):
        done = python("-c", BROKEN, command)
        assert done.returncode == 2
        assert done.stderr.startswith("error: gvr_topk: ") and done.stderr.count("\n") == 1


def test_env_reports_size_and_import_time(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "env", "--import-time", "--json")
    assert found["location"]["mib"] > 1
    assert found["import_seconds"]["torch"] > 0 and found["import_seconds"]["gvr_topk"] >= 0
    assert "import_seconds" not in report(capsys, "env", "--json")


def test_help_does_not_load_the_heavy_modules() -> None:
    code = (
        "import sys; from gvr_topk.cli import main; main(['demo', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('gvr_topk.demo', 'safetensors', 'matplotlib')))"
    )
    assert python("-c", code).returncode == 0


def _commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, *path, name)


@pytest.mark.parametrize(
    "path", list(_commands(typer.main.get_command(app))), ids=lambda path: " ".join(path) or "top"
)
def test_every_help_shows_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    shown = [line.split() for line in text.splitlines() if line.startswith("    python -m")]
    assert shown, text
    for words in shown:
        assert words[3 : 3 + len(path)] == list(path)
