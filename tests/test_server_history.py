# SPDX-License-Identifier: Apache-2.0
"""Random server events against a model that knows only scores: no answer depends on the history.

The model keeps one thing more, for `step_difference` alone: the set of positions that a slot holds.
"""

from __future__ import annotations

import pytest
import torch
from generators import make_rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import assert_exact, exact_answer
from torch import Tensor

from gvr_topk import TopKCache
from gvr_topk.testing import tuning

LAYERS, SLOTS, DEPTH, N = 2, 5, 3, 300
COUNT, ACCEPTED, HEADER = 0, 3, 4
KINDS = ("normal", "quantised_33", "negative_mean", "random_bits")
ALGORITHMS = st.sampled_from(["auto", "gvr", "resident", "stream", "radix"])
TUNINGS = st.sampled_from(
    [{}, {}, {"staging": 1, "chunk": 32}, {"force_undershoot": 1}, {"ctas_per_row": 4}]
)
SLOT = st.integers(0, SLOTS - 1)
SLOT_LISTS = st.lists(SLOT, min_size=1, max_size=SLOTS, unique=True)


class Server(RuleBasedStateMachine):
    """A scheduler that does everything that servers do, in any order."""

    device = "cpu"

    @initialize(k=st.integers(1, 40), few=st.booleans(), data=st.data())
    def start(self, k: int, few: bool, data: st.DataObject) -> None:
        self.k = k
        self.hint_size = data.draw(st.integers(1, k)) if few else k
        self.cache = self._new_cache()
        # Drafts of (layer, slot), and which of them was accepted; None: unknown to the model.
        self.stored: dict[tuple[int, int], list[set[int]]] = {}
        self.accepted: dict[tuple[int, int], int] = {}
        for layer in range(LAYERS):
            for slot in range(SLOTS):
                self._forget(layer, slot)

    def _new_cache(self) -> TopKCache:
        return TopKCache(
            LAYERS, SLOTS, self.k, hint_size=self.hint_size, depth=DEPTH, device=self.device
        )

    def _forget(self, layer: int, slot: int) -> None:
        self.stored[layer, slot] = [set() for _ in range(DEPTH)]
        self.accepted[layer, slot] = 0

    def _previous(self, layer: int, slot: int) -> set[int]:
        return self.stored[layer, slot][self.accepted[layer, slot]]

    def _scores(self, rows: int, data: st.DataObject) -> Tensor:
        kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 5))
        return make_rows(kind, rows, N, self.k, device=self.device, seed=seed)

    @invariant()
    def every_slot_holds_what_its_history_left(self) -> None:
        if self.hint_size < self.k:
            return
        state = self.cache.state.tolist()
        for (layer, slot), entries in self.stored.items():
            accepted = self.accepted[layer, slot]
            assert state[layer][slot][0][ACCEPTED] == accepted
            entry = state[layer][slot][accepted]
            hints = entry[HEADER : HEADER + entry[COUNT]]
            assert sorted(p for p in hints if p >= 0) == sorted(entries[accepted])

    def _record(self, layer: int, slot: int, next_n: int, indices: Tensor) -> None:
        """What the rows of one request leave behind: empty ones nothing."""
        for draft, row in enumerate(indices.tolist()):
            members = {position for position in row if position >= 0}
            if members:
                self.stored[layer, slot][draft] = members
                if draft == next_n - 1:
                    self.accepted[layer, slot] = draft

    @rule(slots=SLOT_LISTS, next_n=st.integers(1, DEPTH), layer=st.integers(0, 1), data=st.data())
    def step(self, slots: list[int], next_n: int, layer: int, data: st.DataObject) -> None:
        """One layer of a decode step: requests in any order, some of them padding."""
        padded = [slot if data.draw(st.integers(0, 4)) else -1 for slot in slots]
        bounds = st.lists(st.integers(-2, N + 9), min_size=len(slots), max_size=len(slots))
        lengths = torch.tensor(data.draw(bounds), device=self.device)
        scores = self._scores(len(slots) * next_n, data)
        arguments = {"next_n": next_n, "algorithm": data.draw(ALGORITHMS)}
        ids = torch.tensor(padded, device=self.device)
        answer = exact_answer(scores, self.k, lengths=lengths, next_n=next_n)
        with tuning(**data.draw(TUNINGS)):
            if self.hint_size == self.k and data.draw(st.booleans()):
                result = self.cache.step_difference(scores, layer, ids, lengths, **arguments)
                indices = result.indices
                self._check_difference(layer, padded, next_n, result.counts, result)
            elif data.draw(st.booleans()):
                offsets = torch.arange(len(slots), device=self.device) * N
                places, indices = self.cache.step_kv(
                    scores, layer, ids, lengths, offsets=offsets, **arguments
                )
                own = offsets.repeat_interleave(next_n)[:, None]
                assert torch.equal(places, torch.where(indices < 0, -1, indices + own).int())
            else:
                indices = self.cache.step(scores, layer, ids, lengths, **arguments)
        assert_exact(answer, indices)
        for request, slot in enumerate(padded):
            if slot >= 0:
                rows = indices[request * next_n : (request + 1) * next_n]
                self._record(layer, slot, next_n, rows)

    def _check_difference(
        self, layer: int, slots: list[int], next_n: int, counts: Tensor, result: object
    ) -> None:
        for row in range(len(slots) * next_n):
            slot = slots[row // next_n]
            before = self._previous(layer, slot) if slot >= 0 else set()
            now = set(result.indices[row].tolist()) - {-1}  # type: ignore[attr-defined]
            entered = result.entered[row, : counts[row, 0]].tolist()  # type: ignore[attr-defined]
            left = result.left[row, : counts[row, 1]].tolist()  # type: ignore[attr-defined]
            assert sorted(entered) == sorted(now - before)
            assert sorted(left) == sorted(before - now if now else set())

    @rule(slots=SLOT_LISTS, layer=st.integers(0, 1), data=st.data())
    def prefill(self, slots: list[int], layer: int, data: st.DataObject) -> None:
        """Rows of several requests in any order; the last one of each seeds its slot."""
        requests = st.integers(-1, len(slots) - 1)
        owners = data.draw(st.lists(requests, min_size=1, max_size=8))
        bounds = st.lists(st.integers(0, N), min_size=len(owners), max_size=len(owners))
        lengths = torch.tensor(data.draw(bounds), device=self.device)
        scores = self._scores(len(owners), data)
        _, indices = self.cache.step_kv(
            scores,
            layer,
            slots,
            lengths,
            row_to_request=torch.tensor(owners, device=self.device),
            windows_per_row=True,
        )
        mapped = torch.tensor(owners, device=self.device) >= 0
        assert_exact(exact_answer(scores, self.k, lengths=lengths * mapped), indices)
        for request, slot in enumerate(slots):
            last = [r for r, owner in enumerate(owners) if owner == request and lengths[r] > 0]
            if last:
                self._record(layer, slot, 1, indices[last[-1] :][:1])

    @rule(slots=SLOT_LISTS, layer=st.integers(0, 1), data=st.data())
    def seed(self, slots: list[int], layer: int, data: st.DataObject) -> None:
        positions = st.lists(st.integers(0, N - 1), max_size=self.k, unique=True)
        rows = [data.draw(positions) for _ in slots]
        indices = torch.tensor([row + [-1] * (self.k - len(row)) for row in rows])
        self.cache.seed(layer, slots, indices.int())
        for slot, row in zip(slots, rows, strict=True):
            self.stored[layer, slot][0] = set(row)
            self.accepted[layer, slot] = 0

    @rule(slots=SLOT_LISTS, data=st.data())
    def commit(self, slots: list[int], data: st.DataObject) -> None:
        drafts = data.draw(
            st.lists(st.integers(0, DEPTH - 1), min_size=len(slots), max_size=len(slots))
        )
        self.cache.commit(slots, drafts)
        for slot, draft in zip(slots, drafts, strict=True):
            for layer in range(LAYERS):
                self.accepted[layer, slot] = draft

    @rule(slots=SLOT_LISTS)
    def finish(self, slots: list[int]) -> None:
        self.cache.reset(slots)
        for slot in slots:
            for layer in range(LAYERS):
                # The headers are cleared; what lies behind them is no hint.
                self._forget(layer, slot)

    @rule(dst=SLOT_LISTS, data=st.data())
    def fork(self, dst: list[int], data: st.DataObject) -> None:
        src = data.draw(st.lists(SLOT, min_size=len(dst), max_size=len(dst)))
        self.cache.copy(src, dst)
        self._take(dst, src, dict(self.stored), dict(self.accepted))

    def _take(
        self,
        dst: list[int],
        src: list[int],
        stored: dict[tuple[int, int], list[set[int]]],
        accepted: dict[tuple[int, int], int],
    ) -> None:
        for to, source in zip(dst, src, strict=True):
            for layer in range(LAYERS):
                self.stored[layer, to] = [set(entry) for entry in stored[layer, source]]
                self.accepted[layer, to] = accepted[layer, source]

    @rule(slots=SLOT_LISTS, seed=st.integers(0, 99), length=st.integers(0, N))
    def compact(self, slots: list[int], seed: int, length: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        moved = torch.stack([torch.randperm(N, generator=generator) for _ in slots])[:, :length]
        moved = moved.masked_fill(torch.rand(moved.shape, generator=generator) < 0.2, -1)
        self.cache.remap(slots, moved.to(self.device))
        for slot, row in zip(slots, moved.tolist(), strict=True):
            for layer in range(LAYERS):
                entries = self.stored[layer, slot]
                moves = [{row[p] for p in entry if p < length} - {-1} for entry in entries]
                self.stored[layer, slot] = moves

    @rule(slots=SLOT_LISTS, data=st.data())
    def preempt(self, slots: list[int], data: st.DataObject) -> None:
        """To another machine and back into other slots, with a restart in between."""
        exported = self.cache.export(slots, device="cpu")
        state = {name: tensor.clone() for name, tensor in self.cache.state_dict().items()}
        stored, accepted = dict(self.stored), dict(self.accepted)
        self.cache = self._new_cache()
        self.cache.load_state_dict(state)
        homes = st.lists(SLOT, min_size=len(slots), max_size=len(slots), unique=True)
        dst = data.draw(homes)
        self.cache.import_(dst, exported)
        self._take(dst, slots, stored, accepted)

    @precondition(lambda self: self.hint_size < self.k)
    @rule(word=st.integers(-(2**31), 2**31 - 1))
    def corrupt(self, word: int) -> None:
        """Only where no difference is asked for: it alone tells what is stored."""
        self.cache.state.fill_(word)


def test_answers_never_depend_on_the_history(device: str) -> None:
    machine = type("Machine", (Server,), {"device": device})
    profile = settings(max_examples=60, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(machine, settings=profile)


@pytest.mark.parametrize("hint_size", [1, 8, 32])
def test_a_long_drift_with_few_hints_stays_exact(hint_size: int, device: str) -> None:
    cache = TopKCache(1, 4, 32, hint_size=hint_size, device=device)
    noise = make_rows("normal", 400, N, 32, device=device).reshape(100, 4, N)
    for scores in (0.1 * noise).cumsum(0):
        assert_exact(exact_answer(scores, 32), cache.step(scores, 0, algorithm="gvr"))
