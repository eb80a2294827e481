# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk trace`: every command on both flavours, JSON that parses, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_trace import tiny_trace

from gvr_topk.cli import main
from gvr_topk.traces import DenseTrace, Trace, open_trace, save, write_dense

COMMANDS = ("info", "cut", "convert", "synth", "replay")


@pytest.fixture
def factored(tmp_path: Path) -> Path:
    path = tmp_path / "factored.safetensors"
    save(tiny_trace(), path)
    return path


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.safetensors"
    write_dense(tiny_trace().rows(300), path, metadata={"model": "none"})
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["trace", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_describes_both_flavours(
    factored: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, "info", factored)
    assert (found["flavour"], found["steps"], found["keys"]) == ("factored", 20, 600)
    assert found["metadata"]["layer"] == "0"
    found = report(capsys, "info", dense, "--scan")
    assert (found["flavour"], found["rows"], found["dtype"]) == ("dense", 20, "float32")
    assert found["lengths"] == {"least": 300, "greatest": 300}
    assert found["scores"]["all"] == 6000 and found["scores"]["nan"] == 0
    assert main(["trace", "info", str(dense)]) == 0
    assert "rows           20" in capsys.readouterr().out


def test_info_counts_what_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.safetensors"
    scores = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 2.0])
    save_file({"scores": scores, "lengths": torch.tensor([6])}, path)
    assert report(capsys, "info", path, "--scan")["scores"] == {
        "all": 6,
        "nan": 1,
        "infinite": 2,
        "zero": 2,
        "least": 0.0,
        "greatest": 2.0,
    }


def test_cut_of_a_dense_trace(dense: Path, tmp_path: Path) -> None:
    output = tmp_path / "cut.safetensors"
    arguments = ["trace", "cut", str(dense), str(output), "--keys", "100", "--steps", "3"]
    assert main(arguments) == 0
    part = open_trace(output)
    assert isinstance(part, DenseTrace) and part.metadata["source"] == "dense"
    for found, step in zip(part.rows(), (17, 18, 19), strict=True):
        assert found.step == step
        assert torch.equal(found.scores, tiny_trace().scores(step)[-100:])


def test_convert_writes_the_rows_of_a_factored_trace(
    factored: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    output = tmp_path / "converted.safetensors"
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    arguments = ["trace", "convert", str(factored), str(output), "--keys", "64", "--dtype", name]
    assert main(arguments) == 0
    trace = open_trace(output)
    assert isinstance(trace, DenseTrace) and (len(trace), trace.dtype) == (20, dtype)
    assert torch.equal(trace.row(7).scores, tiny_trace().scores(7, 64).to(dtype))


def test_convert_takes_arrays_and_foreign_tensors(tmp_path: Path) -> None:
    scores = torch.randn(3, 2, 50)
    numpy.save(tmp_path / "scores.npy", scores.numpy())
    torch.save(scores, tmp_path / "scores.pt")
    save_file({"index_scores": scores}, tmp_path / "dump.safetensors")
    output = tmp_path / "out.safetensors"
    for source, more in (
        ("scores.npy", []),
        ("scores.pt", []),
        ("dump.safetensors", ["--tensor", "index_scores"]),
    ):
        assert main(["trace", "convert", str(tmp_path / source), str(output), *more]) == 0
        rows = list(open_trace(output).rows())
        assert [(row.step, row.layer) for row in rows] == [(s, n) for s in range(3) for n in (0, 1)]
        assert torch.equal(torch.stack([row.scores for row in rows]).view(3, 2, 50), scores)


def test_synth_writes_a_trace_and_tells_the_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "synthetic.safetensors"
    knobs = ["--keys", 3000, "--steps", 5, "--k", 200, "--overlap", 0.5, "--ties", 3]
    found = report(capsys, "synth", output, *knobs, "--character", "hard", "--locality", 0.3)
    trace = open_trace(output)
    assert isinstance(trace, Trace) and (trace.keys, trace.steps) == (3000, 5)
    assert abs(found["overlap"] - 0.5) < 0.05
    assert found["character"]["locality"] == 0.3 and found["ties"] == 3
    assert main(["trace", "synth", str(output), "--keys", "500", "--steps", "2"]) == 0
    assert "500 keys, 2 steps" in capsys.readouterr().out


def test_replay_tells_how_each_row_was_found(
    factored: Path, dense: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (factored, dense):
        found = report(
            capsys, "replay", source, "--k", 20, "--keys", 200, "--algorithm", "radix",
            "--algorithm", "stream", "--device", device,
        )  # fmt: skip
        assert (found["wrong"], len(found["rows"])) == (0, 40)
        assert [row["algorithm"] for row in found["rows"][:2]] == ["radix", "stream"]
        assert all(row["exact"] and row["n"] == 200 for row in found["rows"])
    rows = report(capsys, "replay", dense, "--k", 20, "--no-hint", "--no-check")["rows"]
    assert {(row["overlap"], row["exact"], row["hint_valid"]) for row in rows} == {(None, None, 0)}
    assert main(["trace", "replay", str(dense), "--k", "20"]) == 0
    assert "20/20" in capsys.readouterr().out


def test_replay_fails_where_an_answer_is_wrong(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gvr_topk.traces.replaying as replaying

    def reference(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return scores[:, :k], torch.arange(k, dtype=torch.int32, device=scores.device)[None]

    monkeypatch.setattr(replaying, "topk_reference", reference)
    assert main(["trace", "replay", str(dense), "--k", "20", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["wrong"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", command, "--help"]) == 0
    assert f"python -m gvr_topk trace {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "absent.safetensors"], "absent.safetensors: no such file"),
        (["info", __file__], "not a complete safetensors file"),
        (["cut", "DENSE", "out", "--steps", "0"], "steps: got 0, need at least 1"),
        (["cut", "FACTORED", "out", "--steps", "21"], "steps: got 21, need 1 <= steps <= 20"),
        (["convert", "FACTORED", "out", "--keys", "582"], "keys: got 582, need 1 <= keys <= 581"),
        (["convert", "FACTORED", "out", "--tensor", "q"], "tensor: got 'q', need one of k_fp8"),
        (["convert", "absent.npy", "out"], "absent.npy: no such file"),
        (["convert", "FACTORED", "out", "--dtype", "int8"], "--dtype"),
        (["convert", "FACTORED", "absent/out"], "absent"),
        (["synth", "out", "--keys", "5"], "keys: got 5, need at least as many as steps"),
        (["synth", "out", "--zeros", "2"], "zeros: got 2, need 0 .. 1"),
        (["synth", "out", "--character", "odd"], "--character"),
        (["replay", "DENSE", "--k", "-1"], "k: got -1"),
        (["replay", "DENSE", "--device", "tpu"], "--device: got tpu"),
        (["replay", "DENSE", "--device", "cuda:99"], "--device: got cuda:99"),
        (["replay", "DENSE", "--keys", "0"], "keys: got 0, need at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    arguments: list[str],
    message: str,
    factored: Path,
    dense: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"FACTORED": str(factored), "DENSE": str(dense)}
    assert main(["trace", *(names.get(argument, argument) for argument in arguments)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert set(tmp_path.iterdir()) == {factored, dense}


def test_a_damaged_trace_is_one_line(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(dense)
    tensors["lengths"] = tensors["lengths"] + 1
    save_file(tensors, dense)
    assert main(["trace", "info", str(dense)]) == 2
    assert "the sum of lengths" in capsys.readouterr().err
