# SPDX-License-Identifier: Apache-2.0
"""Recorded traces: the same bits everywhere, and clear words about files that are none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_trace import tiny_tensors, tiny_trace
from torch import Tensor

from gvr_topk.reference import topk_reference
from gvr_topk.traces import Trace, TraceError, cut, factored, packaged_trace, save


@pytest.fixture(scope="module")
def packaged() -> Trace:
    return packaged_trace()


def by_definition(tensors: dict[str, Tensor], step: int) -> Tensor:
    """Scores of every key, visible or not."""
    keys = tensors["k_fp8"].view(torch.float8_e4m3fn).double()
    queries = tensors["q_fp8"][step].view(torch.float8_e4m3fn).double()
    heads = (queries @ keys.T).relu() * tensors["w"][step].double()[:, None]
    return (heads.sum(0) * tensors["k_scale"].double()).float()


def test_scores_follow_the_definition(device: str) -> None:
    trace = tiny_trace().to(device)
    for step in (0, 7, 19):
        expected = by_definition(tiny_tensors(), step)[: 600 - 20 + step + 1]
        assert torch.equal(trace.scores(step).cpu(), expected)


def test_scores_have_the_same_bits_on_every_device(packaged: Trace, device: str) -> None:
    on_device = packaged.to(device)
    assert on_device.device.type == device
    for step in (0, 63):
        assert torch.equal(on_device.scores(step).cpu(), packaged.scores(step))


def test_scores_depend_on_neither_context_nor_chunk(
    packaged: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = packaged.scores(40)
    assert torch.equal(packaged.scores(40, 5000), scores[-5000:])
    monkeypatch.setattr(factored, "_CHUNK", 1001)
    assert torch.equal(packaged.scores(40), scores)


def test_window_gives_the_offset_that_keeps_positions_absolute() -> None:
    trace = tiny_trace()
    before, now = trace.window(4, 100), trace.window(5, 100)
    assert (before, now) == (range(485, 585), range(486, 586))
    column = 30
    moved = column + before.start - now.start
    assert now.start + moved == before.start + column
    assert trace.window(5) == range(586)


def test_packaged_trace_is_a_small_cut_of_an_ordinary_layer(packaged: Trace) -> None:
    path = Path(factored.__file__).parents[1] / "data" / factored.PACKAGED
    assert path.stat().st_size <= 3_000_000
    assert (packaged.keys, packaged.steps) == (32768, 64)
    assert packaged.metadata["format"] == factored.FORMAT
    assert packaged.metadata["source"] == "trace_A_layer6"
    answers = [topk_reference(packaged.scores(step), 2048)[1] for step in range(0, 9)]
    overlaps = [int(torch.isin(now, before).sum()) / 2048 for before, now in pairwise(answers)]
    assert 0.5 < sum(overlaps) / len(overlaps) < 0.8


def test_saving_the_packaged_trace_gives_the_packaged_file(packaged: Trace, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    save(cut(packaged, packaged.keys, packaged.steps), copy)
    original = Path(factored.__file__).parents[1] / "data" / factored.PACKAGED
    assert copy.read_bytes() == original.read_bytes()


def test_a_cut_keeps_the_scores_bit_for_bit(tmp_path: Path) -> None:
    trace = tiny_trace()
    path = tmp_path / "cut.safetensors"
    digest = save(cut(trace, 300, 8), path)
    part = Trace.load(path)
    assert (part.keys, part.steps, part.name) == (300, 8, "cut")
    assert (part.metadata["first_key"], part.metadata["first_step"]) == (300, 12)
    for step in range(8):
        assert torch.equal(part.scores(step), trace.scores(12 + step)[300:])
    assert save(cut(trace, 300, 8), path) == digest
    smaller = cut(part, 100, 3)
    assert (smaller.metadata["first_key"], smaller.metadata["first_step"]) == (500, 17)
    assert smaller.metadata["source"] == "tiny"


@pytest.mark.parametrize(
    ("keys", "steps", "message"),
    [
        (601, 8, r"keys: got 601, need steps \(8\) <= keys <= 600"),
        (7, 8, "keys: got 7"),
        (300, 21, "steps: got 21, need 1 <= steps <= 20"),
        (300, 0, "steps: got 0"),
    ],
)
def test_a_cut_cannot_exceed_its_source(keys: int, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(tiny_trace(), keys, steps)


def test_a_step_or_context_that_was_not_recorded_is_named() -> None:
    trace = tiny_trace()
    with pytest.raises(ValueError, match="step: got 20, need 0 <= step < 20"):
        trace.scores(20)
    with pytest.raises(ValueError, match="keys: got 601, need 1 <= keys <= 600"):
        trace.scores(19, 601)
    with pytest.raises(ValueError, match="keys: got 0"):
        trace.scores(19, 0)


def saved(tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = tiny_tensors()
    change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.pop("w"), "lacks w, need a factored trace", id="missing"),
        pytest.param(
            lambda t: t.update(w=t["w"].double()),
            "w: got dtype torch.float64, need torch.float32",
            id="dtype",
        ),
        pytest.param(
            lambda t: t.update(k_fp8=t["k_fp8"].flatten()),
            r"k_fp8: got shape \[4800\], need \[keys, width\]",
            id="rank",
        ),
        pytest.param(
            lambda t: t.update(k_scale=t["k_scale"][:-1].clone()),
            "k_scale: got 599 keys, need 600 as elsewhere",
            id="size",
        ),
        pytest.param(
            lambda t: t.update(q_fp8=t["q_fp8"][:0].clone(), w=t["w"][:0].clone()),
            "q_fp8: got 0 steps, need at least 1",
            id="empty",
        ),
        pytest.param(
            lambda t: t.update(k_fp8=t["k_fp8"][:9].clone(), k_scale=t["k_scale"][:9].clone()),
            "got 20 steps and 9 keys, need at least as many keys as steps",
            id="too short",
        ),
    ],
)
def test_a_foreign_file_is_described(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=message):
        Trace.load(saved(tmp_path, change))


@pytest.mark.parametrize("size", [0, 4, 200, 3000])
def test_a_truncated_file_is_an_error(size: int, tmp_path: Path) -> None:
    path = saved(tmp_path, lambda tensors: None)
    assert path.stat().st_size > size
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TraceError, match="not a complete safetensors file"):
        Trace.load(path)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("these are no tensors at all")
    with pytest.raises(TraceError, match="not a complete safetensors file"):
        Trace.load(path)
    with pytest.raises(TraceError, match="no such file"):
        Trace.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{"format": "gvr_topk.trace.dense/1"}', "got trace format 'gvr_topk.trace.dense/1'"),
        ("[]", r"got trace format \[\]"),
        ("{", "the header entry 'trace' is not JSON"),
    ],
)
def test_a_format_of_another_time_is_an_error(entry: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(tiny_tensors(), path, metadata={"trace": entry})
    with pytest.raises(TraceError, match=message):
        Trace.load(path)
