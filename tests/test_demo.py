# SPDX-License-Identifier: Apache-2.0
"""The demo says "exact" only of steps that are."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_trace import tiny_trace

from gvr_topk import TopKCache, demo
from gvr_topk.reference import topk_reference
from gvr_topk.traces import packaged_trace

K = 50


class WrongOnce:
    """A cache whose third answer lacks the best score."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cache = TopKCache(*args, **kwargs)
        self._answers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        result = self._cache.step(*args, **kwargs)
        if isinstance(result, tuple):
            self._answers += 1
            if self._answers == 3:
                values, indices, _ = result
                indices[0, values[0].argmax()] = -1
        return result


def test_every_step_of_the_packaged_trace_is_exact(device: str) -> None:
    records = list(demo.replay(packaged_trace(device), 2048, 6))
    assert [r.difference for r in records] == [None] * 6
    assert [r.keys for r in records] == list(range(32705, 32711))
    assert records[0].overlap is None and records[0].hint_valid == 0
    # The hint is the previous answer, so what the kernel counts is what the reference says.
    for record in records[1:]:
        assert record.overlap is not None
        assert (record.hint_valid, record.hint_hits) == (2048, round(2048 * record.overlap))


def test_a_tie_heavy_trace_is_exact(device: str) -> None:
    records = list(demo.replay(tiny_trace().to(device), K, 20))
    assert all(r.exact for r in records)


def test_exit_code_says_whether_every_step_was_exact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    trace = tiny_trace().to(device)
    assert demo.run(trace, K) == 0
    output = capsys.readouterr()
    assert "all 20 steps exact, bit for bit" in output.out
    assert "decoding" in output.err

    monkeypatch.setattr(demo, "TopKCache", WrongOnce)
    assert demo.run(trace, K) == 1
    output = capsys.readouterr()
    assert "exact, bit for bit" not in output.out
    assert "19/20" in output.out
    assert "error: 1 of 20 steps were not exact; step 2: 1 of 50 indices missing" in output.err


def test_json_holds_every_step_and_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(tiny_trace(), K, 12, json_output=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert [step["exact"] for step in report["steps"]] == [True] * 12
    assert report["summary"]["exact_steps"] == report["summary"]["steps"] == 12
    assert report["summary"]["step_us"] > 0 and report["summary"]["torch_us"] > 0
    assert report["k"] == K


def test_table_fits_80_columns_and_ends_with_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(tiny_trace(), K) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if "/" in line] == ["0-7", "8-15", "16-19", "all"]


@pytest.mark.parametrize(
    ("k", "steps", "message"),
    [
        (0, None, "k: got 0, need 1 <= k < 581"),
        (581, None, "k: got 581, need 1 <= k < 581"),
        (K, 0, "steps: got 0, need 1 <= steps <= 20"),
        (K, 21, "steps: got 21"),
    ],
)
def test_arguments_that_do_not_fit_the_trace_are_named(
    k: int, steps: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        demo.check_arguments(tiny_trace(), k, steps)


def test_find_difference_sees_every_kind_of_wrong_answer(device: str) -> None:
    scores = torch.tensor([3.0, 1.0, -0.0, 0.0, 2.0], device=device)
    expected = topk_reference(scores, 4)
    assert expected[1].tolist() == [0, 4, 1, 2]
    values, indices = (t.flip(0) for t in expected)
    assert demo.find_difference(scores, values, indices, expected) is None

    later_tie = torch.tensor([3, 1, 4, 0], dtype=torch.int32, device=device)
    difference = demo.find_difference(scores, values, later_tie, expected)
    assert difference == "1 of 4 indices missing ([2]), 1 not part of the answer ([3])"

    one_off = values.clone()
    one_off[2] = torch.nextafter(one_off[2], one_off[3])
    assert "other values" in str(demo.find_difference(scores, one_off, indices, expected))

    exchanged = values.flip(0)
    assert "not the scores at" in str(demo.find_difference(scores, exchanged, indices, expected))
