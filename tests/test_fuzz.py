# SPDX-License-Identifier: Apache-2.0
"""The fuzzer finds what is wrong, makes it small, and says how to see it again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from generators import HINTS, row_names
from torch import Tensor

import gvr_topk
from gvr_topk.cli import main
from gvr_topk.fuzz.campaign import Campaign, Options, Tally, replay
from gvr_topk.fuzz.case import APIS, Case, Mismatch, check
from gvr_topk.fuzz.draw import ALGORITHMS, DTYPES, LAYOUTS, draw
from gvr_topk.fuzz.shrink import shrink
from gvr_topk.fuzz.workers import run_workers


def test_the_library_is_exact(device: str) -> None:
    cases, most_rows = (4000, 16) if device == "cpu" else (60_000, None)
    evidence = Campaign(Options(device, cases, seed=20, most_rows=most_rows)).run()
    assert evidence["failures"] == [] and evidence["problem"] is None
    assert evidence["cases"] >= cases
    for name in ("rows", "hints", "dtypes", "algorithms", "apis", "layouts", "lengths"):
        assert sum(evidence["counts"][name].values()) == evidence["cases"], name


def test_every_kind_of_everything_is_drawn() -> None:
    drawn = [draw(3, number, "cpu") for number in range(700)]
    groups = [group for call in drawn for group in call.groups]
    assert {kind for kind, _, _ in groups} == set(row_names())
    assert {hint for _, hint, _ in groups} == {*HINTS, "none"}
    assert {call.dtype for call in drawn} == set(DTYPES)
    assert {call.layout for call in drawn} == set(LAYOUTS)
    assert {call.case.api for call in drawn} == set(APIS)
    assert {call.case.algorithm for call in drawn} == set(ALGORITHMS)
    assert any(call.case.k > call.case.n for call in drawn)
    assert any(call.case.k in (call.case.n - 1, call.case.n) for call in drawn)


def test_a_call_is_a_function_of_its_seed_and_number(device: str) -> None:
    for number in range(40):
        first, second = (draw(5, number, device) for _ in range(2))
        assert first.groups == second.groups
        assert first.case.describe() == second.case.describe()
        for name in ("scores", "hint", "lengths", "starts", "slots"):
            one, other = getattr(first.case, name), getattr(second.case, name)
            assert (one is None) == (other is None)
            if one is not None:
                width = torch.int32 if one.element_size() == 4 else torch.int16
                same = (
                    one.contiguous() if one.dtype == torch.int64 else one.contiguous().view(width)
                )
                again = other.contiguous().view(same.dtype)
                assert torch.equal(same, again), name


def test_calls_may_be_kept_small_and_the_command_says_so(tmp_path: Path) -> None:
    drawn = [draw(3, number, "cpu", most_rows=4) for number in range(60)]
    assert max(call.case.rows for call in drawn) == 4
    options = Options("cpu", 500, seed=4, most_rows=4, most_failures=1, shrink_seconds=0.0)
    [failure] = Campaign(options, subject=_faulty(_forgets_one)).run()["failures"]
    assert failure["command"].endswith(" --most-rows 4")
    assert failure["shrunk"] == failure["given"], "no time to shrink"


def _faulty(change: Callable[[Tensor, Tensor], Tensor]) -> SimpleNamespace:
    """gvr_topk, but with indices that `change(scores, indices)` has been at."""

    def topk(scores: Tensor, k: int, *, out: Any = None, **options: Any) -> Any:
        values, indices = gvr_topk.topk(scores, k, **options)
        indices = change(scores, indices)
        values = torch.where(
            indices >= 0, scores.gather(1, indices.long().clamp(min=0)), -torch.inf
        ).to(scores.dtype)
        if out is None:
            return gvr_topk.TopKResult(values, indices)
        return [given.copy_(made) for given, made in zip(out, (values, indices), strict=True)]

    return SimpleNamespace(
        topk=topk,
        topk_indices=lambda scores, k, **options: topk(scores, k, **options)[1],
        explain=lambda scores, k, **options: (*topk(scores, k, **options), None),
        TopKCache=gvr_topk.TopKCache,
    )


def _last_tie_wins(scores: Tensor, indices: Tensor) -> Tensor:
    """The highest index among the scores equal to the K-th: the common tie rule's opposite."""
    changed = indices.clone()
    for row in range(len(scores)):
        chosen = indices[row][indices[row] >= 0].long()
        if len(chosen) in (0, scores.shape[1]):
            continue
        least = scores[row, chosen].min()
        ties = (scores[row] == least).nonzero()[:, 0]
        free = ties[~torch.isin(ties, chosen)]
        held = (scores[row, indices[row].long().clamp(min=0)] == least) & (indices[row] >= 0)
        if len(free) > 0 and bool(held.any()):
            changed[row, int(held.nonzero()[0, 0])] = free[-1]
    return changed


