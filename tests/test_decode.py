# SPDX-License-Identifier: Apache-2.0
"""benchmarks/decode.py: what it measures is exact, and what it says follows from its record."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dispatched import all_operators
from torch import Tensor
from typer.testing import CliRunner

from benchmarks import decode
from benchmarks.decoder import (
    QUICK,
    Batch,
    Caches,
    Decoder,
    Layer,
    evolving_states,
    plain_scores,
)

ROOT = Path(__file__).parents[1]
SMALL = ["--quick", "--context", "1", "--batch", "2", "--layers", "1", "--steps", "2"]


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(decode.app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, device: str) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("decode") / "decode.json"
    code, output = _run(*SMALL, "--device", device, "--out", str(out))
    assert code == 0, output
    return json.loads(out.read_text())


def test_every_variant_is_exact_in_every_cell(record: dict[str, Any], device: str) -> None:
    assert [cell["label"] for cell in record["cells"]] == [
        f"2 x 1K, {drafts}" for drafts in ("0 drafts", "1 draft", "3 drafts")
    ]
    assert record["device"] == device and record["environment"]["torch"] == torch.__version__
    for cell in record["cells"]:
        exact = {result["variant"]: result["exact"] for result in cell["results"]}
        names = ("torch.topk", "radix", "gvr", "auto", decode.STATELESS)
        assert exact == {**dict.fromkeys(names, True), "no selection": None}
        assert cell["rows"] == 2 * (1 + cell["drafts"])
        assert len(cell["overlap"]) == 1 and 0.2 < cell["overlap"][0] < 1.0
        for result in cell["results"]:
            assert result["step"]["samples"] == 2
            tokens = result["step"]["median_us"] / (1 + cell["drafts"])
            assert result["token_us"] == pytest.approx(tokens, rel=1e-3)


def test_a_selection_that_was_wrong_before_the_last_step_is_reported(
    tmp_path: Path, device: str
) -> None:
    if device == "cuda":
        pytest.skip("a captured selection does the same in every step")
    calls = []

    def once_wrong(shape: Any, batch: Batch, _: torch.device) -> Any:
        def select(scores: Tensor, layer: int, lengths: Tensor) -> Tensor:
            calls.append(layer)
            best = scores.topk(shape.k + 1).indices
            return best[:, 1:] if len(calls) == steps - 1 else best[:, :-1]

        return select

    steps = decode.WARM_UP + 2
    shape = decode.Shape(**{**vars(QUICK), "layers": 1})
    settings = decode.Settings(
        shape, [Batch(1, 1024, 0)], 2, 0.9, torch.device(device),
        (decode.Variant("once", once_wrong, tie_rule=False),),
    )  # fmt: skip
    record = decode.measure(settings, tmp_path / "once.json")
    assert len(calls) == steps and record["cells"][0]["results"][0]["exact"] is False


def test_a_wrong_selection_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def one_wrong(shape: Any, batch: Batch, _: torch.device) -> Any:
        return lambda scores, layer, lengths: scores.topk(shape.k + 1).indices[:, 1:]

    variants = tuple(decode.Variant("wrong", one_wrong, tie_rule=rule) for rule in (True, False))
    batch = Batch(2, 1024, 1)
    settings = decode.Settings(QUICK, [batch], 2, 0.9, torch.device(device), variants)
    record = decode.measure(settings, tmp_path / "wrong.json")
    assert [result["exact"] for result in record["cells"][0]["results"]] == [False, False]
    assert decode.failures(record) == ["2 x 1K, 1 draft: wrong: not exact"] * 2
    assert decode.gain(record["cells"][0], "wrong", "wrong") is None
    code, output = _run("--show", str(tmp_path / "wrong.json"))
    assert code == 1 and "NOT EXACT" in output


def _cell(requests: int, context: int, drafts: int, **times: float) -> dict[str, Any]:
    results = [{"variant": v, "token_us": t, "exact": True} for v, t in times.items()]
    batch = Batch(requests, context * 1024, drafts)
    return {**vars(batch), "label": batch.label, "overlap": [0.6], "results": results}


def test_verdicts_follow_from_the_times() -> None:
    cells = [
        _cell(1, 32, 0, radix=100.0, auto=95.0),
        _cell(1, 64, 0, radix=100.0, auto=95.0),
        _cell(1, 64, 3, radix=100.0, auto=99.5),
        _cell(1, 16, 1, radix=100.0, auto=100.0),
        _cell(32, 100, 0, radix=100.0, auto=200.0),
    ]
    found = decode.verdicts({"cells": cells})
    assert [(label, need, holds) for label, need, _, holds in found] == [
        ("1 x 32K, 0 drafts", 4.07, True),
        ("1 x 64K, 0 drafts", 5.47, False),
        ("1 x 16K, 1 draft", 0.0, False),
        ("1 x 64K, 3 drafts", 0.0, True),
    ]
    assert [round(measured, 6) for _, _, measured, _ in found] == [5.0, 5.0, 0.0, 0.5]


def test_the_claim_is_that_of_the_selection_without_state_where_it_was_measured() -> None:
    before = {"cells": [_cell(1, 32, 0, radix=100.0, auto=96.0)]}
    both = {"radix": 100.0, "auto": 96.0, decode.STATELESS: 95.0}
    after = {"cells": [_cell(1, 32, 0, **both)]}
    assert decode.claimed(before) == "auto" and decode.claimed(after) == decode.STATELESS
    found = [decode.verdicts(record)[0][2:] for record in (before, after)]
    assert [(round(measured, 6), holds) for measured, holds in found] == [(4.0, False), (5.0, True)]


@torch.inference_mode()
@pytest.mark.parametrize("drafts", [0, 1])
def test_a_selection_of_the_package_is_one_operator(drafts: int, device: str) -> None:
    batch = Batch(2, 300, drafts)
    scores = torch.randn(batch.rows, 320, device=device)
    lengths = torch.full((2,), 300, device=device)
    for variant in decode.VARIANTS[1:-1]:
        select = variant.make(QUICK, batch, torch.device(device))
        (name,) = all_operators(partial(select, scores, 0, lengths))
        assert name in ("gvr.topk_indices.default", "gvr.step.default"), variant.name


def test_the_cells_that_tell_most_come_first() -> None:
    none: list[int] = []
    settings = decode._settings(
        True, "cpu", [16, 32, 64, 100, 128], none, none, *[None] * 3, 0.9, 7
    )
    labels = [batch.label for batch in settings.batches]
    assert labels[:5] == [f"1 x {n}K, 0 drafts" for n in (32, 64, 100, 16, 128)]
    assert labels[5] == "2 x 32K, 0 drafts" and labels[-1] == "2 x 128K, 3 drafts"
    assert settings.budget == 7


def test_a_budget_cuts_the_cells_that_tell_least(tmp_path: Path, device: str) -> None:
    batches = [Batch(1, 1024, drafts) for drafts in (0, 1)]
    settings = decode.Settings(QUICK, batches, 2, 0.9, torch.device(device), budget=1e-9)
    assert decode.measure(settings, tmp_path / "none.json")["skipped"] == [
        "1 x 1K, 0 drafts",
        "1 x 1K, 1 draft",
    ]
    clock = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "perf_counter", lambda: next(clock))
        settings.budget = 1.5  # reached after the first cell
        record = decode.measure(settings, tmp_path / "one.json")
    assert [cell["label"] for cell in record["cells"]] == ["1 x 1K, 0 drafts"]
    assert record["skipped"] == ["1 x 1K, 1 draft"]
    code, output = _run("--show", str(tmp_path / "one.json"))
    assert code == 0 and "not measured for want of time: 1 x 1K, 1 draft" in output
    code, output = _run(*SMALL, "--out", str(tmp_path / "x.json"), "--budget", "0")
    assert code == 2 and "--budget: got 0" in output


def test_the_tables_come_from_the_record_alone(
    record: dict[str, Any], tmp_path: Path, device: str
) -> None:
    changed = copy.deepcopy(record)
    changed["device"] = "cuda"
    changed["cells"] = [_cell(1, 32, 0, radix=200.0, auto=150.0)]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(changed))
    code, output = _run("--show", str(path))
    assert code == 0
    for words in ("200.0", "150.0 (+25.00)", ">= 4.07", "pass"):
        assert words in output


def _decoder(batch: Batch, steps: int, device: str, correlation: float = 0.9) -> Decoder:
    generator = torch.Generator(device).manual_seed(0)
    layers = [Layer(QUICK, generator, torch.float32) for _ in range(QUICK.layers)]
    caches = Caches(QUICK, batch, steps, generator, torch.float32)
    states = evolving_states(QUICK, batch, steps, correlation, generator, torch.float32)
    return Decoder(QUICK, layers, batch, caches, states)


def _topk(scores: Tensor, layer: int, lengths: Tensor) -> Tensor:
    return scores.topk(QUICK.k).indices


@torch.inference_mode()
def test_a_step_writes_its_tokens_and_no_other_key(device: str) -> None:
    batch = Batch(requests=2, context=300, drafts=2)
    decoder = _decoder(batch, 3, device)
    before = decoder.caches.index.clone()
    time = torch.tensor([1], device=device)
    assert decoder.lengths(time).tolist() == [306, 306]
    hidden, selected = decoder.step(time, _topk)
    assert hidden.shape == (6, QUICK.hidden) and len(selected) == QUICK.layers
    changed = (decoder.caches.index != before).any(-1)
    assert changed.nonzero()[:, 2].unique().tolist() == [303, 304, 305]
    assert int(changed.sum()) == QUICK.layers * 6
    # Row j of a request sees its own token and no later one.
    ends = decoder.scores.isfinite().sum(-1)
    assert ends.tolist() == [[304, 305, 306, 304, 305, 306]] * QUICK.layers


@torch.inference_mode()
def test_attention_does_not_depend_on_the_order_of_the_selection(device: str) -> None:
    decoder = _decoder(Batch(1, 300, 0), 1, device)
    time = torch.zeros(1, dtype=torch.int64, device=device)
    hidden, _ = decoder.step(time, _topk)
    other, _ = decoder.step(time, lambda *given: _topk(*given).flip(-1).int())
    wrong, _ = decoder.step(time, lambda *given: (_topk(*given) + 1) % 300)
    assert torch.allclose(hidden, other, atol=1e-4)
    assert not torch.allclose(hidden, wrong, atol=1e-2)


def test_consecutive_tokens_have_the_given_correlation(device: str) -> None:
    batch = Batch(requests=3, context=8, drafts=1)
    generator = torch.Generator(device).manual_seed(0)
    states = evolving_states(QUICK, batch, 200, 0.9, generator, torch.float32)
    assert states.shape == (200, QUICK.layers, 6, QUICK.hidden)
    # [token, layer, request, hidden]: a step's rows are its tokens, request by request.
    tokens = states.view(200, QUICK.layers, 3, 2, -1).permute(0, 3, 1, 2, 4).flatten(0, 1)
    both = torch.stack([tokens[1:].flatten(), tokens[:-1].flatten()])
    assert float(torch.corrcoef(both)[0, 1]) == pytest.approx(0.9, abs=0.02)


def test_scores_are_those_of_the_definition(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, weights = torch.randn(4, 3, 8, generator=generator), torch.randn(4, 3)
    keys, lengths = torch.randn(2, 10, 8, generator=generator), torch.tensor([10, 4])
    given = plain_scores(*(t.to(device) for t in (queries, weights, keys, lengths))).cpu()
    for row in range(4):
        request, draft = row // 2, row % 2
        for t in range(10):
            dots = (queries[row] @ keys[request, t]).relu()
            expected = float((dots * weights[row]).sum())
            if t >= int(lengths[request]) - 1 + draft:
                expected = -float("inf")
            assert float(given[row, t]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_the_fused_scores_are_the_plain_ones(next_n: int) -> None:
    from benchmarks.indexer_scores import score_into

    queries = torch.randn(3 * next_n, 64, 128, device="cuda", dtype=torch.bfloat16)
    weights = torch.randn(3 * next_n, 64, device="cuda")
    keys = torch.randn(3, 1000, 128, device="cuda", dtype=torch.bfloat16)
    lengths = torch.tensor([1000, 129, 7], device="cuda")
    scores = torch.full((3 * next_n, 1000), torch.nan, device="cuda")
    score_into(scores, queries, weights, keys, lengths)
    expected = plain_scores(queries, weights, keys, lengths)
    assert torch.equal(scores.isfinite(), expected.isfinite())
    assert torch.allclose(scores, expected, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "need --out FILE to measure, or --show FILE"),
        (["--show", "nowhere.json"], "nowhere.json"),
        (["--quick", "--out", "x.json", "--device", "tpu"], "--device: got tpu"),
        (["--quick", "--out", "x.json", "--correlation", "1.5"], "--correlation: got 1.5"),
        (["--out", "x.json", "--device", "cpu"], "the full sizes need a GPU"),
        (["--quick", "--out", "x.json", "--batch", "0"], "need a request"),
        (["--quick", "--out", "x.json", "--context", "0"], "128 keys or more"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str) -> None:
    code, output = _run(*arguments)
    assert code == 2 and message in output and "Traceback" not in output


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "decode.py"), "--help"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0 and "--quick" in answer.stdout, answer.stderr
