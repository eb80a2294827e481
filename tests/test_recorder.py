# SPDX-License-Identifier: Apache-2.0
"""Recorder: what a running model selects from, kept bit for bit, and the model left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gvr_topk
from gvr_topk import TopKCache, _observers
from gvr_topk.traces import DenseTrace, Recorder, Row, TraceError, open_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recorded.safetensors"


@pytest.fixture(autouse=True)
def _no_observer_is_left_behind():
    yield
    assert _observers.active == ()


def recorded(path: Path) -> list[Row]:
    trace = open_trace(path)
    assert isinstance(trace, DenseTrace)
    return list(trace.rows())


@pytest.mark.parametrize("call", [gvr_topk.topk, gvr_topk.topk_indices, gvr_topk.explain])
def test_every_function_is_recorded(call, device: str, dtype: torch.dtype, path: Path) -> None:
    scores = torch.randn(2, 3, 50, device=device).to(dtype)
    with Recorder(path, metadata={"model": "none"}) as recorder:
        call(scores, 5)
    rows = recorded(path)
    assert (recorder.rows, recorder.nbytes) == (6, scores.numel() * scores.element_size())
    assert [row.request for row in rows] == list(range(6))
    assert torch.equal(torch.stack([row.scores for row in rows]), scores.view(6, 50).cpu())
    assert {row[1:4] + row[4:] for row in rows} == {(0, 0, r, 0, 0, 5) for r in range(6)}
    assert open_trace(path).metadata["model"] == "none"


def test_calls_with_out_are_recorded(path: Path) -> None:
    scores = torch.randn(1, 50)
    values, indices = torch.empty(1, 5), torch.empty(1, 5, dtype=torch.int32)
    with Recorder(path):
        gvr_topk.topk(scores, 5, out=(values, indices))
        gvr_topk.topk_indices(scores, 5, out=indices)
    assert [row.step for row in recorded(path)] == [0, 1]


def test_the_valid_window_alone_is_recorded(device: str, path: Path) -> None:
    """Draft rows end one key apart; what lies outside a window is garbage and is left out."""
    scores = torch.randn(6, 40, device=device)
    lengths = torch.tensor([30, 20, 0], device=device)
    starts = torch.tensor([3, 0, 0], device=device)
    with Recorder(path) as recorder:
        gvr_topk.topk(scores, 4, lengths=lengths, starts=starts, next_n=2)
    rows = recorded(path)
    assert [(r.request, r.draft, r.first_key, len(r.scores)) for r in rows] == [
        (0, 0, 3, 26),
        (0, 1, 3, 27),
        (1, 0, 0, 19),
        (1, 1, 0, 20),
    ]
    assert torch.equal(rows[1].scores, scores[1, 3:30].cpu())
    assert recorder.skipped == {"empty row": 2}


def test_compressed_lengths_count_scores(path: Path) -> None:
    with Recorder(path):
        gvr_topk.topk(torch.randn(1, 40), 4, lengths=torch.tensor([30]), compress_ratio=4)
    assert len(recorded(path)[0].scores) == 7


def test_plain_calls_take_their_layer_from_the_order_of_calls(path: Path) -> None:
    with Recorder(path, layers=3, only_layers={0, 2}) as recorder:
        for _ in range(2):
            for layer in range(3):
                gvr_topk.topk_indices(torch.full((1, 9), float(layer)), 2)
    rows = recorded(path)
    assert [(row.layer, row.step, row.scores[0].item()) for row in rows] == [
        (0, 0, 0.0),
        (2, 0, 2.0),
        (0, 1, 0.0),
        (2, 1, 2.0),
    ]
    assert recorder.skipped == {"layer not asked for": 2}


def test_a_cache_says_layer_and_request(device: str, path: Path) -> None:
    cache, second = (TopKCache(2, 8, 4, device=device) for _ in range(2))
    slots = torch.tensor([5, -1, 2, -9], device=device)
    scores = torch.randn(4, 30, device=device)
    with Recorder(path) as recorder:
        for layer in range(2):
            cache.step(scores, layer, slots)
        second.step(scores, 1, slots)
    assert [(r.layer, r.request) for r in recorded(path)] == [
        (0, 5),
        (0, 2),
        (1, 5),
        (1, 2),
        (3, 5),
        (3, 2),
    ]
    assert recorder.skipped == {"padding slot": 6}


def test_the_next_user_of_a_slot_is_another_request(path: Path) -> None:
    cache = TopKCache(1, 4, 3)
    with Recorder(path):
        for reset in ([2], None):
            cache.step(torch.randn(1, 9), 0, torch.tensor([2]))
            cache.step(torch.randn(1, 9), 0, torch.tensor([2]))
            cache.reset(reset)
        cache.step(torch.randn(1, 9), 0, torch.tensor([2]))
    found = [(row.request, row.step) for row in recorded(path)]
    assert found == [(2, 0), (2, 1), (6, 0), (6, 1), (10, 0)]


def test_slots_and_steps_can_be_chosen(path: Path) -> None:
    with Recorder(path, only_slots={1}, every=2) as recorder:
        for step in range(5):
            gvr_topk.topk_indices(torch.full((2, 9), float(step)), 2)
    assert [(row.request, row.step) for row in recorded(path)] == [(1, 0), (1, 2), (1, 4)]
    assert recorder.skipped == {"slot not asked for": 5, "between recorded steps": 2}


def test_recording_stops_before_max_bytes(path: Path) -> None:
    with Recorder(path, max_bytes=1000, progress=True) as recorder:
        for _ in range(5):
            gvr_topk.topk_indices(torch.randn(1, 100), 2)
            # A row that would fit again: the recording has ended all the same.
            gvr_topk.topk_indices(torch.randn(1, 1), 1)
        assert recorder.stopped == "max_bytes (1000) reached"
    assert [len(row.scores) for row in recorded(path)] == [100, 1, 100, 1]
    assert recorder.nbytes <= 1000


def test_answers_do_not_depend_on_being_recorded(path: Path) -> None:
    scores = torch.randn(3, 500)
    plain = gvr_topk.topk(scores, 20, sorted=True)
    with Recorder(path):
        found = gvr_topk.topk(scores, 20, sorted=True)
    assert torch.equal(plain.values, found.values) and torch.equal(plain.indices, found.indices)


def test_a_selection_that_fails_is_not_recorded(path: Path) -> None:
    with Recorder(path) as recorder:
        gvr_topk.topk_indices(torch.randn(1, 9), 2)
        with pytest.raises(ValueError, match="lengths"):
            gvr_topk.topk_indices(torch.randn(2, 9), 2, lengths=torch.tensor([1, 2, 3]))
    assert (recorder.rows, len(recorded(path))) == (1, 1)


def test_what_was_recorded_survives_an_error_of_the_model(path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"), Recorder(path):
        gvr_topk.topk_indices(torch.randn(1, 9), 2)
        raise RuntimeError("out of luck")
    assert len(recorded(path)) == 1


def test_an_error_of_the_recording_waits_for_the_end_of_the_block(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(TraceError, match=r"recording failed .*no space"),
        Recorder(path) as recorder,
    ):
        assert recorder._writer is not None

        def full(data: object) -> int:
            raise OSError("no space left")

        monkeypatch.setattr(recorder._writer._spool, "write", full)
        indices = gvr_topk.topk_indices(torch.arange(9.0), 1)
        assert indices.tolist() == [8]
        assert recorder.stopped is not None
    assert list(path.parent.iterdir()) == []


def test_a_block_without_selections_says_so(path: Path) -> None:
    with (
        pytest.raises(TraceError, match="nothing was recorded: no selection was made"),
        Recorder(path),
    ):
        pass
    with (
        pytest.raises(TraceError, match="nothing was recorded; rows left out: 1 empty row"),
        Recorder(path),
    ):
        gvr_topk.topk_indices(torch.randn(1, 9), 2, lengths=torch.tensor([0]))
    assert list(path.parent.iterdir()) == []


def test_wrong_arguments_are_named(path: Path) -> None:
    for name in ("layers", "every", "max_bytes"):
        with pytest.raises(ValueError, match=f"{name}: got 0, need at least 1"):
            Recorder(path, **{name: 0})
    with pytest.raises(OSError), Recorder(path / "absent" / "t.safetensors"):
        pass
    with pytest.raises(TypeError), Recorder(path, metadata={"tensor": torch.zeros(1)}):
        pass
    with Recorder(path) as recorder:
        gvr_topk.topk_indices(torch.randn(1, 9), 2)
    with pytest.raises(TraceError, match="used already"), recorder:
        pass


def test_two_recorders_record_the_same(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with Recorder(path), Recorder(other):
        gvr_topk.topk_indices(torch.randn(2, 9), 2)
    assert path.read_bytes() == other.read_bytes()


def test_threads_share_a_recorder(path: Path) -> None:
    def work(number: int) -> None:
        cache = TopKCache(1, 1, 3)
        for step in range(20):
            cache.step(torch.full((1, 50), float(100 * number + step)), 0)

    with Recorder(path) as recorder:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert recorder.rows == 80
    by_layer: dict[int, list[float]] = {}
    for row in recorded(path):
        assert row.scores.unique().numel() == 1
        by_layer.setdefault(row.layer, []).append(row.scores[0].item())
    assert len(by_layer) == 4
    for values in by_layer.values():
        assert values == [values[0] + step for step in range(20)]


def select(scores: Tensor) -> Tensor:
    return gvr_topk.topk_indices(scores * 2, 3, sorted=True) + 1


def test_compiled_code_has_no_graph_break_while_nobody_records() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(select, backend="eager", fullgraph=True)
    scores = torch.randn(2, 40)
    assert torch.equal(compiled(scores), select(scores))


def test_compiled_code_is_recorded_and_returns_to_one_graph(path: Path) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(select, backend="eager")
    scores = torch.randn(2, 40)
    expected = compiled(scores)
    with Recorder(path):
        assert torch.equal(compiled(scores), expected)
    assert torch.equal(torch.stack([row.scores for row in recorded(path)]), scores * 2)
    assert torch.equal(compiled(scores), expected)
    torch._dynamo.reset()
    assert torch._dynamo.explain(select)(scores).graph_break_count == 0


def test_rows_inside_a_cuda_graph_are_counted_as_skipped(device: str, path: Path) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    scores = torch.randn(2, 400, device=device)
    gvr_topk.topk_indices(scores, 3)
    graph = torch.cuda.CUDAGraph()
    with Recorder(path) as recorder:
        gvr_topk.topk_indices(scores, 3)
        with torch.cuda.graph(graph):
            indices = gvr_topk.topk_indices(scores, 3)
        graph.replay()
    assert torch.equal(indices.sort().values, gvr_topk.topk_indices(scores, 3).sort().values)
    assert recorder.skipped == {"inside a CUDA graph": 2} and recorder.rows == 2


def test_importing_the_package_does_not_load_the_compiler() -> None:
    """torch's compiler takes longer to load than everything else; a Recorder may load it."""
    code = (
        "import sys, torch, gvr_topk, gvr_topk.traces\n"
        "gvr_topk.topk(torch.randn(1, 9), 2)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0


def test_queries_of_a_batch_entry_can_be_steps_of_one_request(path: Path) -> None:
    """As transformers calls: a prefill of three queries, then one query per step."""
    scores = torch.randn(2, 3, 9)
    with Recorder(path, queries=True):
        gvr_topk.topk(scores, 2)
        gvr_topk.topk(scores[:, :1], 2)
    rows = recorded(path)
    assert [(row.request, row.step, row.draft) for row in rows] == [
        (0, 0, 0),
        (0, 1, 0),
        (0, 2, 0),
        (1, 0, 0),
        (1, 1, 0),
        (1, 2, 0),
        (0, 3, 0),
        (1, 3, 0),
    ]
    assert torch.equal(torch.stack([row.scores for row in rows[:6]]).view(2, 3, 9), scores)
