# SPDX-License-Identifier: Apache-2.0
"""The operators on lists of winners, against one plain sort of everything."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from generators import make_rows
from sharding import INTEGER, sort_keys
from torch import Tensor
from torch.library import opcheck

import gvr_topk
from gvr_topk.distributed.keys import PADDING
from gvr_topk.distributed.operators import __doc__ as operators_doc

ops = torch.ops.gvr
NAMES = (
    "pack_winners",
    "place_winners",
    "merge_winners",
    "order_winners",
    "own_winners",
    "keep_winners",
    "winner_keys",
    "count_digits",
)
KINDS = ("normal", "quantised_33", "constant", "random_bits", "some_nan", "relu_90_percent_zero")


def raw(values: Tensor) -> Tensor:
    return values.view(INTEGER[values.dtype])


@dataclass
class Lists:
    """Every rank's Top-K of a row whose keys are dealt out to ranks, and the answer to a merge."""

    values: list[Tensor]  # by rank, [rows, k]
    local: list[Tensor]
    placement: list[dict[str, int]]
    answer: tuple[Tensor, Tensor]
    counts: Tensor  # int64 [ranks, rows]

    @classmethod
    def make(
        cls, kind: str, ranks: int, rows: int, k: int, dtype: torch.dtype, device: str, seed: int
    ) -> Lists:
        rng = random.Random(seed)
        paged = rng.random() < 0.5
        page = rng.choice([1, 3, 16])
        values, local, placement, keys, indices = [], [], [], [], []
        for rank in range(ranks):
            n = rng.choice([0, 1, k // 2 + 1, k, 2 * k + 3, 3 * k])
            shard = make_rows(kind, rows, max(n, 1), k, dtype=dtype, seed=seed + rank)[:, :n]
            best, at = gvr_topk.topk(shard, k, sorted=True)
            where = {"page": page, "rank": rank, "world": ranks, "offset": 7}
            if not paged:
                where = {"offset": 1000 * (ranks - rank)}
            values.append(best.to(device))
            local.append(at.to(device))
            placement.append(where)
            indices.append(global_indices(at, **where))
            keys.append(sort_keys(best, indices[-1]))
        every, order = torch.cat(keys, 1).sort(-1)
        real = every[:, :k] < PADDING
        best = torch.cat([raw(v.cpu()) for v in values], 1).gather(1, order[:, :k]).view(dtype)
        best = raw(best).where(real, raw(torch.tensor(-torch.inf, dtype=dtype))).view(dtype)
        chosen = torch.cat(indices, 1).gather(1, order[:, :k]).where(real, -1)
        last = every[:, k - 1 : k].clamp(max=PADDING - 1)
        counts = torch.stack([(own <= last).sum(-1) for own in keys])
        return cls(values, local, placement, (best, chosen), counts.to(device))

    def messages(self) -> Tensor:
        packed = [
            ops.pack_winners(v, i, **where)
            for v, i, where in zip(self.values, self.local, self.placement, strict=True)
        ]
        return torch.stack(packed)

    def check(self, got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
        values, indices = (tensor.cpu() for tensor in got)
        assert values.dtype == wanted[0].dtype and indices.dtype == torch.int32
        assert torch.equal(indices, wanted[1].cpu().int())
        assert torch.equal(raw(values), raw(wanted[0].cpu()))

    def part(self, rank: int) -> tuple[Tensor, Tensor]:
        """The winning prefix of a rank's own list."""
        values, indices = self.values[rank].cpu(), self.local[rank].cpu()
        won = torch.arange(values.shape[1]) < self.counts[rank].cpu()[:, None]
        lowest = raw(torch.tensor(-torch.inf, dtype=values.dtype))
        return raw(values).where(won, lowest).view(values.dtype), indices.where(won, -1)


def global_indices(
    local: Tensor, page: int = 1, rank: int = 0, world: int = 1, offset: int = 0
) -> Tensor:
    index = (local // page * world + rank) * page + local % page + offset
    return index.where(local >= 0, -1).int()


CASES = [
    (kind, ranks, rows, k)
    for kind in KINDS
    for ranks, rows, k in ((1, 2, 5), (2, 3, 1), (2, 2, 300), (3, 1, 64), (5, 2, 33), (9, 2, 130))
]


@pytest.mark.parametrize("kind, ranks, rows, k", CASES)
def test_a_merge_is_one_sort_of_all_lists(
    kind: str, ranks: int, rows: int, k: int, device: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        lists = Lists.make(kind, ranks, rows, k, dtype, device, seed)
        gathered = lists.messages()
        lists.check(ops.merge_winners(gathered, dtype), lists.answer)
        packed = torch.zeros_like(gathered[0])
        for rank in range(ranks):
            values, local = lists.values[rank], lists.local[rank]
            wanted = lists.part(rank)
            lists.check(ops.own_winners(gathered, values, local, rank), wanted)
            lists.check(ops.keep_winners(values, local, lists.counts[rank]), wanted)
            keys = ops.winner_keys(values, local, **lists.placement[rank])
            assert torch.equal(keys, sort_keys(values, gathered[rank, :, 0]))
            placed = ops.place_winners(values, local, lists.counts, rank, **lists.placement[rank])
            assert not (packed * placed).any(), "two ranks write to one place"
            packed += placed
        lists.check(ops.order_winners(packed, lists.counts, dtype), lists.answer)


def test_many_long_lists_are_merged(device: str) -> None:
    for ranks, k in ((8, 2048), (64, 700), (2, 5000)):
        for kind in ("normal", "constant"):
            lists = Lists.make(kind, ranks, 2, k, torch.float32, device, seed=ranks)
            gathered = lists.messages()
            lists.check(ops.merge_winners(gathered, torch.float32), lists.answer)
            own = ops.own_winners(gathered, lists.values[1], lists.local[1], 1)
            lists.check(own, lists.part(1))


@pytest.mark.parametrize("first", [True, False])
def test_one_list_may_hold_all_winners(first: bool, device: str) -> None:
    """Every entry of one list before every entry of the others: the searches' widest ranges."""
    k, ranks = 300, 4
    shard = torch.arange(float(ranks * k)).reshape(1, -1)
    values, local, placement = [], [], []
    for rank in range(ranks):
        place = rank if first else ranks - 1 - rank
        best, at = gvr_topk.topk(shard[:, place * k : (place + 1) * k], k, sorted=True)
        values.append(best.to(device))
        local.append(at.to(device))
        placement.append({"offset": place * k})
    best, chosen = gvr_topk.topk(shard, k, sorted=True)
    owner = chosen // k if first else ranks - 1 - chosen // k
    counts = torch.stack([(owner == rank).sum(-1) for rank in range(ranks)]).to(device)
    lists = Lists(values, local, placement, (best, chosen), counts)
    gathered = lists.messages()
    lists.check(ops.merge_winners(gathered, torch.float32), lists.answer)
    for rank in range(ranks):
        got = ops.own_winners(gathered, values[rank], local[rank], rank)
        lists.check(got, lists.part(rank))


def test_messages_hold_every_bit(device: str, dtype: torch.dtype) -> None:
    scores = make_rows("random_bits", 2, 4096, 1, dtype=dtype, device=device)
    values, indices = gvr_topk.topk(scores, 4096, sorted=True)
    device_offset = torch.tensor([2**30], device=device)
    message = ops.pack_winners(values, indices, offset=5, device_offset=device_offset)
    assert torch.equal(message[:, 0], indices + 2**30 + 5)
    assert torch.equal(message[:, 1].to(INTEGER[dtype]), raw(values))
    back = ops.merge_winners(message[None], dtype)
    assert torch.equal(raw(back[0]), raw(values)) and torch.equal(back[1], message[:, 0])


def test_the_last_indices_of_a_row_of_two_to_the_31_keys(device: str) -> None:
    """Indices one higher are still int32, and -inf there is no padding."""
    last = 2**31 - 2
    values = torch.full((1, 2), -torch.inf, device=device)
    indices = torch.tensor([[last, -1]], dtype=torch.int32, device=device)
    counts = torch.tensor([[0], [1]], device=device)
    gathered = torch.stack([ops.pack_winners(values, indices - 1 - indices.clamp(max=0)),
                            ops.pack_winners(values, indices)])  # fmt: skip
    assert ops.merge_winners(gathered, torch.float32)[1].tolist() == [[last - 1, last]]
    packed = ops.place_winners(values, indices, counts, 1)
    assert packed[:, 0].tolist() == [[2**31 - 1, 0]]
    assert ops.order_winners(packed, counts, torch.float32)[1].tolist() == [[last, -1]]


def test_any_counts_and_unsorted_lists_stay_in_memory(device: str) -> None:
    lists = Lists.make("normal", 3, 2, 40, torch.float32, device, 0)
    gathered = lists.messages()
    for count in (-(2**62), -1, 41, 2**62):
        counts = torch.full_like(lists.counts, count)
        values, local = lists.values[2], lists.local[2]
        placed = ops.place_winners(values, local, counts, 2)
        ops.order_winners(placed, counts, torch.float32)
        kept = ops.keep_winners(values, local, counts[2])[1]
        assert torch.equal(kept, local if count > 0 else torch.full_like(local, -1))
    shuffled = gathered.flatten()[torch.randperm(gathered.numel(), device=device)]
    shuffled = shuffled.view(gathered.shape)
    ops.merge_winners(shuffled, torch.float32)
    ops.own_winners(shuffled, lists.values[0], lists.local[0], 0)


def calls(device: str, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Good arguments of every operator."""
    lists = Lists.make("quantised_33", 3, 2, 20, dtype, device, 1)
    values, indices, gathered = lists.values[1], lists.local[1], lists.messages()
    offset = {"device_offset": torch.tensor([9], device=device), "page": 2, "rank": 1, "world": 3}
    placed = ops.place_winners(values, indices, lists.counts, 1)
    bound = torch.tensor([0, 2**60], device=device)
    before = torch.tensor([[1, 7, 30]], dtype=torch.int32, device=device).repeat(2, 1)
    return {
        "pack_winners": ((values, indices), offset),
        "place_winners": ((values, indices, lists.counts, 1), offset),
        "merge_winners": ((gathered, dtype), {}),
        "order_winners": ((placed, lists.counts, dtype), {}),
        "own_winners": ((gathered, values, indices, 1), {}),
        "keep_winners": ((values, indices, lists.counts[1]), {}),
        "winner_keys": ((values, indices), offset),
        "count_digits": ((ops.winner_keys(values, indices), bound, before, 60, 50, 10), {}),
    }


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, device: str, dtype: torch.dtype) -> None:
    arguments, options = calls(device, dtype)[name]
    opcheck(getattr(ops, name).default, arguments, options)
    assert torch.Tag.pt2_compliant_tag in getattr(ops, name).default.tags
    assert f"\n{name}(" in operators_doc


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_have_no_winners(name: str, device: str) -> None:
    arguments, options = calls(device)[name]
    empty = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            by_rank = argument.dim() == 4 or (argument.dim() == 2 and len(argument) == 3)
            argument = argument.narrow(1 if by_rank else 0, 0, 0)
        empty.append(argument)
    result = getattr(ops, name)(*empty, **options)
    assert all(t.numel() == 0 for t in (result if isinstance(result, tuple) else (result,)))


@pytest.mark.parametrize("bits", [1, 3, 11])
def test_digits_close_in_on_the_kth_key(bits: int, device: str) -> None:
    """Of two lists, with the rounds of one rank added to those of the other."""
    k, total = 300, 63
    lists = Lists.make("quantised_33", 2, 3, k, torch.float32, device, 5)
    pair = list(zip(lists.values, lists.local, lists.placement, strict=True))
    keys = [ops.winner_keys(values, local, **where) for values, local, where in pair]
    every = torch.cat(keys, 1).sort(-1).values
    bound = before = None
    for shift in range(total - bits, -1, -bits):
        found = [ops.count_digits(own, bound, before, shift + bits, shift, bits) for own in keys]
        assert torch.equal(found[0][0], found[1][0])
        bound, before = found[0][0], found[0][1] + found[1][1]
        steps = torch.arange(1, 1 << bits, device=device) << shift
        assert torch.equal(before, torch.searchsorted(every, bound[:, None] + steps).int())
    settled, none = ops.count_digits(keys[0], bound, before, shift, 0, 0)
    assert none.shape == (3, 0)
    assert torch.equal(settled >> shift, every[:, k - 1] >> shift)


# operator, argument at fault, error, what was given, what is needed, spoiled arguments by position
# or name
BAD: list[tuple[str, str, type[Exception], str, str, dict[Any, Any]]] = [
    ("pack_winners", "values", TypeError, "Double", "float32", {0: lambda t: t.double()}),
    ("pack_winners", "values", ValueError, "[2, 20, 1]", "[rows, k]", {0: lambda t: t[..., None]}),
    ("pack_winners", "values", ValueError, "[2, 0]", "1 <= k", {0: lambda t: t[:, :0]}),
    ("pack_winners", "indices", TypeError, "Long", "Int", {1: lambda t: t.long()}),
    ("pack_winners", "indices", ValueError, "[2, 19]", "[2, 20]", {1: lambda t: t[:, 1:]}),
    ("pack_winners", "offset", ValueError, "-1", "0 <=", {"offset": lambda _: -1}),
    ("pack_winners", "page", ValueError, "0", "1 <=", {"page": lambda _: 0}),
    ("pack_winners", "world", ValueError, "0", "1 <=", {"world": lambda _: 0}),
    ("pack_winners", "rank", ValueError, "3", "< 3", {"rank": lambda _: 3}),
    ("pack_winners", "device_offset", TypeError, "Int", "Long",
     {"device_offset": lambda t: t.int()}),
    ("pack_winners", "device_offset", ValueError, "[]", "[1]", {"device_offset": lambda t: t[0]}),
    ("place_winners", "counts", TypeError, "Int", "Long", {2: lambda t: t.int()}),
    ("place_winners", "counts", ValueError, "[2]", "[ranks, 2]", {2: lambda t: t[0]}),
    ("place_winners", "counts", ValueError, "[3, 1]", "[3, 2]", {2: lambda t: t[:, 1:]}),
    ("place_winners", "counts", ValueError, "[0, 2]", "1 to", {2: lambda t: t[:0]}),
    ("place_winners", "list", ValueError, "-1", "< 3", {3: lambda _: -1}),
    ("merge_winners", "gathered", TypeError, "Long", "Int", {0: lambda t: t.long()}),
    ("merge_winners", "gathered", ValueError, "[2, 2, 20]", "[ranks, rows, 2, k]",
     {0: lambda t: t[0]}),
    ("merge_winners", "gathered", ValueError, "[3, 2, 1, 20]", "[ranks, rows, 2, k]",
     {0: lambda t: t[:, :, :1]}),
    ("merge_winners", "gathered", ValueError, "[0, 2, 2, 20]", "1 to", {0: lambda t: t[:0]}),
    ("merge_winners", "dtype", TypeError, "Double", "float32", {1: lambda _: torch.float64}),
    ("order_winners", "packed", ValueError, "[2, 20]", "[rows, 2, k]", {0: lambda t: t[0]}),
    ("order_winners", "counts", ValueError, "[3, 1]", "[3, 2]", {1: lambda t: t[:, 1:]}),
    ("own_winners", "values", ValueError, "[1, 20]", "[2, 20]", {1: lambda t: t[:1]}),
    ("own_winners", "indices", TypeError, "Long", "Int", {2: lambda t: t.long()}),
    ("own_winners", "rank", ValueError, "3", "< 3", {3: lambda _: 3}),
    ("own_winners", "values", ValueError, "own_winners", "detach",
     {1: lambda t: t.clone().requires_grad_()}),
    ("keep_winners", "counts", ValueError, "[1]", "[2]", {2: lambda t: t[:1]}),
    ("keep_winners", "values", ValueError, "keep_winners", "detach",
     {0: lambda t: t.clone().requires_grad_()}),
    ("winner_keys", "indices", ValueError, "[1, 20]", "[2, 20]", {1: lambda t: t[:1]}),
    ("count_digits", "keys", TypeError, "Int", "Long", {0: lambda t: t.int()}),
    ("count_digits", "keys", ValueError, "[40]", "[rows, k]", {0: lambda t: t.flatten()}),
    ("count_digits", "bound", ValueError, "[1]", "[2]", {1: lambda t: t[:1]}),
    ("count_digits", "before", ValueError, "None", "both", {2: lambda _: None}),
    ("count_digits", "before", ValueError, "[3]", "[2, edges]", {2: lambda t: t[0]}),
    ("count_digits", "before", ValueError, "[1, 3]", "[2, 3]", {2: lambda t: t[:1]}),
    ("count_digits", "last_shift", ValueError, "64", "<= 63", {3: lambda _: 64}),
    ("count_digits", "shift", ValueError, "-1", "0 <=", {4: lambda _: -1}),
    ("count_digits", "bits", ValueError, "17", "<= 16", {5: lambda _: 17}),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[f"{case[0]}-{case[1]}-{case[3]}" for case in BAD])
def test_a_wrong_call_names_the_argument(case: Any, device: str) -> None:
    name, argument, error, given, needed, spoils = case
    arguments, options = calls(device)[name]
    for place, spoil in spoils.items():
        if isinstance(place, int):
            arguments = (*arguments[:place], spoil(arguments[place]), *arguments[place + 1 :])
        else:
            options = {**options, place: spoil(options.get(place))}
    with pytest.raises(error) as raised:
        getattr(ops, name)(*arguments, **options)
    message = str(raised.value)
    assert message.startswith(f"{argument}: "), message
    assert given in message and needed in message, message


def test_a_meta_tensor_among_others_is_an_error() -> None:
    arguments, options = calls("cpu")["pack_winners"]
    with pytest.raises(ValueError, match="values: got a tensor on cpu beside one on meta"):
        ops.pack_winners(arguments[0], arguments[1].to("meta"), **options)
