# SPDX-License-Identifier: Apache-2.0
"""The benchmark measures what it says, notices wrong answers, and judges from its record alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gvr_topk._C import get_tuning
from gvr_topk.bench import exact, floor
from gvr_topk.bench.cells import KIB, SUITES, Cell, Suite, suite_named
from gvr_topk.bench.cli import app
from gvr_topk.bench.contenders import REGISTRY, Contender, of_suite, plan_of
from gvr_topk.bench.dispatch import decisions
from gvr_topk.bench.environment import source_hash
from gvr_topk.bench.evidence import gather, succeeded
from gvr_topk.bench.published import FLOOR_AND_BEST, best_multiple
from gvr_topk.bench.results import Results
from gvr_topk.bench.runner import Runner, failures, without_folder
from gvr_topk.bench.targets import Measured, Verdict, judge
from gvr_topk.bench.workload import Recordings, build_pool, make_case, make_hint
from gvr_topk.plan import H200, plan
from gvr_topk.reference import topk_reference

PAYS = "the hint pays: none over real, N >= 256K or rows x N >= 8M"
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "smoke.json"
    code, output = invoke("run", "--suite", "smoke", "--device", "cpu", "--out", out)
    assert code == 0, output
    return out


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return Recordings((), CPU, 4 * KIB)


def test_smoke_suite_checks_every_timed_result(smoke: Path) -> None:
    record = json.loads(smoke.read_text())
    cells = suite_named("smoke").cells
    assert [Cell(**entry["cell"]) for entry in record["cells"]] == list(cells)
    assert record["skipped"] == [] and set(record["unavailable"]) == {"floor"}
    for entry in record["cells"]:
        assert {r["contender"] for r in entry["results"]} == set(
            suite_named("smoke").contenders
        ) - {"floor"}
        for result in entry["results"]:
            assert result["exact"] is True
            assert result["rows_checked"] == entry["cell"]["rows"] * entry["buffers"]
            cold = result["cold"]
            assert 0 < cold["p10_us"] <= cold["median_us"] <= cold["p90_us"]
            assert cold["samples"] >= 20


def test_record_names_machine_versions_and_sources(smoke: Path) -> None:
    record = json.loads(smoke.read_text())
    environment = record["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["source_sha256"] == source_hash()
    assert environment["cpu"] and environment["date"]
    assert record["l2_policy"]["cpu"]


def test_record_names_files_without_their_folders(tmp_path: Path) -> None:
    given = ["--out", str(tmp_path / "a.json"), f"--trace={tmp_path / 'b.safetensors'}", "--budget"]
    assert [without_folder(argument) for argument in given] == [
        "--out",
        "a.json",
        "--trace=b.safetensors",
        "--budget",
    ]


def test_tables_plots_and_targets_come_from_the_record_alone(smoke: Path, tmp_path: Path) -> None:
    for command in ("table", "targets"):
        code, output = invoke(command, smoke)
        assert code == 0, output
    code, output = invoke("table", smoke)
    assert "us per call)" in output and "x floor" not in output  # which no CPU has
    code, output = invoke("table", smoke, "--baseline", "absent")
    assert code == 2 and "--baseline: got 'absent', need one of" in output
    code, output = invoke("table", smoke, "--warm", "--baseline", "torch.topk")
    assert code == 0 and "K 256" in output and "us per call, x torch.topk)" in output
    pytest.importorskip("matplotlib")
    code, output = invoke("plot", smoke, "--out", tmp_path)
    assert code == 0, output
    assert all(Path(line).stat().st_size > 0 for line in output.splitlines())


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_names_known_contenders_and_distinct_cells(name: str) -> None:
    suite = suite_named(name)
    assert set(suite.contenders) <= set(REGISTRY)
    assert len(set(suite.cells)) == len(suite.cells) > 0
    assert all(1 <= cell.k < cell.n for cell in suite.cells)
    assert len({c.name for c in of_suite(suite, CPU)}) == len(of_suite(suite, CPU))


def test_grid_holds_every_cell_of_the_published_tables() -> None:
    shapes = {(c.k, c.rows, c.n) for c in suite_named("grid").cells}
    published = {(k, *shape) for k, cells in FLOOR_AND_BEST.items() for shape in cells}
    assert published <= shapes
    assert best_multiple(2048, 1, 64 * KIB) == pytest.approx(9.8 / 2.9)
    assert best_multiple(1000, 1, 64 * KIB) is None


def test_exact_topk_is_the_reference() -> None:
    scores = torch.randint(-3, 4, (5, 300)).float()
    scores[:, ::7] = torch.nan
    scores[0, 3], scores[0, 4], scores[1, 5] = torch.inf, -0.0, -torch.inf
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = scores.to(dtype)
        assert torch.equal(exact.exact_topk(rows, 40), topk_reference(rows, 40)[1].int())


def test_checks_notice_a_wrong_a_missing_and_a_doubled_index() -> None:
    scores = torch.arange(64.0).repeat(2, 1)
    expected = exact.exact_topk(scores, 8)
    assert exact.same_indices(expected.flip(1), expected)
    assert exact.same_values(expected.flip(1).long(), scores, expected)
    for wrong in (0, -1, int(expected[1, 1]), 64):
        given = expected.clone()
        given[1, 0] = wrong
        assert not exact.same_indices(given, expected)
        assert not exact.same_values(given, scores, expected)


def test_free_ties_pass_only_where_the_tie_rule_is_not_promised() -> None:
    scores = torch.zeros(1, 16)
    expected = exact.exact_topk(scores, 4)
    other = expected + 4
    assert exact.same_values(other, scores, expected)
    assert not exact.same_indices(other, expected)


def test_recorded_rows_are_distinct_and_hints_are_the_step_before(recordings: Recordings) -> None:
    cell = Cell(4, 4 * KIB, 64)
    pool = build_pool(cell, 80, 64, CPU, recordings, keep_previous=True)
    assert torch.unique(pool.scores, dim=0).shape[0] == 80
    assert pool.previous is not None
    assert torch.equal(pool.hints, topk_reference(pool.previous, 64)[1].int())
    assert torch.equal(pool.expected, topk_reference(pool.scores, 64)[1].int())
    shared = float(exact.overlap(pool.hints, pool.expected).mean())
    assert 0.3 < shared < 1


@pytest.mark.parametrize("kind", ["bottom", "zeros", "random", "other", "badrow", "overlap:0.5"])
def test_hints_are_what_their_names_say(kind: str, recordings: Recordings) -> None:
    cell = Cell(4, 4 * KIB, 64, hint=kind)
    pool = build_pool(cell, 8, 64, CPU, recordings)
    hint = make_hint(cell, pool, 8)
    assert hint is not None and hint.dtype == torch.int32 and hint.shape == (8, 64)
    assert int(hint.min()) >= 0 and int(hint.max()) < pool.scores.shape[1]
    shares = exact.overlap(hint, pool.expected)
    real = exact.overlap(pool.hints, pool.expected)
    if kind == "badrow":
        assert (shares == real).sum() == 6 and float(shares.min()) == 0
    elif kind == "overlap:0.5":
        assert bool(((shares >= 0.5) & (shares < 0.6)).all())
    elif kind == "other":
        assert torch.equal(hint[1:], pool.hints[:-1])
    else:
        assert float(shares.max()) < 0.1


def test_paired_case_holds_each_step_and_the_one_before(recordings: Recordings) -> None:
    cell = Cell(2, 4 * KIB, 64)
    pool = build_pool(cell, 6, 64, CPU, recordings, keep_previous=True)
    case = make_case(cell, pool, 3, paired=True)
    assert len(case.buffers) == 6
    for now, before in zip(case.buffers[:3], case.buffers[3:], strict=True):
        assert torch.equal(before.hint, now.expected) and torch.equal(now.hint, before.expected)
        for buffer in (now, before):
            assert torch.equal(buffer.expected, exact.exact_topk(buffer.scores, 64))


def _runner(out: Path, contenders: Sequence[Contender], **changes: Any) -> Runner:
    suite = Suite("a test", (Cell(2, 4 * KIB, 32, data="normal"),), (), replays=2)
    return Runner("test", suite, contenders, CPU, (), out, **changes)


def test_wrong_and_failing_contenders_fail_the_run(tmp_path: Path) -> None:
    def wrong(case: Any) -> list[Any]:
        return [lambda: torch.zeros((2, 32), dtype=torch.int32) for _ in case.buffers]

    def broken(case: Any) -> list[Any]:
        raise RuntimeError("no kernel image")

    fake = replace(REGISTRY["torch.topk"], name="wrong", prepare=wrong)
    failing = replace(fake, name="broken", prepare=broken)
    record = _runner(tmp_path / "r.json", [fake, failing, REGISTRY["torch.topk"]]).run()
    assert len(failures(record)) == 2
    entry = Results.load(tmp_path / "r.json").entries[0]
    assert entry.time("wrong") is None and entry.time("broken") is None
    assert entry.time("torch.topk") is not None
    assert "no kernel image" in entry.results["broken"]["error"]


def test_contender_that_writes_nothing_is_not_exact(tmp_path: Path) -> None:
    def idle(case: Any) -> list[Any]:
        right = [buffer.expected.clone() for buffer in case.buffers]
        return [lambda indices=indices: indices for indices in right]

    record = _runner(tmp_path / "r.json", [replace(REGISTRY["auto"], prepare=idle)]).run()
    assert failures(record) == ["2 x 4K, K 32: auto: not exact"]


def test_spent_budget_skips_cells_and_says_so(tmp_path: Path) -> None:
    record = _runner(tmp_path / "r.json", [REGISTRY["torch.topk"]], budget=0.0).run()
    assert record["cells"] == [] and "budget" in record["skipped"][0]["reason"]


def test_rows_longer_than_the_recordings_are_skipped_not_invented(tmp_path: Path) -> None:
    runner = _runner(tmp_path / "r.json", [REGISTRY["torch.topk"]])
    runner.suite = replace(runner.suite, cells=(Cell(1, 64 * KIB, 32),))
    assert "--trace" in runner.run()["skipped"][0]["reason"]


def _entry(cell: Cell, **times: float) -> dict[str, Any]:
    results = [
        {"contender": name.replace("_", "-"), "cold": {"median_us": time}, "exact": True}
        for name, time in times.items()
    ]
    return {"cell": asdict(cell), "label": cell.label, "overlap": None, "results": results}


def _verdicts(suite: str, path: Path, *entries: dict[str, Any]) -> dict[str, Verdict]:
    environment = {"gpu": None, "cpu": "a CPU", "torch": "2", "source_sha256": "", "date": "today"}
    record = {"schema": 1, "suite": suite, "device": "cpu", "environment": environment}
    path.write_text(json.dumps({**record, "cells": list(entries)}))
    return {verdict.name: verdict for verdict in judge(Results.load(path))}


def test_targets_take_the_worst_cell(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    one, batch = Cell(1, 64 * KIB, 2048), Cell(64, 128 * KIB, 2048)
    entries = (
        _entry(one, floor=3.0, auto=6.0, gvr=30.0, radix=60.0, auto_nohint=6.6),
        _entry(batch, floor=10.0, auto=20.0, auto_nohint=30.0),
    )
    found = _verdicts("grid", path, *entries)
    small = found["aim: auto over the floor, elsewhere"]
    assert small.passed and small.worst.ratio == pytest.approx(2.0)
    large = found["aim: auto over the floor, rows x N >= 8M"]
    assert not large.passed and large.worst.label == batch.label
    must = found["must: multiple of the floor over that of the best known"]
    assert must.worst.ratio == pytest.approx(2.0 / (33.6 / 10.8))
    assert _verdicts("issue", path, *entries)["gvr over in-repo radix, 1 x 64K"].passed
    hints = _verdicts("dispatch", path, *entries)
    assert not hints["no hint over the real hint"].passed
    assert hints[PAYS].passed
    assert _verdicts("adversarial", path, *entries) == {} == _verdicts("mine", path, *entries)


def test_a_mean_is_judged_only_over_all_the_cells_that_it_speaks_of(tmp_path: Path) -> None:
    entries = [
        _entry(Cell(*shape, k, data="trace" if shape[1] <= 128 * KIB else "normal"),
               floor=floor_us, auto=0.5 * best)
        for k, cells in FLOOR_AND_BEST.items()
        for shape, (floor_us, best) in cells.items()
    ]  # fmt: skip
    mean = _verdicts("grid", tmp_path / "r.json", *entries)["must: the same, all cells"]
    assert mean.passed and mean.worst == ("geometric mean of 60 cells", pytest.approx(0.5))
    found = _verdicts("grid", tmp_path / "r.json", *entries[:-1])
    assert "must: the same, all cells" not in found
    assert found["must: multiple of the floor over that of the best known"].passed


@pytest.mark.parametrize(
    ("family", "hint", "outcome", "note"),
    [
        ("resident", "ignored", "not judged", "in 1 of 1 cells; in 1 of them the row stays"),
        ("stream", "ignored", "falls short", "in 1 of 1 cells; in 0 of them the row stays"),
        ("stream", "used", "falls short", ""),
    ],
)
def test_a_hint_need_not_pay_where_the_row_stays_on_the_chip_and_auto_ignores_it(
    family: str, hint: str, outcome: str, note: str, tmp_path: Path
) -> None:
    real = Cell(1, 256 * KIB, 2048, data="normal")
    entries = [_entry(replace(real, hint=kind), auto=9.0) for kind in ("real", "none")]
    entries[0]["results"][0]["plan"] = {"family": family, "ctas_per_row": 16, "hint": hint}
    verdict = _verdicts("hints", tmp_path / "r.json", *entries)[PAYS]
    assert (verdict.outcome, verdict.passed) == (outcome, outcome == "not judged")
    assert note in verdict.note and bool(note) == bool(verdict.note)
    code, output = invoke("targets", tmp_path / "r.json")
    assert code == 0 and outcome in output
    told = json.loads(invoke("targets", tmp_path / "r.json", "--json")[1])
    assert [t["outcome"] for t in told if t["target"] == PAYS] == [outcome]


def test_a_ratio_that_just_fails_is_not_shown_as_what_is_needed() -> None:
    verdict = Verdict("x", 1.1, True, (Measured("a cell", 1.1004), Measured("b", 1.2)))
    assert [verdict.shown(m) for m in verdict.measured] == ["1.1004x", "1.20x"]
    assert verdict.outcome == "falls short"


def test_a_plan_in_a_record_says_kernel_ctas_and_fate_of_the_hint(recordings: Recordings) -> None:
    cell = Cell(2, 4 * KIB, 64)
    case = make_case(cell, build_pool(cell, 4, 64, CPU, recordings), 2, paired=False)
    expected = plan(2, 4 * KIB, 64, has_hint=True, algorithm="stream")
    ctas = expected.ctas_per_row
    known = {"family": "stream", "ctas_per_row": ctas, "hint": "used"}
    assert plan_of(case, "stream", True, H200) == known
    assert plan_of(case, "stream", False, H200) == {**known, "hint": "none"}
    assert plan_of(case, "resident", True, H200)["hint"] == "ignored"
    assert REGISTRY["auto"].plan(case) is None, "on the CPU there is no such choice"


def test_cpu_targets_compare_threads(tmp_path: Path) -> None:
    one = Cell(1, 128 * KIB, 2048, threads=1)
    two = replace(one, threads=2)
    entries = (_entry(one, auto=100.0) | {}, _entry(two, auto=50.0))
    entries[0]["results"].append(
        {"contender": "torch.topk", "cold": {"median_us": 700.0}, "exact": True}
    )
    found = _verdicts("cpu", tmp_path / "r.json", *entries)
    assert found["CPU, two threads over one, N 128K"].worst.ratio == pytest.approx(2.0)
    assert not found["CPU, one thread, N 128K: auto over torch.topk"].passed


def test_monotone_target_finds_a_cliff(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    entries = [_entry(Cell(1, 64 * KIB, k), auto=t) for k, t in ((1, 5.0), (2, 9.0), (4, 6.0))]
    verdict = _verdicts("dense", path, *entries)["time monotone in K"]
    assert not verdict.passed and verdict.worst.ratio == pytest.approx(1.5)


def test_dispatch_suite_times_every_choice_under_its_tuning() -> None:
    suite = suite_named("dispatch")
    swept = [c for c in of_suite(suite, CPU) if c.tuning]
    assert len(swept) == len(suite.swept) * 5
    assert {c.tuning["ctas_per_row"] for c in swept} == {1, 2, 4, 8, 16}
    with next(c for c in swept if c.name == "gvr[ctas_per_row=8]").tuned():
        assert get_tuning()["ctas_per_row"] == 8


def test_decisions_name_the_fastest_exact_choice(tmp_path: Path) -> None:
    path = tmp_path / "dispatch.json"
    suite = replace(
        suite_named("dispatch"),
        cells=(Cell(2, 4 * KIB, 32, data="normal"), Cell(1, 8 * KIB, 32, data="normal")),
        replays=2,
    )
    Runner("dispatch", suite, of_suite(suite, CPU), CPU, (), path).run()
    found = decisions(Results.load(path))
    assert [(d.rows, d.n) for d in found] == [(2, 4 * KIB), (1, 8 * KIB)]
    for decision in found:
        assert len(decision.choices) == 21 and decision.floor_us is None
        assert decision.best.time_us == min(c.time_us for c in decision.choices)
        assert decision.regret == decision.auto_us / decision.best.time_us
        assert list(decision.times("stream", False)) == [1, 2, 4, 8, 16]
        assert list(decision.times("radix", False)) == [1]
    record = json.loads(path.read_text())
    for result in record["cells"][0]["results"]:
        result["exact"] = result["contender"] not in (str(found[0].best), "auto")
    path.write_text(json.dumps(record))
    assert len(decisions(Results.load(path))) == 1


def test_a_kernel_that_did_not_answer_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "dispatch.json"
    times = {"auto": 5.0, "resident[ctas_per_row=1]": 3.0, "resident[ctas_per_row=8]": 5.0}
    entry = _entry(Cell(1, 64 * KIB, 2048), **times)
    for result, name in zip(entry["results"], times, strict=True):
        result["contender"] = name
    plans = (("resident", 8), ("stream", 1), ("resident", 8))
    for result, (family, ctas) in zip(entry["results"], plans, strict=True):
        result["plan"] = {"family": family, "ctas_per_row": ctas, "hint": "ignored"}
    _verdicts("dispatch", path, entry)
    (decision,) = decisions(Results.load(path))
    assert str(decision.best) == decision.taken == "resident, 8 CTAs, no hint"
    assert decision.regret == 1.0


@pytest.mark.parametrize("text", ["", "[]", '{"cells": [], "schema": 99}'])
def test_unreadable_record_is_one_line_and_exit_code_2(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    code, output = invoke("table", path)
    assert code == 2 and str(path) in output and len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("--suite", "nope"), ("--suite", "smoke", "--contender", "x"), ("--suite", "dense"),
     ("--suite", "smoke", "--sweep", "chunk=a")],
)  # fmt: skip
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    out = tmp_path / "r.json"
    code, _ = invoke("run", "--device", "cpu", "--out", out, *arguments)
    assert code == 2 and not out.exists()


def test_source_hash_depends_on_names_and_bytes(tmp_path: Path) -> None:
    assert source_hash(tmp_path) is None
    source = tmp_path / "csrc" / "a.cpp"
    source.parent.mkdir()
    seen = set()
    for text in ("int a;", "int b;"):
        source.write_text(text)
        seen.add(source_hash(tmp_path))
    source.rename(source.with_name("b.cpp"))
    assert len(seen | {source_hash(tmp_path)}) == 3


OUTCOMES = """
import pytest
def test_good(): pass
@pytest.mark.skipif(True, reason="needs a GPU")
def test_skipped(): pass
"""


def test_evidence_counts_outcomes_and_gives_pytests_exit_code(tmp_path: Path) -> None:
    tests = tmp_path / "test_sample.py"
    tests.write_text(OUTCOMES)
    out = tmp_path / "evidence.json"
    code, _ = invoke("evidence", "--out", out, "--", "-q", "-p", "no:cacheprovider", tests)
    record = json.loads(out.read_text())
    assert code == record["exit_code"] == 0 and record["problem"] is None
    assert record["totals"] == {"tests": 2, "passed": 1, "failed": 0, "errors": 0, "skipped": 1}
    assert sum(record["skipped"].values()) == 1
    tests.write_text(OUTCOMES + "def test_bad(): assert False\n")
    code, _ = invoke("evidence", "--out", out, "--", "-q", "-p", "no:cacheprovider", tests)
    record = json.loads(out.read_text())
    assert code == record["exit_code"] == 1
    # The folders in front depend on where the repository lies.
    failed = [name.split(".")[-1] for name in record["failed"]]
    assert record["totals"]["failed"] == 1 and failed == ["test_sample::test_bad"]


def test_evidence_of_a_command_counts_the_tests_that_it_runs(tmp_path: Path) -> None:
    tests = tmp_path / "test_sample.py"
    tests.write_text(OUTCOMES)
    command = f"{sys.executable} -m pytest {tests}"
    record = gather(["-q", "-p", "no:cacheprovider"], command=command)
    assert succeeded(record) and record["command"] == command
    assert record["totals"]["passed"] == 1 and record["totals"]["skipped"] == 1
    record = gather([], command=str(tmp_path / "absent"))
    assert not succeeded(record) and "absent" in record["problem"]


def test_evidence_of_nothing_is_no_success(tmp_path: Path) -> None:
    record = gather(["-q", "-p", "no:cacheprovider", str(tmp_path / "absent.py")])
    assert not succeeded(record) and record["exit_code"] != 0
    sleeper = tmp_path / "test_sleep.py"
    sleeper.write_text("import time\ndef test_sleep(): time.sleep(60)\n")
    record = gather(["-q", "-p", "no:cacheprovider", str(sleeper)], timeout=2.0)
    assert not succeeded(record) and record["problem"] == "stopped after 2 s"


@pytest.mark.parametrize("rows", [1, 64, 512])
@pytest.mark.parametrize("n", [KIB, 64 * KIB, 1024 * KIB])
def test_floor_is_tried_in_several_shapes(rows: int, n: int) -> None:
    shapes = floor.variants(rows, n, 4)
    assert len(shapes) >= 4
    assert all(1 <= s["parts"] <= floor.MAX_PARTS for s in shapes)
    assert all((s["threads"], s["unroll"]) in floor.SHAPES for s in shapes)


def _floor_writes(scores: Tensor, k: int, parts: int, unread: int | None = None) -> Tensor:
    """What floor.cuh leaves; `unread`: a part that reads nothing."""
    rows, n = scores.shape
    written = torch.empty((rows, k), dtype=torch.int32)
    for part in range(parts):
        scored = scores[:, n * part // parts : n * (part + 1) // parts]
        if part == unread:
            scored = torch.full_like(scored, -torch.inf)
        bits = scored.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(1).view(torch.int32).long()
        keys = (torch.where(bits < 0, ~bits, bits | 1 << 31) & 0xFFFFFFFF)[:, None]
        places = torch.arange(k * part // parts, k * (part + 1) // parts)
        words = keys ^ places
        written[:, places] = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return written


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_the_check_of_the_floor_knows_both_zeros_and_misses_no_part(parts: int) -> None:
    scores = torch.randn(6, 256)
    scores[0] = -scores[0].abs()
    scores[0, 7] = -0.0  # the maximum, as where small scores are rounded
    scores[1] = -scores[1].abs()
    scores[1, 9] = 0.0
    scores[2, ::5] = torch.nan
    scores[3, 200] = torch.inf
    scores[4] = -torch.inf
    written = _floor_writes(scores, max(parts, 3), parts)
    assert exact.floor_read_everything(written, scores)
    for unread in range(parts):
        scores[5, 256 * unread // parts] = 9.0 + unread
        written = _floor_writes(scores, max(parts, 3), parts, unread)
        assert not exact.floor_read_everything(written, scores)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, n, k", [(1, KIB, 1), (3, 64 * KIB + 16, 2048), (65, 8 * KIB, 512)])
def test_floor_reads_every_score_once(dtype: torch.dtype, rows: int, n: int, k: int) -> None:
    for place in (0, n // 2, n - 1):
        scores: Tensor = torch.randn((rows, n), device="cuda").to(dtype)
        scores[:, place] = 9.0
        for variant in floor.variants(rows, n, scores.element_size()):
            written = floor.prepare(scores, k, dependent=False, **variant)()
            assert exact.floor_read_everything(written, scores), variant
