# SPDX-License-Identifier: Apache-2.0
"""What the process group adds: debug mode, caches per rank, torch.compile, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
import torch.distributed as dist
from generators import make_rows
from processes import run_ranks
from sharding import (
    METHODS,
    Case,
    arguments,
    contiguous,
    difference_of_part,
    difference_of_whole,
    expected,
    interleaved,
    whole_rows,
)
from torch import Tensor

import gvr_topk
import gvr_topk.distributed as sharded
from gvr_topk.reference import topk_reference

N, K = 300, 40


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def raised(call: Callable[[], Any]) -> tuple[str, str]:
    """(type, message) of what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def difference_of(got: tuple[str, str], kind: str, *parts: str) -> list[str]:
    good = got[0] == kind and all(part in got[1] for part in parts)
    return [] if good else [f"raised {got}, need {kind} with {parts}"]


# Debug mode.
def disagreements(rank: int, world: int, device: torch.device) -> list[str]:
    """Rank 1 differs in one thing at a time; all ranks have to say the same about it."""
    found = []
    odd = rank == 1

    def ask(kind: str, *parts: str, n: int = N, rows: int = 2, k: int = K, **given: Any) -> None:
        dtype = given.pop("dtype", torch.float32)
        scores = torch.zeros((), dtype=dtype).expand(rows, n)  # n may be more than fits
        got = raised(lambda: sharded.topk(scores, k, check=True, **given))
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, got)
        if len(set(everyone)) != 1:
            found.append(f"the ranks say different things: {everyone}")
        found.extend(difference_of(got, kind, *parts))

    ask("ValueError", "k: got 40 on ranks 0, 2, 41 on rank 1", k=41 if odd else K)
    half = torch.bfloat16 if odd else torch.float32
    ask("ValueError", "dtype of scores", "torch.bfloat16 on rank 1", dtype=half)
    ask("ValueError", "leading dimensions of scores: got [2] on ranks 0, 2", rows=3 if odd else 2)
    ask("ValueError", "layout: got contiguous", layout="interleaved" if odd else "contiguous")
    ask("ValueError", "method", "threshold", method="threshold" if odd else "auto")
    ask("ValueError", "return_", return_="local" if odd else "global")
    lengths = torch.tensor([N, 8 if odd else 9])
    ask("ValueError", "lengths: got [300, 9] on ranks 0, 2, [300, 8] on rank 1", lengths=lengths)
    ask("ValueError", "starts: got None on ranks 0, 2", starts=lengths - 8 if odd else None)
    ask("ValueError", "sorted: got True on ranks 0, 2", sorted=not odd)
    ask("ValueError", "next_n: got 1 on ranks 0, 2, 2 on rank 1", next_n=2 if odd else 1)
    ask("ValueError", "compress_ratio: got 1 on ranks 0, 2", compress_ratio=4 if odd else 1)
    ask("ValueError", "window: got global on ranks 0, 2", window="local" if odd else "global")
    wide = {"rows": 1, "n": 2**30}
    ask("ValueError", "need fewer than 2^31 in all", **wide)
    # A rank that fails before any data moves: in its arguments, or in its local selection.
    ask("TypeError", "rank 1 failed", "torch.float64", dtype=torch.float64 if odd else half)
    hint = torch.zeros(2, 4, dtype=torch.int64 if odd else torch.int32)
    ask("TypeError", "rank 1 failed", "hint: got dtype", hint=hint)
    ask("ValueError", "ranks 0, 1, 2 failed", "need 3 offsets", layout=(0, N))
    ask("ValueError", "rank 1 failed", "do not overlap", layout=(0, N, N + 9))
    # And after all this the group still works, however a layout is written.
    ask("nothing", lengths=torch.tensor([N, 3]))
    ask("nothing", layout=[0, N, 2 * N] if odd else (0, N, 2 * N))
    ask("nothing", layout="interleaved" if odd else sharded.Interleaved())
    return found


