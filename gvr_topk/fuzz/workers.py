# SPDX-License-Identifier: Apache-2.0
"""One campaign on several processes: worker w of W checks calls w, w + W, w + 2 W, ...

Every call is the function of (seed, number) that it is in one process, so the command that repeats
a failure is the same. How many calls each worker gets to depends on its speed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from .campaign import Campaign, Options, Tally

_POLL_SECONDS = 0.2


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    results: Connection


def run_workers(
    options: Options, *, failures_to: Path | None, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """The evidence of options.workers processes, as that of one."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    words = context.Array("q", Tally.WORDS * options.workers, lock=False)
    tally = Tally(words)
    began = monotonic()
    waiting: list[_Worker] = []
    for number in range(options.workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(options, number, words, failures_to, theirs), daemon=True
        )
        process.start()
        theirs.close()
        waiting.append(_Worker(number, process, ours))

    parts: list[dict[str, Any]] = []
    lost: list[str] = []
    while waiting:
        ready = wait([worker.results for worker in waiting], timeout=_POLL_SECONDS)
        progress(*tally.totals())
        for worker in [worker for worker in waiting if worker.results in ready]:
            waiting.remove(worker)
            try:
                parts.append(worker.results.recv())
                worker.process.join()
            except EOFError:  # it ended without a word
                worker.process.join()
                lost.append(
                    f"worker {worker.number} ended with exit code {worker.process.exitcode} "
                    f"in call {tally.call_of(worker.number)}"
                )
    return _merged(options, parts, lost, monotonic() - began)


def _work(
    options: Options,
    worker: int,
    words: MutableSequence[int],
    failures_to: Path | None,
    results: Connection,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    campaign = Campaign(options, failures_to=failures_to, worker=worker, tally=Tally(words, worker))
    results.send(campaign.run())
    results.close()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and nobody would read their results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _merged(
    options: Options, parts: list[dict[str, Any]], lost: list[str], seconds: float
) -> dict[str, Any]:
    """One record of all workers. Without a single one there is nothing to describe."""
    if not parts:
        parts = [Campaign(Options(options.device, 0, options.seed)).run()]
    record = {**parts[0], "options": {**parts[0]["options"], "workers": options.workers}}
    record["options"]["cases"] = options.cases
    record["seconds"] = round(seconds, 1)
    for name in ("cases", "calls", "scores"):
        record[name] = sum(part[name] for part in parts)
    for name in record["counts"]:
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part["counts"][name])
        record["counts"][name] = dict(sorted(total.items()))
    record["failures"] = [failure for part in parts for failure in part["failures"]]
    problems = dict.fromkeys([*lost, *(part["problem"] for part in parts if part["problem"])])
    record["problem"] = "; ".join(problems) or None
    return record
