# SPDX-License-Identifier: Apache-2.0
"""What the documentation says of decoders, servers and several GPUs follows from their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gvr_topk.bench import decoding, scaling, serving
from gvr_topk.bench.client_report import (
    BLOCKS,
    DECODE,
    GPU_RANKS,
    SERVING,
    ClientRecords,
)
from gvr_topk.bench.report import BLOCKS as ALL_BLOCKS
from gvr_topk.bench.report import rendered
from gvr_topk.bench.results import ResultsError
from gvr_topk.distributed.model import METHODS, Link

GPU = {"name": "NVIDIA H200", "driver": "580"}
ENVIRONMENT = {"gpu": GPU, "torch": "2.11", "date": "2026-01-02T03:04", "source_sha256": "ab" * 32}
SHAPE = {"layers": 4, "k": 2048}


def write(root: Path, name: str, record: dict[str, Any]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": ENVIRONMENT, "skipped": [], **record}))


def text(root: Path, block: str) -> str:
    return " ".join(" ".join(BLOCKS[block](ClientRecords(root))).split())


def decode_cell(context: int, drafts: int, auto: float, exact: bool = True) -> dict[str, Any]:
    times = {"torch.topk": 300.0, "radix": 200.0, "auto": auto}
    results = [{"variant": v, "token_us": t, "exact": exact} for v, t in times.items()]
    where = {"requests": 1, "context": context * 1024, "drafts": drafts, "label": "as it was"}
    return {**where, "overlap": [0.4, 0.6], "results": results}


def write_decode(root: Path, *cells: dict[str, Any]) -> None:
    kind = {"schema": decoding.SCHEMA, "kind": decoding.KIND}
    write(root, DECODE, {**kind, "shape": SHAPE, "dtype": "bfloat16", "cells": list(cells)})


def test_every_block_names_what_makes_its_record(tmp_path: Path) -> None:
    for block in BLOCKS.keys() - {"links"}:
        assert text(tmp_path, block).startswith("*No record yet: ")
    assert "not measured" in text(tmp_path, "links")


def test_the_decode_block_holds_the_claim_against_the_times(tmp_path: Path) -> None:
    write_decode(tmp_path, decode_cell(64, 1, 199.0), decode_cell(64, 0, 180.0))
    found = text(tmp_path, "decode")
    first, second = (found.index(f"| 1 x 64K, {drafts} |") for drafts in ("0 drafts", "1 draft"))
    assert first < second and "2 cells) the claim holds." in found
    assert "| 1 x 64K, 0 drafts | 0.50 | 300.0 | 200.0 | 180.0 | 10.00 % | 5.47 % |" in found
    assert "| 0.50 % | |" in found  # the paper has no number for drafts
    write_decode(tmp_path, decode_cell(32, 0, 195.0), decode_cell(16, 3, 200.0))
    found = text(tmp_path, "decode")
    assert "falls short at 1 x 32K, 0 drafts (2.50 %, need 4.07), 1 x 16K, 3 drafts" in found
    assert "(0.00 %, need more than 0)" in found
    write_decode(tmp_path, decode_cell(32, 0, 100.0, exact=False))
    assert "| not exact | not exact | not exact | | 4.07 % |" in text(tmp_path, "decode")


def serving_entry(call: str, rows: int, us: float, exact: bool = True) -> dict[str, Any]:
    speed = {"median_us": us, "scores_per_us": rows * 65536 / us, "exact": exact}
    return {"call": call, "rows": rows, "n": 65536, "k": 2048, "overlap": 0.6, **speed}


def write_serving(root: Path, *entries: dict[str, Any]) -> None:
    kind = {"schema": serving.SCHEMA, "kind": serving.KIND}
    write(root, SERVING, {**kind, "entries": list(entries)})


def test_the_serving_blocks_follow_from_the_times(tmp_path: Path) -> None:
    entries = [
        serving_entry(serving.PLAIN, 1, 5.0),
        serving_entry(serving.STEP, 1, 10.0),
        serving_entry("step, 64 hints", 1, 9.0),
        serving_entry("step, gvr, 2048 hints", 1, 20.0),
        serving_entry("step, gvr, 64 hints", 1, 30.0),
        serving_entry(serving.STEP, 2, 10.0, exact=False),
        serving_entry(serving.PLAIN, 2, 8.0),
        serving_entry(serving.PREFILL, 1000, 5000.0),
    ]
    write_serving(tmp_path, *entries)
    found = text(tmp_path, "serving")
    assert "| call | 1 x 64K | 2 x 64K |" in found
    assert "| step | 10.0 (1.00x) | |" in found and "| topk_indices | 5.0 (0.50x) | 8.0 |" in found
    assert "PREFILL" not in found and "prefill" not in found
    costs = text(tmp_path, "hint-size")
    assert "against 2048, median and range over 1 shapes" in costs
    assert "`auto` with 64: -10.0 %" in costs and "`gvr` with 64: +50.0 %" in costs
    assert "1000 x 64K: 1.25x; need at most 1.5x: holds" in text(tmp_path, "prefill")
    write_serving(tmp_path, *entries[:-1], serving_entry(serving.PREFILL, 1000, 9000.0))
    assert "1000 x 64K: 2.25x; need at most 1.5x: falls short" in text(tmp_path, "prefill")


def ranks_record(world: int, latency: float, **times: float) -> dict[str, Any]:
    names = ["local", "gather-gvr", *(f"{m}-{r}" for m in METHODS for r in ("global", "local"))]
    per_call = {**dict.fromkeys(names, 50.0), **times}
    results = [
        {"contender": n, "median_us": t, "bytes_received": 8, "exact": n != "local" or None}
        for n, t in per_call.items()
    ]
    cells = [{"rows": 1, "n": n, "results": results} for n in (1 << 18, 1 << 19)]
    messages = [
        {"kind": kind, "bytes": size, "median_us": latency + size / 1e5}
        for kind in ("all_gather", "all_reduce")
        for size in (8, 1024, 1 << 22)
    ]
    return {
        "schema": 2, "kind": "distributed", "world": world, "backend": "nccl", "nccl": "2.28",
        "k": 2048, "link": {"base": 5e-6, "hop": 5e-6, "bandwidth": 1e11}, "cells": cells,
        "collectives": messages,
        "merges": [{"rows": 1, "ranks": r, "median_us": 5.0} for r in (2, 64)],
    }  # fmt: skip


def write_ranks(root: Path, **times: float) -> None:
    write(root, GPU_RANKS[0], ranks_record(1, 4.0))
    write(root, GPU_RANKS[1], ranks_record(2, 10.0, **times))


def test_the_scaling_blocks_follow_from_both_records(tmp_path: Path) -> None:
    write(tmp_path, GPU_RANKS[1], ranks_record(2, 10.0))
    assert "No record yet" in text(tmp_path, "scaling-times")  # both are needed
    write_ranks(tmp_path, **{"candidates-global": 40.0, "threshold-global": 100.0})
    times = text(tmp_path, "scaling-times")
    assert "1 rank, nccl" in times and "2 ranks, nccl" in times and "NCCL 2.28" in times
    assert times.count("microseconds per call") == 2 and times.count("bytes received") == 1
    verdict = text(tmp_path, "scaling-verdict")
    # 256K keys on two ranks are too few to count.
    assert (
        '`candidates`, `return_="global"`: ahead of all-gathering the scores in 1 of 1' in verdict
    )
    slow = '`threshold`, `return_="global"`: ahead of all-gathering the scores in 0 of 1 cells; '
    assert slow + "behind at 1 x 512K (0.50x)." in verdict
    assert "10,000,000 keys" in text(tmp_path, "scaling-model")


def test_the_links_are_the_fitted_ones_and_remain_python(tmp_path: Path) -> None:
    write_ranks(tmp_path)
    source = "\n".join(BLOCKS["links"](ClientRecords(tmp_path)))
    space: dict[str, Any] = {"Link": Link}
    exec(source, space)
    fitted = scaling.Inputs.read(ClientRecords(tmp_path).ranks()).link
    given = space["LINKS"]["cuda"]
    assert given.base == pytest.approx(4e-6, rel=0.1) and given.hop == pytest.approx(6e-6, rel=0.1)
    assert given.bandwidth == pytest.approx(fitted.bandwidth, rel=0.05)
    assert space["LINKS"]["cpu"] == Link(50e-6, 50e-6, 1e9) and "not measured" in source


def test_markers_in_python_are_comments(tmp_path: Path) -> None:
    class Few:
        clients = ClientRecords(tmp_path)

    before = "x = 1\n# report:links\nLINKS = {}\n# /report\ny = 2\n"
    after = rendered(before, Few(), Path("model.py"))  # type: ignore[arg-type]
    assert after.startswith("x = 1\n# report:links\nLINKS = {\n")
    assert after.endswith("}\n# /report\ny = 2\n") and BLOCKS.keys() <= ALL_BLOCKS.keys()


@pytest.mark.parametrize(
    ("name", "block"), [(DECODE, "decode"), (SERVING, "serving"), (GPU_RANKS[0], "links")]
)
def test_a_file_that_is_no_such_record_is_named(name: str, block: str, tmp_path: Path) -> None:
    write_ranks(tmp_path)
    for content in ("{}", "[", json.dumps({"kind": "decode", "schema": 9, "cells": [1]})):
        (tmp_path / name).write_text(content)
        with pytest.raises(ResultsError, match=Path(name).name):
            BLOCKS[block](ClientRecords(tmp_path))