def test_debug_mode_gives_the_same_error_on_every_rank() -> None:
    run_ranks(disagreements, 3)


def one_fails_alone(rank: int, world: int, device: torch.device) -> list[str]:
    """Without debug mode the rank that fails says why, and the others end with the timeout."""
    found = []
    for method in METHODS:
        group = dist.new_group(timeout=timedelta(seconds=2))
        given = {"k": 0 if rank == 1 else K, "group": group, "method": method, "check": False}
        begin = monotonic()
        got = raised(lambda given=given: sharded.topk(torch.zeros(2, N), **given))
        if rank == 1:
            found += difference_of(got, "ValueError", "k: got 0, need 1 <= k")
        elif got[0] == "nothing" or monotonic() - begin > 30:
            found.append(f"{method}: {got} after {monotonic() - begin:.0f} s")
        dist.barrier()
    return found


def test_a_rank_that_fails_without_debug_mode_leaves_the_others_to_the_timeout() -> None:
    run_ranks(one_fails_alone, 2)


def test_debug_mode_can_be_had_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(dist, "all_gather_object", _recorder(asked, dist.all_gather_object))
    with group_of_one(tmp_path):
        scores = torch.zeros(1, 5)
        for value, calls in (("0", 0), ("1", 2)):
            monkeypatch.setenv("GVR_DISTRIBUTED_CHECK", value)
            asked.clear()
            sharded.topk(scores, 2)
            assert len(asked) == calls
        monkeypatch.setenv("GVR_DISTRIBUTED_CHECK", "yes")
        with pytest.raises(ValueError, match="GVR_DISTRIBUTED_CHECK: got 'yes', need 0 or 1"):
            sharded.topk(scores, 2)


def _recorder(asked: list[int], real: Callable[..., Any]) -> Callable[..., Any]:
    def record(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return real(*given, **named)

    return record


AWAY = torch.zeros(2, dtype=torch.int32, device="meta")
BAD_ARGUMENTS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "scores: got list", {"scores": [1.0]}),
    (TypeError, "scores: got dtype torch.int32", {"scores": torch.zeros(1, 4, dtype=torch.int32)}),
    (ValueError, "scores: got a 0-dimensional", {"scores": torch.tensor(1.0)}),
    (TypeError, "k: got str", {"k": "2"}),
    (ValueError, "k: got 0", {"k": 0}),
    (ValueError, "method: got 'fast', need one of auto", {"method": "fast"}),
    (TypeError, "method: got int", {"method": 3}),
    (ValueError, "return_: got 'all'", {"return_": "all"}),
    (ValueError, "window: got 'mine'", {"window": "mine"}),
    (ValueError, "layout: got 'striped'", {"layout": "striped"}),
    (TypeError, "layout: got int", {"layout": 3}),
    (TypeError, "layout: got str", {"layout": ("0",)}),
    (ValueError, "need 1 offsets >= 0", {"layout": (0, 4)}),
    (ValueError, "need 1 offsets >= 0", {"layout": (-1,)}),
    (ValueError, r"fewer than 2\^31 keys", {"layout": (2**31 - 4,)}),
    (ValueError, "next_n: got 3", {"next_n": 3}),
    (ValueError, "compress_ratio: got 0", {"compress_ratio": 0}),
    (ValueError, r"lengths: got shape \[3\], need \[2\]", {"lengths": torch.ones(3).int()}),
    (TypeError, "lengths: got dtype torch.float32", {"lengths": torch.ones(2)}),
    (TypeError, "starts: got list", {"starts": [1, 2]}),
    (TypeError, "check: got int", {"check": 1}),
    (TypeError, "cache: got str", {"cache": "mine"}),
    (ValueError, "slots: got a tensor without a cache", {"slots": torch.zeros(2).int()}),
    (ValueError, "k: got 2, need 3", {"cache": gvr_topk.TopKCache(1, 2, 3)}),
    (ValueError, "lengths: got a tensor on meta, need the device of scores", {"lengths": AWAY}),
    (ValueError, "starts: got a tensor on meta", {"starts": AWAY}),
    (ValueError, "hint: got a tensor on meta", {"hint": torch.empty(2, 2, device="meta").int()}),
    (
        ValueError,
        "slots: got a tensor on meta",
        {"slots": AWAY, "cache": gvr_topk.TopKCache(1, 2, 2)},
    ),
    (ValueError, "cache: got a tensor on meta", {"cache": torch.empty(1, device="meta").int()}),
    (
        ValueError,
        "hint: got a tensor beside a cache",
        {"cache": gvr_topk.TopKCache(1, 2, 2), "hint": torch.zeros(2, 2).int()},
    ),
    (
        ValueError,
        "drafts do not end one key apart",
        {
            "cache": gvr_topk.TopKCache(1, 1, 2, depth=2),
            "layout": sharded.Interleaved(2),
            "next_n": 2,
            "lengths": torch.tensor([4]),
        },
    ),
]


