# SPDX-License-Identifier: Apache-2.0
"""Dense traces: what was written is read back bit for bit, and foreign files are described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_trace import tiny_trace
from torch import Tensor

from gvr_topk.traces import (
    DenseTrace,
    DenseWriter,
    Row,
    Trace,
    TraceError,
    array_rows,
    last_rows,
    load_rows,
    open_trace,
    replay,
    save,
    write_dense,
)


def bits(scores: Tensor) -> Tensor:
    return scores.view(torch.int32 if scores.element_size() == 4 else torch.int16)


def some_rows(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Row]:
    """Two layers, two requests, three steps, rows of different lengths and random bits."""
    generator = torch.Generator().manual_seed(seed)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    limits = torch.iinfo(integer)
    rows = []
    for step in range(3):
        for layer in range(2):
            for request in range(2):
                n = 5 + 7 * request + step
                raw = torch.randint(limits.min, limits.max, (n,), generator=generator)
                scores = raw.to(integer).view(dtype)
                rows.append(Row(scores, 10 * request, layer, request, 0, step, 4))
    return rows


@pytest.fixture
def dense_file(tmp_path: Path) -> Path:
    path = tmp_path / "dense.safetensors"
    write_dense(some_rows(), path, metadata={"model": "none"})
    return path


def test_rows_come_back_bit_for_bit(dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    rows = some_rows(dtype)
    trace = write_dense(rows, tmp_path / "t.safetensors", metadata={"model": "none"}).to(device)
    assert (trace.dtype, len(trace), trace.metadata["model"]) == (dtype, 12, "none")
    assert (trace.layers, trace.requests) == ([0, 1], [0, 1])
    for number, (given, found) in enumerate(zip(rows, trace.rows(), strict=True)):
        assert found.scores.device.type == device
        assert torch.equal(bits(found.scores.cpu()), bits(given.scores))
        assert found[1:] == given[1:] == trace.row(number)[1:]


def test_the_last_keys_of_a_row_keep_their_positions(dense_file: Path) -> None:
    trace = DenseTrace.open(dense_file)
    for whole, part in zip(trace.rows(), trace.rows(6), strict=True):
        kept = min(len(whole.scores), 6)
        assert torch.equal(bits(part.scores), bits(whole.scores[-kept:]))
        assert part.first_key == whole.first_key + len(whole.scores) - kept
    with pytest.raises(ValueError, match="keys: got 0, need at least 1"):
        next(trace.rows(0))


def test_rows_of_chosen_layers_and_requests_alone(dense_file: Path) -> None:
    trace = DenseTrace.open(dense_file)
    found = [(row.layer, row.request, row.step) for row in trace.rows(layers=[1], requests=[0])]
    assert found == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]
    with pytest.raises(IndexError, match="number: got 12, need 0 <= number < 12"):
        trace.row(12)


def test_rows_of_several_dtypes_are_kept_exactly_as_fp32(tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    half = torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16)
    brain = torch.tensor([3e38, -0.0], dtype=torch.bfloat16)
    full = torch.tensor([1e-30, 7.0])
    with DenseWriter(path) as writer:
        for scores in (half, brain, full, half):
            writer.append(scores)
    trace = DenseTrace.open(path)
    assert trace.dtype == torch.float32
    for given, found in zip((half, brain, full, half), trace.rows(), strict=True):
        assert torch.equal(bits(found.scores), bits(given.float()))


def test_only_scores_and_lengths_are_required(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    tensors = {"scores": torch.arange(5.0), "lengths": torch.tensor([2, 3], dtype=torch.int32)}
    save_file(tensors, path, metadata={"format": "pt"})
    trace = open_trace(path)
    assert isinstance(trace, DenseTrace)
    rows = list(trace.rows())
    assert [row.scores.tolist() for row in rows] == [[0.0, 1.0], [2.0, 3.0, 4.0]]
    assert [row[1:] for row in rows] == [(0, 0, 0, 0, 0, None), (0, 0, 0, 0, 1, None)]


def test_the_file_is_plain_safetensors(dense_file: Path) -> None:
    tensors = load_file(dense_file)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "scores": torch.float32,
        "lengths": torch.int64,
        "first_key": torch.int64,
        "layer": torch.int32,
        "request": torch.int32,
        "draft": torch.int32,
        "step": torch.int32,
        "k": torch.int32,
    }
    assert len(tensors["scores"]) == tensors["lengths"].sum()


def test_a_writer_leaves_nothing_behind_but_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(RuntimeError), DenseWriter(path) as writer:
        writer.append(torch.zeros(3))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceError, match="no rows to write"), DenseWriter(path):
        pass
    assert list(tmp_path.iterdir()) == []
    write_dense(some_rows(), path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "scores",
    [torch.zeros(2, 2), torch.zeros(0), torch.zeros(2, dtype=torch.float64)],
    ids=["shape", "empty", "dtype"],
)
def test_what_is_no_row_is_refused(scores: Tensor, tmp_path: Path) -> None:
    with (
        pytest.raises(TraceError, match=r"scores: got .* need \[n\], n >= 1"),
        DenseWriter(tmp_path / "t.safetensors") as writer,
    ):
        writer.append(scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.pop("lengths"), "no trace, need k_fp8", id="missing"),
        pytest.param(
            lambda t: t.update(scores=t["scores"][:-1].clone()),
            r"scores: got \d+ of them, need \d+, the sum of lengths",
            id="short",
        ),
        pytest.param(
            lambda t: t.update(scores=t["scores"].double()),
            "scores: got dtype F64, need one of F32, BF16, F16",
            id="scores dtype",
        ),
        pytest.param(
            lambda t: t.update(scores=t["scores"][None]),
            r"scores: got shape \[1, \d+\], need \[sum of lengths\]",
            id="scores shape",
        ),
        pytest.param(
            lambda t: t.update(step=t["step"].float()),
            "step: got dtype torch.float32, need int32 or int64",
            id="column dtype",
        ),
        pytest.param(
            lambda t: t.update(layer=t["layer"][:-1].clone()),
            r"layer: got shape \[11\], need \[12\] as lengths has",
            id="column shape",
        ),
        pytest.param(
            lambda t: t["lengths"].__setitem__(0, 0), "lengths: got 0, need at least 1", id="empty"
        ),
        pytest.param(
            lambda t: t["lengths"].fill_(2**62), "scores: got", id="lengths whose sum overflows"
        ),
        pytest.param(
            lambda t: t["request"].__setitem__(0, -1), "request: got -1, need at least 0", id="sign"
        ),
        pytest.param(
            lambda t: t.update({n: t[n][:0].clone() for n in t}),
            r"lengths: got shape \[0\], need \[rows\], rows > 0",
            id="no rows",
        ),
    ],
)
def test_a_foreign_file_is_described(
    change: Callable[[dict[str, Tensor]], None], message: str, dense_file: Path
) -> None:
    tensors = load_file(dense_file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, dense_file)
    with pytest.raises(TraceError, match=message) as error:
        open_trace(dense_file)
    assert str(error.value).startswith(str(dense_file))


@pytest.mark.parametrize("size", [0, 7, 300, 1000])
def test_a_truncated_file_is_an_error(size: int, dense_file: Path) -> None:
    assert dense_file.stat().st_size > size
    dense_file.write_bytes(dense_file.read_bytes()[:size])
    with pytest.raises(TraceError, match="not a complete safetensors file"):
        open_trace(dense_file)


def test_a_format_of_another_time_is_named(dense_file: Path) -> None:
    save_file(load_file(dense_file), dense_file, metadata={"trace": '{"format": "dense/9"}'})
    with pytest.raises(TraceError, match=r"got trace format 'dense/9', need 'gvr_topk.trace.fact"):
        open_trace(dense_file)
    with pytest.raises(TraceError, match=r"got trace format 'dense/9', need 'gvr_topk.trace.dense"):
        DenseTrace.open(dense_file)


def test_both_flavours_open_by_one_name_and_give_the_same_rows(tmp_path: Path) -> None:
    factored = tmp_path / "factored.safetensors"
    save(tiny_trace(), factored)
    opened = open_trace(factored)
    assert isinstance(opened, Trace)
    dense = write_dense(opened.rows(200), tmp_path / "dense.safetensors")
    for step, (a, b) in enumerate(zip(opened.rows(200), dense.rows(), strict=True)):
        assert torch.equal(a.scores, b.scores) and a[1:] == b[1:]
        assert (a.step, a.first_key) == (step, opened.window(step, 200).start)


def test_last_rows_are_the_last_steps_of_every_sequence(dense_file: Path) -> None:
    trace = DenseTrace.open(dense_file)
    rows = list(last_rows(trace, 4, 2))
    assert [row.step for row in rows] == [1] * 4 + [2] * 4
    assert {len(row.scores) for row in rows} == {4}
    assert len(list(last_rows(trace, None, 99))) == len(trace)


def test_arrays_become_rows_without_their_masked_tail(tmp_path: Path) -> None:
    scores = torch.arange(24.0).view(2, 3, 4)
    scores[0, 1, 2:] = -torch.inf
    scores[0, 2] = -torch.inf
    rows = list(array_rows(scores, k=2))
    assert [(row.step, row.layer, len(row.scores)) for row in rows] == [
        (0, 0, 4),
        (0, 1, 2),
        (1, 0, 4),
        (1, 1, 4),
        (1, 2, 4),
    ]
    assert rows[0].k == 2
    assert [row.step for row in array_rows(torch.zeros(3, 4))] == [0, 1, 2]
    for wrong in (torch.zeros(1, 1, 1, 1), torch.zeros(0, 4), torch.zeros(3).double()):
        with pytest.raises(TraceError, match="scores: got"):
            list(array_rows(wrong))
    torch.save(scores, tmp_path / "s.pt")
    assert len(list(load_rows(tmp_path / "s.pt", keys=3))) == 5
    save_file({"a": scores, "b": torch.zeros(1)}, tmp_path / "s.safetensors")
    assert len(list(load_rows(tmp_path / "s.safetensors", tensor="a"))) == 5
    with pytest.raises(TraceError, match="tensor: got 'c', need one of a, b"):
        load_rows(tmp_path / "s.safetensors", tensor="c")


def test_a_replay_hints_each_sequence_with_its_own_last_answer(device: str) -> None:
    """Two sequences in turns: the hint of one would miss in the other, whose rows are reversed."""
    base = torch.arange(100.0, device=device)
    rows = []
    for step in range(3):
        for request, scores in enumerate((base, base.flip(0))):
            rows.append(Row(scores[step:], step, 0, request, 0, step, None))
    found = list(replay(rows, 10, algorithms=("stream", "radix")))
    assert len(found) == 12 and all(row.exact for row in found)
    assert [row.overlap for row in found if row.request == 0] == [None] * 2 + [1.0] * 4
    # The reversed rows lose their best key with each step, and one other becomes a winner.
    assert [row.overlap for row in found if row.request == 1] == [None] * 2 + [0.9] * 4
    assert [row.hint_hits for row in found if row.request == 1] == [0] * 2 + [9] * 4
    assert {row.overlap for row in replay(rows, 10, use_hint=False)} == {None}
    assert {row.exact for row in replay(rows, 10, check=False)} == {None}
    with pytest.raises(TraceError, match="algorithms: got none"):
        list(replay(rows, 10, algorithms=()))


def test_a_replay_takes_the_recorded_k(dense_file: Path) -> None:
    replayed = list(replay(DenseTrace.open(dense_file).rows()))
    assert {row.k for row in replayed} == {4} and all(row.exact for row in replayed)