def _forgets_one(scores: Tensor, indices: Tensor) -> Tensor:
    """A buffer that is cut off silently: rows above 100 scores lose their last winner."""
    changed = indices.clone()
    if scores.shape[1] > 100:
        changed[:, -1:] = -1
    return changed


@pytest.mark.parametrize("fault, least", [(_last_tie_wins, (1, 2, 1)), (_forgets_one, (1, 101, 1))])
def test_a_fault_is_found_shrunk_saved_and_told(
    fault: Callable[[Tensor, Tensor], Tensor], least: tuple[int, int, int], tmp_path: Path
) -> None:
    options = Options("cpu", 3000, seed=4, rows=("quantised_33", "constant"), most_failures=1)
    evidence = Campaign(options, subject=_faulty(fault), failures_to=tmp_path).run()
    [failure] = evidence["failures"]
    saved = torch.load(tmp_path / failure["file"], weights_only=True)
    rows, n = saved["scores"].shape
    assert (rows, n, saved["k"]) == least
    assert replay(tmp_path / failure["file"], _faulty(fault)) is not None
    assert replay(tmp_path / failure["file"]) is None
    # The command names the call: the same one fails again at once.
    words = failure["command"].split()
    again = Options("cpu", 1, 4, int(words[words.index("--first-call") + 1]), options.rows)
    [same] = Campaign(again, subject=_faulty(fault)).run()["failures"]
    assert (same["problem"], same["given"]) == (failure["problem"], failure["given"])


def _beside_the_output(scores: Tensor, k: int, *, out: Any, **options: Any) -> None:
    gvr_topk.topk(scores, k, out=out, **options)
    indices = out[1]
    indices.as_strided((1,), (1,), indices.storage_offset() + k).fill_(0)


def test_a_write_beside_an_output_is_found() -> None:
    case = Case(torch.randn(2, 9), 3, api="out")
    check(case)
    with pytest.raises(Mismatch, match="beside indices"):
        check(case, SimpleNamespace(topk=_beside_the_output))


class _LeakyCache(gvr_topk.TopKCache):
    """Writes word `word` of entry [slot, draft] after every step."""

    where = (0, 0, 0)

    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        self.state[0][self.where] += 1
        return result


@pytest.mark.parametrize(
    "where, message",
    [
        ((0, 0, 4), "belong to no answered row"),  # a slot that no row has
        ((2, 0, 0), "how many indices"),
        ((2, 0, 3), "belong to no answered row"),  # the accepted draft
        ((2, 0, 5), "no winner"),
        ((2, 1, 4), "belong to no answered row"),  # an entry of a draft that does not exist
    ],
)
def test_a_write_to_a_foreign_state_entry_is_found(
    where: tuple[int, int, int], message: str
) -> None:
    scores = torch.zeros(3, 40)
    case = Case(
        scores,
        4,
        api="step",
        slots=torch.tensor([2, -1, 1]),
        hint=torch.zeros(3, 4, dtype=torch.int32),
        table=(4, 2, 4),
    )
    check(case)
    leaky = type("Leaky", (_LeakyCache,), {"where": where})
    if where == (2, 0, 5):
        leaky.step = _shifts_an_index
    with pytest.raises(Mismatch, match=message):
        check(case, SimpleNamespace(TopKCache=leaky))


def _shifts_an_index(self: gvr_topk.TopKCache, *arguments: Any, **options: Any) -> Any:
    result = gvr_topk.TopKCache.step(self, *arguments, **options)
    self.state[0, 2, 0, 5] = 39
    return result


def test_an_error_of_the_library_is_a_failure() -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    broken = SimpleNamespace(topk=refuses, topk_indices=refuses, explain=refuses, TopKCache=refuses)
    evidence = Campaign(Options("cpu", 100, seed=1, most_failures=2), subject=broken).run()
    assert [failure["problem"] for failure in evidence["failures"]] == ["out of luck"] * 2


def test_shrinking_keeps_what_the_failure_needs() -> None:
    """Fails only with a hint, three rows of which the last is short, and k of at least 5."""
    scores = torch.randn(12, 300)
    scores[7, 123] = 50.0
    case = Case(
        scores,
        20,
        api="out",
        hint=torch.zeros(12, 20, dtype=torch.int32),
        lengths=torch.full((6,), 300),
        next_n=2,
        sorted=True,
        algorithm="gvr",
        tuning={"chunk": 3, "staging": 1},
    )

    def fails(given: Case) -> bool:
        return given.hint is not None and given.k >= 5 and bool((given.scores == 50.0).any())

    smallest = shrink(case, fails)
    assert smallest.scores.tolist() == [[50.0]] and smallest.k == 5
    assert smallest.describe().startswith("1 x 1, k 5, float32, indices, hint")
    assert smallest.tuning == {} and smallest.lengths is None and smallest.algorithm == "auto"