def test_bad_arguments_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    with group_of_one(tmp_path), sharded.count_traffic() as traffic:
        for kind, message, given in BAD_ARGUMENTS:
            call = {"scores": torch.zeros(2, 4), "k": 2, **given}
            with pytest.raises(kind, match=message):
                sharded.topk(**call)
    assert not traffic.operations
    with pytest.raises(ValueError, match=r"need torch\.distributed\.init_process_group first"):
        sharded.topk(torch.zeros(2, 4), 2)
    for page in (0, 2**31):
        with pytest.raises(ValueError, match="page: got"):
            sharded.Interleaved(page)


def test_one_rank_has_the_answer_of_the_reference(tmp_path: Path) -> None:
    scores = make_rows("quantised_33", 6, N, K).view(2, 3, N)
    values, indices = topk_reference(scores, K)
    with group_of_one(tmp_path), sharded.count_traffic() as traffic:
        for method in METHODS:
            result = sharded.topk(scores, K, method=method)
            assert torch.equal(result.indices, indices) and torch.equal(result.values, values)
        offset = sharded.topk(scores, K, layout=[100]).indices
        assert torch.equal(offset, indices + 100)
        assert sharded.topk(torch.zeros(0, 9), 4).indices.shape == (0, 4)
    assert not traffic.operations


# Caches.
def decode(rank: int, world: int, device: torch.device) -> list[str]:
    """A decode with a cache on each rank: exact in every step, and no message for the hint."""
    found = []
    for cut in (contiguous([N] * world), interleaved(world, N * world, 1)):
        cache = gvr_topk.TopKCache(2, 4, K, depth=2, device=device)
        for step in range(4):
            rows = {"next_n": 2, "compress_ratio": 1}
            window = {"lengths": [N * world - 20 + step, N + step, 0], **rows}
            case = Case(cut, "quantised_4097", 6, K, torch.float32, step, window)
            whole = whole_rows(case)
            given = arguments(case, rank, whole, device)
            given |= {"cache": cache, "layer": 1, "slots": torch.tensor([3, 0, -1], device=device)}
            bare = {name: given[name] for name in given if name not in ("cache", "layer", "slots")}
            method = METHODS[step % 3]
            with sharded.count_traffic() as hinted:
                result = sharded.topk(**given, method=method)
            with sharded.count_traffic() as plain:
                sharded.topk(**bare, method=method)
            if problem := difference_of_whole(case, result, expected(case, whole)):
                found.append(f"{case}: {problem}")
            if hinted.operations != plain.operations:
                found.append(f"traffic {hinted.operations}, without cache {plain.operations}")
            part = sharded.topk(**given, method=method, return_="local")
            if problem := difference_of_part(case, rank, part, expected(case, whole)):
                found.append(f"local, {case}: {problem}")
        entry = cache.state[1, 3, 1]
        stored = set(entry[4 : 4 + int(entry[0])].tolist())
        mine = set(part.indices[1][part.indices[1] >= 0].tolist())
        if not mine or not mine <= stored:
            found.append("the cache lacks a part of this rank's answer")
        if cache.state[0].any():
            found.append("a layer that was not asked for was written")
    return found


