# SPDX-License-Identifier: Apache-2.0
"""Recorder: the rows that a running model selects from, into a dense trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .. import _observers
from ..reference import row_windows
from .dense import DenseWriter
from .files import TraceError

_Sequence = tuple[int, int]  # layer, request


class Recorder:
    """Records the scores of every selection made inside its `with` block, in all threads.

    Hooked are `gvr_topk.topk`, `topk_indices`, `explain` and `TopKCache.step`, and thereby whatever
    calls them; the operators under `torch.ops.gvr` and C++ callers are not.

    path        the dense trace to write; it appears, whole, when the block ends.
    layers      selections per forward pass, for the plain functions, which do not say their layer:
                call c counts as layer c % layers. A TopKCache says it; a second cache's layers are
                numbered after the first one's.
    queries     plain calls with scores [batch, queries, keys], as transformers makes them: the
                queries of a batch entry are consecutive steps of one request, not requests.
    only_layers, only_slots
                record these alone: layers, and slots of a TopKCache or places in the batch.
    every       record each `every`-th decode step of a sequence.
    max_bytes   no row is recorded that would take the scores beyond this; the first that would
                ends the recording, and `stopped` says so. Default 1 GiB.
    progress    a progress bar (tqdm) over max_bytes.
    metadata    JSON values to keep with the trace, e.g. the model's name.

    A row's request is its place in the batch, or its slot + slots * (how often the slot was reset),
    so that a slot's next user is another sequence.

    Recorded is the window [start, length) of each row, with its place in the context; padding and
    empty rows are left out. Memory: one row. A selection on a GPU waits for the copy of its rows to
    the host. Rows inside a CUDA graph cannot be recorded: those seen while one is captured are
    counted in `skipped`, and replays run no Python at all, so record the model in eager mode.
    Functions under torch.compile are compiled again, with a graph break at each selection; with
    fullgraph=True that is torch's error, and the model has to be recorded uncompiled.

    An error while recording (a full disk) never reaches the model: the recording ends, and leaving
    the block raises it. So does leaving a block in which nothing was recorded, as TraceError.

        >>> with Recorder("trace.safetensors", layers=61) as recorder:
        ...     model.generate(...)
        >>> print(recorder)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layers: int = 1,
        queries: bool = False,
        only_layers: Collection[int] | None = None,
        only_slots: Collection[int] | None = None,
        every: int = 1,
        max_bytes: int = 1 << 30,
        progress: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        for name, value in (("layers", layers), ("every", every), ("max_bytes", max_bytes)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, need at least 1")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.skipped: Counter[str] = Counter()  # rows that were not recorded, by reason
        self.stopped: str | None = None  # why the recording ended before its block did
        self._layers, self._every, self._queries = layers, every, queries
        self._only_layers, self._only_slots = only_layers, only_slots
        self._metadata = metadata
        self._progress = progress
        self._lock = Lock()
        self._writer: DenseWriter | None = None
        self._error: Exception | None = None
        self._bar: Any = None
        self._calls = 0  # of the plain functions
        self._caches: list[Any] = []
        self._resets: Counter[tuple[int, int]] = Counter()  # by cache and slot
        self._steps: Counter[_Sequence] = Counter()

    @property
    def rows(self) -> int:
        return len(self._writer) if self._writer is not None else 0

    @property
    def nbytes(self) -> int:
        return self._writer.nbytes if self._writer is not None else 0

    def __enter__(self) -> Recorder:
        if self._writer is not None:
            raise TraceError(f"{self.path}: this Recorder was used already, need a new one")
        self._writer = DenseWriter(self.path, self._metadata)
        if self._progress:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self.max_bytes, unit="B", unit_scale=True, desc=f"recording {self.path.name}"
            )
        _observers.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _observers.remove(self)
        assert self._writer is not None
        with self._lock:  # a selection of another thread may still be under way
            self.stopped = self.stopped or "the block ended"
            self._caches.clear()
            if self._bar is not None:
                self._bar.close()
            if self._error is None and self.rows:
                self._writer.close()  # also after an error of the model: these rows are good
                return
            self._writer.discard()
        if kind is not None:
            return
        if self._error is not None:
            raise TraceError(f"{self.path}: recording failed ({self._error})") from self._error
        raise TraceError(f"{self.path}: nothing was recorded{self._why()}")

    def selected(self, call: _observers.Call) -> None:
        with self._lock:
            if self.stopped is not None:
                return
            try:
                self._record(call)
            except Exception as error:
                self._fail(error)

    def reset(self, cache: Any, slots: Tensor | None) -> None:
        with self._lock:
            if self.stopped is not None:
                return
            try:
                number, _ = self._cache_place(cache)
                if slots is not None and slots.is_cuda and _capturing():
                    return  # looking at them would end the capture
                gone = range(cache.slots) if slots is None else slots.tolist()
                self._resets.update((number, slot) for slot in gone)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Whatever it is, it is not the model's error: kept until the block ends."""
        self._error, self.stopped = error, f"recording failed ({error})"

    def _record(self, call: _observers.Call) -> None:
        n = call.scores.shape[-1]
        scores = call.scores.detach().reshape(-1, n) if n else call.scores.new_empty(0, 0)
        layer = self._layer_of(call)
        if self._only_layers is not None and layer not in self._only_layers:
            self.skipped["layer not asked for"] += len(scores)
            return
        if scores.is_cuda and _capturing():
            self.skipped["inside a CUDA graph"] += len(scores)
            return
        row = torch.arange(len(scores), device=scores.device)
        begin, end = row_windows(
            row, n, call.lengths, call.starts, call.next_n, call.compress_ratio
        )
        windows = torch.cat([begin, end], dim=1).tolist()
        # Rows of one request in a call: steps of its sequence, or drafts of one step.
        in_order = self._queries and call.cache is None and call.scores.dim() > 2
        span = call.scores.shape[-2] if in_order else call.next_n
        count = len(scores) // span if span else 0
        places = range(count) if call.slots is None else torch.as_tensor(call.slots).tolist()
        requests = [self._request(call, place) for place in places]
        taken = span if in_order else 1
        firsts = [self._step(layer, request, taken) for request in requests]
        for number, (start, stop) in enumerate(windows):
            place, offset = divmod(number, span)
            request, step, draft = requests[place], firsts[place], offset
            if in_order:
                step, draft = step + offset, 0
            reason = self._reason_to_skip(places[place], request, step, stop - start)
            if reason is not None:
                self.skipped[reason] += 1
                continue
            assert request is not None
            if not self._append(scores[number, start:stop], start, layer, request, draft, step,
                                call.k):  # fmt: skip
                return

    def _append(
        self, scores: Tensor, start: int, layer: int, request: int, draft: int, step: int, k: int
    ) -> bool:
        assert self._writer is not None
        if self.nbytes + scores.numel() * scores.element_size() > self.max_bytes:
            self.stopped = f"max_bytes ({self.max_bytes}) reached"
            return False
        before = self.nbytes
        self._writer.append(
            scores, first_key=start, layer=layer, request=request, draft=draft, step=step, k=k
        )
        if self._bar is not None:
            self._bar.update(self.nbytes - before)
        return True

    def _layer_of(self, call: _observers.Call) -> int:
        if call.cache is not None:
            return self._cache_place(call.cache)[1] + call.layer
        layer = self._calls % self._layers
        self._calls += 1
        return layer

    def _cache_place(self, cache: Any) -> tuple[int, int]:
        """The cache's number, in the order of their first use, and that of its first layer."""
        first_layer = 0
        for number, known in enumerate(self._caches):
            if known is cache:
                return number, first_layer
            first_layer += known.layers
        self._caches.append(cache)
        return len(self._caches) - 1, first_layer

    def _request(self, call: _observers.Call, place: int) -> int | None:
        """The number of a request; None for a slot that is padding."""
        if call.cache is None:
            return place
        if not 0 <= place < call.cache.slots:
            return None
        return place + call.cache.slots * self._resets[self._cache_place(call.cache)[0], place]

    def _step(self, layer: int, request: int | None, taken: int) -> int:
        """The sequence's first step of this call, which takes so many."""
        if request is None:
            return 0
        self._steps[layer, request] += taken
        return self._steps[layer, request] - taken

    def _reason_to_skip(
        self, place: int, request: int | None, step: int, length: int
    ) -> str | None:
        if request is None:
            return "padding slot"
        if length <= 0:
            return "empty row"
        if self._only_slots is not None and place not in self._only_slots:
            return "slot not asked for"
        if step % self._every:
            return "between recorded steps"
        return None

    def _why(self) -> str:
        if not self.skipped:
            return ": no selection was made through gvr_topk in the block"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"; rows left out: {reasons}"

    def __repr__(self) -> str:
        skipped = sum(self.skipped.values())
        return (
            f"Recorder({str(self.path)!r}, rows={self.rows}, nbytes={self.nbytes}, "
            f"skipped={skipped}, stopped={self.stopped!r})"
        )


def _capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()
