# SPDX-License-Identifier: Apache-2.0
"""Many calls, counted by everything they were made of, with evidence of what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableSequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from time import monotonic
from typing import Any

import torch

import gvr_topk
from gvr_topk.bench import environment
from gvr_topk.stats import Path, Stats

from .case import Case, Subject, check
from .draw import Drawn, draw
from .shrink import shrink

SCHEMA = 1
# Of a valid call: a wrong answer, a refusal, or an error of the device.
_ERRORS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class Options:
    """What `python -m gvr_topk.fuzz` was asked for. A case is one row of one call."""

    device: str
    cases: int
    seed: int
    first_call: int = 0
    rows: tuple[str, ...] = ()  # kinds of rows; none: all
    dtypes: tuple[str, ...] = ()  # none: all
    most_failures: int = 5
    seconds: float | None = None  # after which no further call starts
    workers: int = 1  # processes, see workers.py
    most_rows: int | None = None  # of one call; part of what a call is a function of
    shrink_seconds: float = 60.0


@dataclass(frozen=True)
class Failure:
    call: int
    problem: str
    given: str
    shrunk: str
    command: str
    file: str | None


class Tally:
    """How far each process of a campaign is: its cases, its failures, the call it is at.

    Every worker writes its own three words; those of all are read without a lock.
    """

    WORDS = 3

    def __init__(self, words: MutableSequence[int] | None = None, worker: int = 0) -> None:
        self.words = [0] * self.WORDS if words is None else words
        self.first = self.WORDS * worker

    def tell(self, cases: int, failures: int, call: int) -> None:
        self.words[self.first : self.first + self.WORDS] = [cases, failures, call]

    def totals(self) -> tuple[int, int]:
        """(cases, failures) of all processes."""
        return sum(self.words[0 :: self.WORDS]), sum(self.words[1 :: self.WORDS])

    def call_of(self, worker: int) -> int:
        return self.words[self.WORDS * worker + 2]


class Campaign:
    """Runs calls first_call + worker, and then every `workers`-th, until all workers together have
    checked as many cases as wanted."""

    def __init__(
        self,
        options: Options,
        *,
        subject: Subject = gvr_topk,
        failures_to: FilePath | None = None,
        progress: Callable[[int, int], None] = lambda cases, failures: None,
        worker: int = 0,
        tally: Tally | None = None,
    ) -> None:
        self.options = options
        self.subject = subject
        self.failures_to = failures_to
        self.progress = progress
        self.worker = worker
        self.tally = Tally() if tally is None else tally
        self.counts: dict[str, Counter[str]] = {
            name: Counter()
            for name in (
                *("rows", "hints", "dtypes", "algorithms", "apis", "layouts", "overrides"),
                *("lengths", "winners", "arguments", "paths", "continuations"),
            )
        }
        self.cases = self.calls = self.scores = 0
        self.failures: list[Failure] = []

    def run(self) -> dict[str, Any]:
        """The evidence: environment, counts, failures."""
        options, began, problem = self.options, monotonic(), None
        call = options.first_call + self.worker
        cases = failures = 0
        while cases < options.cases and failures < options.most_failures:
            if options.seconds is not None and monotonic() - began > options.seconds:
                problem = f"stopped after {options.seconds:g} s"
                break
            self.tally.tell(self.cases, len(self.failures), call)
            usable = self.one(call)
            self.tally.tell(self.cases, len(self.failures), call)
            if not usable:
                problem = "the device is lost: every later call would fail"
                break
            call += options.workers
            cases, failures = self.tally.totals()
            self.progress(cases, failures)
        return {
            "schema": SCHEMA,
            "kind": "fuzz-evidence",
            "environment": environment.describe(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "options": asdict(options),
            "seconds": round(monotonic() - began, 1),
            "problem": problem,
            "cases": self.cases,
            "calls": self.calls,
            "scores": self.scores,
            "counts": {name: dict(sorted(count.items())) for name, count in self.counts.items()},
            "failures": [asdict(failure) for failure in self.failures],
        }

    def one(self, call: int) -> bool:
        """Call number `call`; False when the device can no longer be used."""
        options = self.options
        drawn = draw(
            options.seed, call, options.device, options.rows, options.dtypes, options.most_rows
        )
        try:
            stats = check(drawn.case, self.subject)
        except _ERRORS as error:
            usable = _usable(options.device)
            # Checked, so that `--cases 1` repeats this call and no other.
            self.calls += 1
            self.cases += drawn.case.rows
            self.failures.append(self._failure(call, drawn, error, usable))
            return usable
        self._count(drawn, stats)
        return True

    def _failure(self, call: int, drawn: Drawn, error: Exception, usable: bool) -> Failure:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        command = (
            f"python -m gvr_topk.fuzz --device {self.options.device} --cases 1 "
            f"--seed {self.options.seed} --first-call {call}"
        )
        for option, names in (("rows", self.options.rows), ("dtype", self.options.dtypes)):
            command += "".join(f" --{option} {name}" for name in names)
        if self.options.most_rows is not None:
            command += f" --most-rows {self.options.most_rows}"
        smallest = drawn.case
        if usable:
            smallest = shrink(
                drawn.case,
                lambda case: self._fails(case, type(error)),
                seconds=self.options.shrink_seconds,
            )
        file = None
        if usable and self.failures_to is not None:
            file = f"fuzz-{self.options.device}-{self.options.seed}-{call}.pt"
            self.failures_to.mkdir(parents=True, exist_ok=True)
            torch.save(_plain(smallest), self.failures_to / file)
        return Failure(call, problem, drawn.case.describe(), smallest.describe(), command, file)

    def _fails(self, case: Case, like: type[Exception]) -> bool:
        try:
            check(case, self.subject)
        except _ERRORS as error:
            return type(error) is like
        return False

    def _count(self, drawn: Drawn, stats: Stats | None) -> None:
        case, count = drawn.case, self.counts
        self.calls += 1
        self.cases += case.rows
        self.scores += case.rows * case.n
        for rows, hint, number in drawn.groups:
            count["rows"][rows] += number
            count["hints"][hint] += number
        count["dtypes"][drawn.dtype] += case.rows
        count["algorithms"][case.algorithm] += case.rows
        count["apis"][case.api] += case.rows
        count["layouts"][drawn.layout] += case.rows
        for name in case.tuning or ("none",):
            count["overrides"][name] += case.rows
        count["lengths"][_magnitude(case.n)] += case.rows
        count["winners"][_magnitude(case.k)] += case.rows
        for name in ("lengths", "starts", "hint", "slots", "noise"):
            count["arguments"][name] += case.rows * (getattr(case, name) is not None)
        count["arguments"]["hint per request"] += case.rows * (
            case.hint is not None and not case.hint_per_row
        )
        if case.scores.is_cpu:
            count["arguments"][f"{case.threads} threads"] += case.rows
        count["arguments"]["sorted"] += case.rows * case.sorted
        count["arguments"]["next_n > 1"] += case.rows * (case.next_n > 1)
        count["arguments"]["compress_ratio > 1"] += case.rows * (case.compress_ratio > 1)
        if stats is not None:
            for path in stats.path.tolist():
                count["paths"][Path(path).label] += 1
            for name in ("overflows", "undershoots"):
                count["continuations"][name] += int((stats.column(name) > 0).sum())
            count["continuations"]["more than one refine round"] += int(
                (stats.refine_rounds > 1).sum()
            )


def replay(path: FilePath, subject: Subject = gvr_topk) -> str | None:
    """What is wrong with the saved call, None when it is answered exactly."""
    saved = torch.load(path, weights_only=True)
    saved["table"] = tuple(saved["table"])
    try:
        check(Case(**saved), subject)
    except _ERRORS as error:
        return str(error)
    return None


def _plain(case: Case) -> dict[str, Any]:
    return {**case.__dict__, "table": list(case.table)}


def _magnitude(number: int) -> str:
    """The power of two below, sorted as text."""
    return f"2^{number.bit_length() - 1:02}"


def _usable(device: str) -> bool:
    """An illegal access makes every later use of the device fail."""
    try:
        return int(torch.ones(1, device=device).sum()) == 1
    except RuntimeError:
        return False