def test_the_command_writes_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fuzz.json"
    arguments = ["--device", "cpu", "--cases", "300", "--seed", "9", "--out", str(out)]
    assert main(["fuzz", *arguments]) == 0
    assert "0 failures" in capsys.readouterr().out
    evidence = json.loads(out.read_text())
    assert evidence["kind"] == "fuzz-evidence" and evidence["cases"] >= 300
    assert evidence["options"]["seed"] == 9 and evidence["environment"]["torch"]
    assert [path.name for path in tmp_path.iterdir()] == ["fuzz.json"], "no failure, no folder"


def test_the_command_puts_failures_into_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fuzz.json"

    def refuses(case: Case, subject: Any) -> None:
        raise Mismatch("planted")

    monkeypatch.setattr("gvr_topk.fuzz.campaign.check", refuses)
    arguments = ["--device", "cpu", "--cases", "3000", "--seed", "9", "--most-failures", "2"]
    assert main(["fuzz", *arguments, "--out", str(out)]) == 1
    failures = json.loads(out.read_text())["failures"]
    folder = tmp_path / "fuzz-failures"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f["file"] for f in failures)
    assert f"--replay {folder / failures[0]['file']}" in capsys.readouterr().out


def test_workers_share_the_calls_and_leave_one_record(tmp_path: Path) -> None:
    """Worker w takes every W-th call: together exactly those of one process, each once."""
    seen = []
    options = Options("cpu", 200, seed=8, workers=2)
    record = run_workers(options, failures_to=None, progress=lambda *at: seen.append(at))
    assert record["cases"] >= 200 and record["failures"] == [] and record["problem"] is None
    assert record["options"]["workers"] == 2
    assert seen and all(failures == 0 for _, failures in seen)
    for name in ("rows", "hints", "dtypes", "algorithms", "apis", "layouts", "lengths"):
        assert sum(record["counts"][name].values()) == record["cases"], name

    words = [0] * 3 * Tally.WORDS
    parts = [Campaign(options, worker=w, tally=Tally(words, w)) for w in range(3)]
    numbers = [[] for _ in parts]
    for part, calls in zip(parts, numbers, strict=True):
        part.one = lambda call, calls=calls, part=part: calls.append(call) or _counts(part)
        part.options = Options("cpu", 7, seed=8, first_call=10, workers=3)
    for part in parts:
        part.run()
    assert numbers == [[10, 13, 16, 19, 22, 25, 28], [11], [12]]  # the first one did it all
    assert Tally(words).totals() == (9, 0) and Tally(words).call_of(0) == 28


def _counts(campaign: Campaign) -> bool:
    campaign.cases += 1
    return True


def test_a_worker_that_dies_is_told_with_its_call() -> None:
    killed: list[int] = []

    def kill_one(cases: int, failures: int) -> None:
        if cases > 0 and not killed:
            victim = next(iter(multiprocessing.active_children()))
            killed.append(victim.pid or 0)
            os.kill(victim.pid or 0, signal.SIGKILL)

    options = Options("cpu", 10**9, seed=8, workers=2, seconds=8.0)
    record = run_workers(options, failures_to=None, progress=kill_one)
    assert killed and record["cases"] > 0
    assert "ended with exit code -9 in call" in record["problem"]
    assert "stopped after 8 s" in record["problem"]


CAMPAIGN_OF_TWO = """
import multiprocessing
from gvr_topk.fuzz.campaign import Options
from gvr_topk.fuzz.workers import run_workers

def tell(cases, failures):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

run_workers(Options("cpu", 10**9, 8, workers=2, seconds=90.0), failures_to=None, progress=tell)
"""


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_end_with_the_process_that_started_them() -> None:
    campaign = subprocess.Popen(
        [sys.executable, "-c", CAMPAIGN_OF_TWO], stdout=subprocess.PIPE, text=True
    )
    with campaign:
        assert campaign.stdout is not None
        workers = [int(pid) for pid in campaign.stdout.readline().split()]
        campaign.kill()
    assert len(workers) == 2
    until = monotonic() + 30.0
    while any(_runs(worker) for worker in workers) and monotonic() < until:
        sleep(0.1)
    assert [worker for worker in workers if _runs(worker)] == []


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--rows", "nonsense"], "--rows: got 'nonsense', need one of"),
        (["--dtype", "fp8"], "--dtype: got 'fp8', need one of fp32, bf16, fp16"),
        (["--cases", "0"], "--cases: got 0, need at least 1"),
        (["--workers", "0"], "--workers: got 0, need at least 1"),
        (["--most-rows", "0"], "--most-rows: got 0, need at least 1"),
        (["--first-call", "-1"], "--first-call: got -1"),
        (["--replay", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--cases", "many"], "cases"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fuzz", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and "Traceback" not in error
