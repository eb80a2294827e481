# SPDX-License-Identifier: Apache-2.0
"""Properties over random shapes, rows, hints and overrides."""

from __future__ import annotations

import pytest
import torch
from generators import HINTS, make_hint, make_rows, row_names
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_exact, bits, exact_answer, gather_values

import gvr_topk
from gvr_topk.fuzz.case import Case, check
from gvr_topk.testing import tuning

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
ALGORITHMS = st.sampled_from(["auto", "gvr", "resident", "stream", "radix"])
TUNINGS = st.fixed_dictionaries(
    {
        "ctas_per_row": st.sampled_from([0, 1, 2, 4, 8, 16]),
        "threads": st.sampled_from([0, 256, 512, 1024]),
        "staging": st.sampled_from([0, 1, 40, 300]),
        "chunk": st.sampled_from([0, 1, 32, 100, 1000]),
        "bins": st.sampled_from([0, 1, 7, 64]),
        "rank_capacity": st.sampled_from([0, 1, 5, 64]),
        "max_verify": st.integers(0, 3),
        "force_undershoot": st.integers(0, 1),
        "ignore_hint": st.integers(0, 1),
    }
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """(rows, n, k) with every relation of n and k."""
    n = draw(st.one_of(st.integers(1, 80), st.integers(81, 3000), st.integers(3001, 12_000)))
    k = draw(st.one_of(st.integers(1, n), st.integers(1, min(n, 64)), st.integers(n, 2 * n)))
    return draw(st.integers(1, 4)), n, k


@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_same_row_any_two_hints_same_answer(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    rows, n, k = shape
    scores = make_rows(
        kind, rows, n, k, device=device, dtype=dtype, seed=data.draw(st.integers(0, 99))
    )
    answers = []
    for _ in range(2):
        hint = make_hint(data.draw(st.sampled_from(list(HINTS))), scores, k)
        with tuning(**data.draw(TUNINGS)):
            result = gvr_topk.topk(scores, k, hint=hint, algorithm=data.draw(ALGORITHMS))
        answers.append(result.indices.sort(-1).values)
    assert torch.equal(*answers)
    assert_exact(exact_answer(scores, k), result.indices, result.values)


@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_any_window_of_any_view_is_exact(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    requests, n, k = shape
    next_n = data.draw(st.integers(1, 4))
    rows = requests * next_n
    offset, gap = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    storage = make_rows(kind, 1, offset + rows * (n + gap), k, device=device, dtype=dtype)[0]
    scores = storage.as_strided((rows, n), (n + gap, 1), offset)
    ratio = data.draw(st.integers(1, 5))
    bounds = st.lists(st.integers(-5, n * ratio + 9), min_size=requests, max_size=requests)
    integer = data.draw(st.sampled_from([torch.int32, torch.int64]))
    window = {
        "lengths": torch.tensor(data.draw(bounds), dtype=integer, device=device),
        "starts": torch.tensor(data.draw(bounds), dtype=integer, device=device) // (2 * ratio),
        "next_n": next_n,
        "compress_ratio": ratio,
    }
    hint = make_hint(data.draw(st.sampled_from(list(HINTS))), scores, k)
    sorted = data.draw(st.booleans())
    with tuning(**data.draw(TUNINGS)):
        values, indices = gvr_topk.topk(
            scores, k, hint=hint, sorted=sorted, algorithm=data.draw(ALGORITHMS), **window
        )
    assert_exact(exact_answer(scores, k, **window), indices, values, sorted=sorted)


@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_a_row_has_one_answer_in_every_batch(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    """Alone, and at any position of batches of any size among rows of any kind."""
    _, n, k = shape
    row = make_rows(kind, 1, n, k, device=device, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    algorithm = data.draw(ALGORITHMS)
    alone = gvr_topk.topk_indices(row, k, algorithm=algorithm).sort(-1).values
    size = data.draw(st.integers(1, 9))
    other = data.draw(st.sampled_from(row_names()))
    batch = make_rows(other, size, n, k, device=device, dtype=dtype)
    position = data.draw(st.integers(0, size - 1))
    batch[position] = row[0]
    hint = make_hint(data.draw(st.sampled_from(list(HINTS))), batch, k)
    with tuning(**data.draw(TUNINGS)):
        indices = gvr_topk.topk_indices(batch, k, hint=hint, algorithm=data.draw(ALGORITHMS))
    # A copy of a signalling NaN may be quiet, and is a NaN still: the order sees no difference.
    assert torch.equal(indices[position].sort().values, alone[0])


@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_sorted_output_is_the_unsorted_output_sorted(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    rows, n, k = shape
    scores = make_rows(kind, rows, n, k, device=device, dtype=dtype)
    algorithm, overrides = data.draw(ALGORITHMS), data.draw(TUNINGS)
    with tuning(**overrides):
        free = gvr_topk.topk(scores, k, algorithm=algorithm)
        ordered = gvr_topk.topk(scores, k, algorithm=algorithm, sorted=True)
    assert torch.equal(free.indices.sort(-1).values, ordered.indices.sort(-1).values)
    for values, indices in (free, ordered):
        assert torch.equal(bits(values), bits(gather_values(scores, indices)))
        padding = indices < 0
        assert bool((padding.int().diff(dim=-1) >= 0).all()), "padding before a winner"
        assert bool((values[padding] == -torch.inf).all())
    assert_exact(exact_answer(scores, k), ordered.indices, ordered.values, sorted=True)


@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_nothing_beside_the_outputs_is_written(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    rows, n, k = shape
    scores = make_rows(kind, rows, n, k, device=device, dtype=dtype)
    lengths = data.draw(st.lists(st.integers(-2, n + 2), min_size=rows, max_size=rows))
    case = Case(
        scores,
        k,
        api="out",
        hint=make_hint(data.draw(st.sampled_from(list(HINTS))), scores, k),
        lengths=torch.tensor(lengths, device=device),
        sorted=data.draw(st.booleans()),
        algorithm=data.draw(ALGORITHMS),
        tuning=data.draw(TUNINGS),
    )
    check(case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@given(shapes(), DTYPES, st.sampled_from(row_names()), st.data())
def test_both_devices_agree_index_for_index(
    shape: tuple[int, int, int], dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    rows, n, k = shape
    scores = make_rows(kind, rows, n, k, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    hint = make_hint(data.draw(st.sampled_from(list(HINTS))), scores, k)
    with tuning(**data.draw(TUNINGS)):
        on_cpu, on_gpu = (
            gvr_topk.topk(
                scores.to(device),
                k,
                hint=hint.to(device),
                sorted=True,
                algorithm=data.draw(ALGORITHMS),
            )
            for device in ("cpu", "cuda")
        )
    assert torch.equal(on_cpu.indices, on_gpu.indices.cpu())
    assert torch.equal(bits(on_cpu.values), bits(on_gpu.values.cpu()))


@given(st.data())
def test_any_history_of_a_cache_is_exact(device: str, data: st.DataObject) -> None:
    """Steps, resets, copies and commits in any order, with slots in and out of range."""
    layers, slots, depth, k = 2, 3, 2, data.draw(st.integers(1, 40))
    hint_size = data.draw(st.integers(1, k))
    cache = gvr_topk.TopKCache(layers, slots, k, hint_size=hint_size, depth=depth, device=device)
    slot_lists = st.lists(st.integers(0, slots - 1), min_size=1, max_size=slots, unique=True)
    for step in range(6):
        chosen = torch.tensor(data.draw(slot_lists), device=device)
        action = data.draw(st.sampled_from(["step", "step", "reset", "copy", "commit"]))
        if action == "reset":
            cache.reset(chosen)
        elif action == "copy":
            cache.copy(chosen, chosen.roll(1))
        elif action == "commit":
            cache.commit(chosen, chosen % depth)
        next_n = data.draw(st.integers(1, depth))
        scores = make_rows("quantised_33", len(chosen) * next_n, 300, k, device=device, seed=step)
        lengths = torch.tensor(
            data.draw(st.lists(st.integers(-2, 310), min_size=len(chosen), max_size=len(chosen))),
            device=device,
        )
        outside = data.draw(st.sampled_from([chosen[:1], chosen.new_tensor([-1])]))
        indices = cache.step(
            scores,
            data.draw(st.integers(0, layers - 1)),
            torch.cat([outside, chosen[1:]]),
            lengths,
            next_n=next_n,
            algorithm=data.draw(ALGORITHMS),
        )
        assert_exact(exact_answer(scores, k, lengths=lengths, next_n=next_n), indices)