def test_a_cache_per_rank_holds_its_part_and_sends_nothing() -> None:
    run_ranks(decode, 2)


# torch.compile and CUDA graphs.
def compiled(rank: int, world: int, device: torch.device) -> list[str]:
    """One graph without breaks for every method, exact with new data and lengths."""
    found = []
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    state = gvr_topk.TopKCache(1, 2, K, device=device).state
    blocks, pages = contiguous([N] * world), interleaved(world, N * world, 1)
    for cut, method, return_ in (
        (blocks, "candidates", "global"),
        (blocks, "threshold", "local"),
        (pages, "splitters", "global"),
    ):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True, backend=backend)
        def select(
            scores: Tensor,
            lengths: Tensor,
            method: Any = method,
            return_: Any = return_,
            layout: Any = cut.layout,
        ) -> tuple[Tensor, Tensor]:
            values, indices = sharded.topk(
                scores * 1.0,
                K,
                layout=layout,
                lengths=lengths,
                method=method,
                return_=return_,
                cache=state,
            )
            return values, indices * 1

        for seed in range(2):
            window = {"lengths": [N * world, N + seed], "next_n": 1, "compress_ratio": 1}
            case = Case(cut, "quantised_33", 2, K, torch.float32, seed, window)
            whole = whole_rows(case)
            given = arguments(case, rank, whole, device)
            result = gvr_topk.TopKResult(*select(given["scores"], given["lengths"]))
            answer = expected(case, whole)
            if return_ == "global":
                problem = difference_of_whole(case, result, answer)
            else:
                problem = difference_of_part(case, rank, result, answer)
            if problem:
                found.append(f"{method}, {return_}, {case}: {problem}")
    return found


def test_a_sharded_call_compiles_whole() -> None:
    run_ranks(compiled, 2)


def captured(rank: int, world: int, device: torch.device) -> list[str]:
    """A CUDA graph of a call is right after data and lengths have changed."""
    found = []
    cuts = (contiguous([N] * world), interleaved(world, N * world, 1))
    for cut, return_ in product(cuts, ("global", "local")):
        for method in METHODS:
            scores = torch.zeros(2, N, device=device)
            lengths = torch.zeros(2, dtype=torch.int64, device=device)

            def call(
                method: Any = method,
                return_: Any = return_,
                scores: Tensor = scores,
                lengths: Tensor = lengths,
                layout: Any = cut.layout,
            ) -> gvr_topk.TopKResult:
                return sharded.topk(
                    scores, K, layout=layout, lengths=lengths, method=method, return_=return_
                )

            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = call()
            for seed, kind in enumerate(("normal", "constant", "random_bits", "some_nan")):
                window = {"lengths": [N * world, N + seed], "next_n": 1, "compress_ratio": 1}
                case = Case(cut, kind, 2, K, torch.float32, seed, window)
                whole = whole_rows(case)
                given = arguments(case, rank, whole, device)
                scores.copy_(given["scores"])
                lengths.copy_(given["lengths"])
                graph.replay()
                torch.cuda.synchronize()
                answer = expected(case, whole)
                if return_ == "global":
                    problem = difference_of_whole(case, result, answer)
                else:
                    problem = difference_of_part(case, rank, result, answer)
                if problem:
                    found.append(f"{method}, {return_}, {case}: {problem}")
    return found


needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two_gpus
@pytest.mark.parametrize("job", [decode, compiled, captured])
def test_two_gpus(job: Any) -> None:
    run_ranks(job, 2, "nccl")
