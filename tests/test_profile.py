# SPDX-License-Identifier: Apache-2.0
"""`bench profile`: counters go to the launch that they are of, and nothing is lost in silence."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.progress
import torch
from typer.testing import CliRunner

from gvr_topk.bench import (
    ladder,
    launches,
    ncu,
    ncu_tables,
    profile_record,
    profile_report,
    profiling,
)
from gvr_topk.bench.cells import GIB, KIB, MIB, SUITES, Cell
from gvr_topk.bench.cli import _progress_bar, app
from gvr_topk.bench.contenders import REGISTRY
from gvr_topk.bench.launches import KERNELS, Job, launch_all
from gvr_topk.bench.report import Records
from gvr_topk.bench.results import Results, ResultsError
from gvr_topk.bench.targets import judge
from gvr_topk.bench.timing import CudaTimer
from gvr_topk.bench.workload import Recordings, build_pool, make_case
from gvr_topk.plan import H200, plan

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
needs_records = pytest.mark.skipif(
    not (ROOT / "benchmarks/results").is_dir(), reason="the records come with a checkout only"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
COLUMNS = ["ID", "Kernel Name", "Block Size", "Grid Size", "Device"]
METRICS = {
    "gpu__time_duration.sum": ("ns", "6,880"),
    "sm__cycles_elapsed.max": ("cycle", "12,345"),
    "dram__bytes_read.sum": ("byte", "4,456,448"),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "12.5"),
    "smsp__inst_executed.sum": ("inst", "98,304"),
    "smsp__issue_active.avg.pct_of_peak_sustained_active": ("%", "31.25"),
    "launch__shared_mem_per_block": ("Kbyte/block", "98.304"),
    "launch__registers_per_thread": ("register/thread", "40"),
    "lts__t_sector_hit_rate.pct": ("%", "n/a"),
    STALL.format("selected"): ("inst", "1"),
    STALL.format("long_scoreboard"): ("inst", "6.5"),
    STALL.format("barrier"): ("inst", "2.0"),
    STALL.format("membar"): ("inst", "0.5"),
}
OPCODES = "8,000 (BAR: 4,096; IMAD.MOV: 2,000; MEMBAR: 512; UCGABAR_WAIT: 512; LDG: 880)"


def table(kernels: list[str], opcodes: str | None = None) -> str:
    """What ncu exports: its own lines, a header, a row of units, a row per launch."""
    metrics = dict(METRICS) | ({ncu.OPCODES: ("inst", opcodes)} if opcodes else {})

    def line(cells: list[str]) -> str:
        return ",".join(f'"{cell}"' for cell in cells)

    rows = [line([*COLUMNS, *metrics]), line([*[""] * 5, *(unit for unit, _ in metrics.values())])]
    for i, kernel in enumerate(kernels):
        row = [str(i), kernel, "(512, 1, 1)", "(16, 1, 1)", "0"]
        rows.append(line([*row, *(value for _, value in metrics.values())]))
    return "\n".join(["==PROF== Connected to process 7 (/usr/bin/python3)", *rows, ""])


FAKE = """\
#!{python}
import json, subprocess, sys
from pathlib import Path
words, mode = sys.argv[1:], {mode!r}
log = Path(__file__).with_suffix(".log")
if words == ["--version"]:
    print("NVIDIA (R) Nsight Compute Command Line Profiler\\nVersion 2025.3.1.0 (build 1)")
elif words == ["--query-metrics"]:
    print(Path(__file__).with_suffix(".known").read_text())
elif "--import" in words:
    *head, row = Path(__file__).with_suffix(".table").read_text().splitlines()
    print(*head, sep="\\n")
    if mode == "unreadable" and "details" in words:
        sys.exit("==ERROR== An internal error occurred")
    if "details" not in words:
        row = row.replace({opcodes!r}, "8,000")
    elif mode == "by instruction" and "--metrics" in words:
        sys.exit("==ERROR== unrecognised option '--metrics'")
    elif mode == "by instruction":
        row = row.replace('"n/a"', '"' + "0x7f12e40: 3; " * 30_000 + '"')
    for number in range(json.loads(Path(words[words.index("--import") + 1]).read_text())):
        print(row.replace('"0"', f'"{{number}}"', 1))
else:
    with log.open("a") as file:
        file.write(json.dumps(words) + "\\n")
    metrics = words[words.index("--metrics") + 1].split(",")
    if mode == "denied":
        sys.exit("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
    if mode == "refusing" and "sass__inst_executed_per_opcode" in metrics:
        sys.exit("==ERROR== LaunchFailed")
    if mode == "refusing" and "sm__cycles_active.avg" in metrics:
        sys.exit("==ERROR== Failed to find metric regex:^sm__cycles_active(\\\\.avg)?$")
    program = words[words.index({python!r}):]
    code = subprocess.run(program, cwd={root!r}).returncode
    made = len(json.loads(Path(program[-1]).read_text()))
    Path(words[words.index("--export") + 1]).write_text(str(made))
    sys.exit(code)
"""


def fake_ncu(folder: Path, mode: str = "", known: str = "") -> Path:
    path = folder / "ncu"
    text = FAKE.format(python=sys.executable, opcodes=OPCODES, mode=mode, root=str(ROOT))
    path.write_text(text)
    path.with_suffix(".table").write_text(table(["resident_kernel"], OPCODES))
    path.with_suffix(".known").write_text(known)
    path.chmod(0o755)
    return path


PLAIN = profiling.Group((Cell(2, 4 * KIB, 256), Cell(1, 4 * KIB, 64, data="plateau")))
STATE = profiling.Group((Cell(2, 4 * KIB, 256),), profiling.STATE)


def run(folder: Path, groups: list[profiling.Group], mode: str = "", **options: Any) -> Any:
    program = str(fake_ncu(folder, mode))
    request = profiling.Request(groups, program, folder / "profile.json", **options)
    return profiling.run(request, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a run in which nothing went wrong."""
    folder = tmp_path_factory.mktemp("profile")
    run(folder, [PLAIN, STATE], keep=folder / "kept.ncu-rep")
    return folder


def counted(record: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(r["contender"], "counters" in r) for e in record["cells"] for r in e["results"]]


def test_a_raw_page_becomes_numbers_in_the_units_of_the_record() -> None:
    metrics, _ = ncu.choose_metrics(None)
    (launch,) = ncu.parse(table(["resident_kernel"]), metrics)
    counters = launch.counters
    assert launch.kernel == "resident_kernel"
    assert counters["duration_us"] == 6.88 and counters["cycles_elapsed"] == 12345
    assert counters["dram_read_bytes"] == 4456448 and counters["shared_bytes"] == 98304
    assert (counters["grid"], counters["block"], counters["registers"]) == (16, 512, 40)
    assert counters["stall_long_scoreboard"] == 6.5
    assert "l2_hit_percent" not in counters and "waves" not in counters


def test_opcodes_are_counted_and_the_barriers_are_always_kept() -> None:
    (counts,) = ncu.parse_opcodes(table(["k"], OPCODES))
    assert counts == {
        "BAR": 4096, "IMAD.MOV": 2000, "LDG": 880, "MEMBAR": 512, "UCGABAR_WAIT": 512,
    }  # fmt: skip
    assert ncu.parse_opcodes(table(["k"], "n/a")) == [{}]
    many = {f"OP{i}": 100 + i for i in range(30)} | {"BAR": 3}
    kept = ncu.most_executed(many)
    assert kept["BAR"] == 3 and "OP29" in kept and "OP0" not in kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        ("", "nothing"),
        ("a warning about IDs\n==PROF== ID,\n", "a warning about IDs"),
    ],
)
def test_an_export_without_a_table_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ncu.NcuError, match=message):
        ncu.parse(text, {})


def test_cells_may_be_long_and_lines_of_ncu_may_lie_between() -> None:
    limit = csv.field_size_limit()
    long = "8,000 (" + "; ".join(f"OP{i}: 1" for i in range(20_000)) + ";\nBAR: 4,096)"
    text = table(["k", "k"], long).replace('"1","k"', '==WARNING== n/a\n"1","k"') + "done\n"
    assert len(long) > limit
    counts = ncu.parse_opcodes(text)
    assert [(one["BAR"], len(one)) for one in counts] == [(4096, 20_001)] * 2
    assert csv.field_size_limit() == limit
    assert len(ncu.parse(text.replace("\n", "\r\n"), {})) == 2


def test_an_export_without_units_is_in_those_of_the_base() -> None:
    metrics, _ = ncu.choose_metrics(None)
    head, _, row = table(["k"]).replace("98.304", "98304").splitlines()[1:]
    (launch,) = ncu.parse(f"\ufeff{head}\n{row}\n", metrics)
    (known,) = ncu.parse(table(["k"]), metrics)
    assert launch == known and launch.counters["duration_us"] == 6.88


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", 1234.5),
        ("12 (1; 2; 9)", 12),
        ("(!) 7", 7),
        ("1e3", 1000),
        ("(!) n/a", None),
        ("n/a", None),
        ("nan", None),
        ("(256, 1, 1)", None),
        ("", None),
        (None, None),
    ],
)
def test_a_cell_is_a_number_or_nothing(text: str | None, value: float | None) -> None:
    assert ncu_tables.number(text, None) == value


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("12 (BAR: 4; LDG.E: 8)", {"BAR": 4, "LDG.E": 8}),
        ("BAR: 1,004, LDG: 8", {"BAR": 1004, "LDG": 8}),
        ('12 ("BAR": 4;\n"LDG": 8)', {"BAR": 4, "LDG": 8}),
        ("12 (R2UR: 3; BAR: 4; BAR: 5)", {"R2UR": 3, "BAR": 9}),
        ("12", {}),
        ("12 (0x7F12: 4; 0x7F22: 8)", {}),
        ("(!) n/a", {}),
    ],
)
def test_instances_have_names(text: str, counts: dict[str, int]) -> None:
    assert ncu_tables.instances(text) == counts


def test_a_metric_goes_by_the_name_that_this_ncu_knows() -> None:
    known = {name.partition(".")[0] for names in ncu.METRICS.values() for name in names}
    chosen, missing = ncu.choose_metrics(known - {"dram__bytes_read", "lts__t_sector_hit_rate"})
    assert chosen["dram_read_bytes"] == "dram__bytes_op_read.sum"
    assert missing == ["lts__t_sector_hit_rate.pct"] and "l2_hit_percent" not in chosen
    assert chosen["registers"] == "launch__registers_per_thread"  # the query leaves it out


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - x\n", 1, "NVreg_RestrictProfilingToAdminUsers=0"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", 1, "does not start"),
        ("==PROF== x\n==ERROR== The application returned an error code (1).\n", 1, "code .1.[.]$"),
        ("==PROF== x\n", None, "took too long and was ended: ==PROF== x"),
        ("", 9, "exit code 9: it said nothing"),
    ],
)
def test_a_failure_is_one_line_with_its_reason(output: str, code: int | None, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(ncu.explain(output, code))
    assert "\n" not in ncu.explain(output, code)


def test_every_result_gets_the_counters_of_its_launch(whole: Path) -> None:
    record = json.loads((whole / "profile.json").read_text())
    assert record["ncu"]["problem"] is None and record["ncu"]["version"] == "2025.3.1.0"
    names = ["auto", "auto", "op", "op-values", "step", "step-values"]
    assert counted(record) == [(name, True) for name in names]
    assert all(r["exact"] for e in record["cells"] for r in e["results"])
    assert [e["paired"] for e in record["cells"]] == [False, False, True]
    auto = record["cells"][0]["results"][0]
    assert auto["counters"]["opcodes"]["BAR"] == 4096
    assert auto["telemetry"]["passes"] >= 1 and sum(auto["telemetry"]["paths"].values()) == 2
    assert (whole / "kept.ncu-rep").is_file()
    assert "BAR: 4,096" in (whole / "kept.opcodes.csv").read_text()
    (words,) = map(json.loads, (whole / "ncu.log").read_text().splitlines())
    assert words[words.index("--kernel-name") + 1] == f"regex:{KERNELS}"
    assert words[words.index("--clock-control") + 1] == "none"
    lines = profile_report.summary(record)
    assert len(lines) == 6 and lines[0].startswith("2 x 4K, K 256, auto: ")


def test_a_metric_that_is_refused_costs_no_other(tmp_path: Path) -> None:
    known = {name.partition(".")[0] for names in ncu.METRICS.values() for name in names}
    program = fake_ncu(tmp_path, "refusing", "\n".join(sorted(known - {"gpc__cycles"})))
    script, done = tmp_path / "launch.py", tmp_path / "done.json"
    script.write_text("import sys; open(sys.argv[1], 'w').write('[1, 2]')")
    command = [sys.executable, str(script), str(done)]
    found = ncu.collect(str(program), command, kernels="x", seconds=30)
    refused, silent = found.unavailable[:2], found.unavailable[2:]
    assert refused == (ncu.OPCODES, "sm__cycles_active.avg") and found.problem is None
    assert "lts__t_sector_hit_rate.pct" in silent and "gpu__time_duration.sum" not in silent
    assert [one.counters["duration_us"] for one in found.launches] == [6.88, 6.88]
    assert "opcodes" not in found.launches[0].counters


def test_without_counters_the_times_stay_and_the_reason_is_kept(tmp_path: Path) -> None:
    record = run(tmp_path, [PLAIN], "denied")
    assert "run as root" in record["ncu"]["problem"]
    assert {seen for _, seen in counted(record)} == {False}
    assert Results.load(tmp_path / "profile.json").entries[0].time("auto")


def test_opcodes_come_from_an_export_with_values_by_instruction(tmp_path: Path) -> None:
    record = run(tmp_path, [PLAIN], "by instruction", keep=tmp_path / "kept.ncu-rep")
    assert record["ncu"]["problem"] is None
    found = [r["counters"]["opcodes"] for e in record["cells"] for r in e["results"]]
    assert [opcodes["BAR"] for opcodes in found] == [4096] * 2
    assert (tmp_path / "kept.instances.csv").stat().st_size > csv.field_size_limit()


@pytest.mark.parametrize("keep", [None, "kept.ncu-rep"])
def test_opcodes_that_cannot_be_read_cost_nothing_else(tmp_path: Path, keep: str | None) -> None:
    record = run(tmp_path, [PLAIN], "unreadable", keep=tmp_path / keep if keep else None)
    reason = f"{ncu.OPCODES}: ncu: exit code 1: An internal error occurred"
    assert record["ncu"]["problem"] == reason + ("" if keep else "; see its report profile.ncu-rep")
    assert ncu.OPCODES not in record["ncu"]["unavailable"]
    found = [r["counters"] for e in record["cells"] for r in e["results"]]
    assert all("opcodes" not in one and one["duration_us"] == 6.88 for one in found)
    stem = "kept" if keep else "profile"
    for name in ("ncu-rep", "raw.csv", "opcodes.csv", "instances.csv"):
        assert (tmp_path / f"{stem}.{name}").is_file()
    assert "internal error" in (tmp_path / f"{stem}.opcodes.csv").read_text()


def test_a_report_that_does_not_fit_stays_beside_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(*_: object, keep: Path, **__: object) -> ncu.Profile:
        keep.write_bytes(b"report")
        return ncu.Profile((ncu.Launch("stream_kernel", {}),), "2025", {}, (), None)

    monkeypatch.setattr(ncu, "collect", collect)
    record = run(tmp_path, [PLAIN])
    assert record["ncu"]["problem"].endswith("0 were launched; see its report profile.ncu-rep")
    assert (tmp_path / "profile.ncu-rep").read_bytes() == b"report"


def test_a_kernel_that_was_not_launched_is_noticed() -> None:
    record = {"cells": [{"results": [{"contender": "floor", "exact": True}]}]}
    profile = ncu.Profile((ncu.Launch("sort_kernel", {}),), "", {}, (), None)
    launched = [{"cell": 0, "contender": "floor", "exact": True}]
    with pytest.raises(ncu.NcuError, match="sort_kernel was profiled where floor launched floor"):
        profiling.attach(record, profile, launched)
    with pytest.raises(ncu.NcuError, match="1 kernels were profiled, 2 were launched"):
        profiling.attach(record, profile, launched * 2)


def test_launches_beyond_the_budget_are_missing_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done.json"
    launch_all(Job(PLAIN.cells, ({"auto": {}},) * 2, (False,) * 2, (), -1.0), CPU, done)
    assert json.loads(done.read_text()) == []
    nothing = ncu.Profile((), "2025", {}, (), None)
    monkeypatch.setattr(ncu, "collect", lambda *_, **__: nothing)
    record = run(tmp_path, [PLAIN], seconds=0.5)
    assert record["ncu"]["problem"] == "2 launches were not made within 0.5 s"


def test_an_answer_that_is_wrong_under_the_profiler_has_no_time() -> None:
    result: dict[str, Any] = {"contender": "floor", "exact": True, "cold": {"median_us": 1.0}}
    profile = ncu.Profile((ncu.Launch("floor_kernel", {"grid": 4}),), "", {}, (), None)
    launched = [{"cell": 0, "contender": "floor", "exact": False}]
    profiling.attach({"cells": [{"results": [result]}]}, profile, launched)
    assert result["exact"] is False


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    variant = {"parts": 16, "threads": 256, "unroll": 4}
    job = Job((Cell(1, MIB, 512),), ({"floor": variant},), (True,), (tmp_path / "a",), 2.5)
    assert Job.from_json(job.to_json()) == job


def test_ncu_is_found_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_ncu(tmp_path)
    assert ncu.find(str(path)) == str(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ncu.find() == str(path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(ncu.NcuError, match="install Nsight Compute"):
        ncu.find()
    with pytest.raises(ncu.NcuError, match="--ncu: got nowhere, need an executable file"):
        ncu.find("nowhere")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("1x1M:512", Cell(1, MIB, 512, data="normal")),
        ("64x128K:2048", Cell(64, 128 * KIB, 2048)),
        ("2x5000:16:few-values", Cell(2, 5000, 16, data="few-values")),
    ],
)
def test_a_cell_has_a_name(text: str, cell: Cell) -> None:
    assert profiling.cell_named(text) == cell


@pytest.mark.parametrize("text", ["64", "1x8K", "1x8K:8192", "1x8K:0", "4096x1M:8", "1x8K:2:3"])
def test_a_bad_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--cell: got"):
        profiling.cell_named(text)


@needs_records
def test_the_default_cells_miss_their_targets_by_most_and_two_meet_them() -> None:
    records = Records(ROOT)
    plain, state = profiling.default_groups(records.suite)
    count = sum(profiling.FALLING_SHORT.values())
    assert len(plain.cells) + len(state.cells) <= count + 2
    assert state.paired and not plain.paired
    short = {
        measured.label
        for suite in profiling.FALLING_SHORT
        for verdict in judge(records.suite(suite))
        for measured in verdict.measured
        if not verdict.holds(measured)
    }
    fails = [cell for cell in (*plain.cells, *state.cells) if cell.label in short]
    assert len(fails) >= len(plain.cells) + len(state.cells) - 2
    worst = {v.worst.label for v in judge(records.suite("grid")) if not v.passed}
    assert worst & {cell.label for cell in plain.cells}
    assert all(cell.bytes <= 4 * GIB for cell in plain.cells)


@pytest.mark.parametrize(("rows", "kib"), ladder.SHAPES)
def test_a_fixed_cost_is_that_of_the_kernel_that_auto_takes(rows: int, kib: int) -> None:
    from gvr_topk._C import make_plan

    whole = plan(rows, kib * KIB, ladder.K)
    contender = ladder.fixed_contender(rows, kib * KIB, H200)
    assert contender is not None and contender.name == ladder.fixed_name(kib * KIB)
    keys = ("family", "ctas_per_row", "threads", "staging")
    asked: dict[str, Any] = {"rows": rows, "k": ladder.K, **H200.limits()}
    expected = make_plan(n=kib * KIB, **asked)
    with contender.tuned():
        got = make_plan(n=ladder.SHORT, algorithm=whole.family, **asked)
    assert [got[key] for key in keys] == [expected[key] for key in keys]


def ladder_record() -> dict[str, Any]:
    def entry(n: int, **times: float) -> dict[str, Any]:
        results = [
            {"contender": name.replace("__", "-"), "exact": True, "cold": {"median_us": time}}
            for name, time in times.items()
        ]
        return {"cell": {"rows": 1, "n": n}, "results": results}

    fixed = entry(ladder.SHORT, floor=2.0)
    name = ladder.fixed_name(64 * KIB)
    fixed["results"].append({"contender": name, "exact": True, "cold": {"median_us": 5.0}})
    whole = entry(64 * KIB, floor=2.5, floor__pdl=1.9, auto=6.5)
    whole["results"][2]["plan"] = {"family": "resident", "ctas_per_row": 16, "hint": "ignored"}
    return {"launch": {"median_us": 1.5}, "cells": [whole, fixed]}


def test_the_rungs_tell_fixed_cost_from_reading() -> None:
    (rung,) = ladder.rungs(ladder_record())
    assert (rung.launch, rung.floor, rung.floor_pdl, rung.auto) == (1.5, 2.5, 1.9, 6.5)
    assert rung.reading == 1.5 and rung.fixed_share == 0.75
    assert rung.plan == "resident, 16 CTAs per row"
    record = ladder_record()
    record["cells"][1]["results"] = []
    (rung,) = ladder.rungs(record)
    assert rung.reading is None and rung.fixed_share is None
    assert {"floor", "floor-pdl", "auto"} <= set(ladder.long_rows().contenders) <= set(REGISTRY)
    assert profiling.NAME not in SUITES


@needs_gpu
def test_an_empty_kernel_has_a_time_and_a_profiled_call_is_exact() -> None:
    device = torch.device("cuda", 0)
    assert CudaTimer().warm(ladder.empty_launch(device), 3).median_us > 0
    cell = PLAIN.cells[1]
    pool = build_pool(cell, cell.rows, cell.k, device, Recordings((), device, cell.n), False)
    case = make_case(cell, pool, 1, False)
    assert launches.launch(REGISTRY["auto"], case, {})
    assert launches.telemetry(case)["passes"] >= 1


def launch(**counters: float) -> profile_record.Launch:
    return profile_record.Launch("1 x 8K", "auto", 5.0, 2.0, None, 1, 132, counters, {})


@pytest.mark.parametrize(
    ("counters", "limit"),
    [
        ({"dram_percent": 60.0, "issue_percent": 70.0, "grid": 4}, "bandwidth"),
        ({"dram_percent": 59.0, "issue_percent": 60.0, "grid": 4}, "instructions"),
        ({"dram_percent": 10.0, "issue_percent": 20.0, "grid": 66}, "few SMs, waiting"),
        ({"dram_percent": 10.0, "issue_percent": 20.0, "grid": 67}, "waiting"),
        ({}, "waiting"),
    ],
)
def test_the_counters_decide_what_holds_a_launch_back(
    counters: dict[str, float], limit: str
) -> None:
    assert launch(**counters).limit == limit


def test_shares_of_all_activities_are_one_and_every_stall_has_its_place() -> None:
    stalls = {f"stall_{reason}": 1.0 for reason in ncu.STALLS}
    assert sum(launch(**stalls).activities.values()) == pytest.approx(1.0)
    placed = [reason for reasons in profile_record.ACTIVITIES.values() for reason in reasons]
    assert sorted(placed) == sorted(ncu.STALLS)
    assert launch().activities == {} and launch().barriers == {}


def committed(folder: Path, whole: Path) -> Path:
    """A checkout with a profile of a card."""
    record = json.loads((whole / "profile.json").read_text())
    record["environment"]["gpu"] = {"name": "Card", "sm_count": 132, "driver": "1"}
    record["ladder"] = ladder_record()
    path = folder / profile_report.RECORD
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def test_the_documentation_says_how_to_make_the_record_or_what_it_says(
    whole: Path, tmp_path: Path
) -> None:
    for block in (profile_report.why, profile_report.ladder):
        assert profile_report.COMMAND in " ".join(block(tmp_path))
    path = committed(tmp_path / "root", whole)
    text = " ".join(" ".join(profile_report.why(tmp_path / "root")).split())
    assert "Nsight Compute 2025.3.1.0, clock control none" in text
    shares = "| | 16 x 512 | 12 % | 10 % | 65 % | 20 % | 5 % | 0 % | 0 % | 0 % |"
    assert re.search(rf"\| 2 x 4K, K 256 \| auto \| \d+(\.\d)? {re.escape(shares)}", text)
    assert "* **2 x 4K, K 256, auto: few SMs, waiting.** 16 CTAs on 132 SMs;" in text
    assert "a warp waits for global memory (65 %), barrier (20 %), fence (5 %);" in text
    assert re.search(r"per warp; 1 read of the slowest row, refined in \d+ rounds\.", text)
    assert "16 CTA barriers and 2 of the cluster per warp" in text
    assert "step: few SMs, waiting.**" in text and "x the bare operator" in text
    assert f"images/{profile_report.PICTURE}.png" in text
    text = " ".join(profile_report.ladder(tmp_path / "root"))
    assert "75 % (1 x 64K)" in text and "| 1 x 64K | 1.5 | 2.5 | 1.9 | 2.0 | 5.0 | 6.5 |" in text
    record = json.loads(path.read_text())
    del record["ncu"]
    path.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match="no record of `bench profile`"):
        profile_report.why(tmp_path / "root")


def test_the_figure_shows_every_launch(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from gvr_topk.bench.profile_figure import stalls

    found = profile_record.launches(profile_record.load(committed(tmp_path / "root", whole)))
    figure = stalls(found)
    assert figure is not None
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"{one.cell}: {one.contender}" for one in found]
    assert stalls([launch()]) is None


@pytest.mark.parametrize("problem", [None, "ncu: no counters"])
def test_the_command_says_what_was_found_and_what_is_missing(
    problem: str | None, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((whole / "profile.json").read_text())
    record["ncu"]["problem"] = problem
    asked: list[profiling.Request] = []
    monkeypatch.setattr(profiling, "gpu", lambda: CPU)
    monkeypatch.setattr(profiling, "run", lambda request, *_: asked.append(request) or record)
    given = ["--ncu", str(fake_ncu(tmp_path)), "--out", str(tmp_path / "a" / "b.json")]
    result = CliRunner().invoke(app, ["profile", *given, "--cell", "1x1M:512", "--budget", "5"])
    assert result.exit_code == (1 if problem else 0)
    assert ("failed: ncu: no counters" in result.output) == bool(problem)
    assert "3 cells in" in result.output and "2 x 4K, K 256, step: " in result.output
    assert asked[0].groups == [profiling.Group((Cell(1, MIB, 512, data="normal"),))]
    assert (asked[0].seconds, asked[0].clocks) == (5.0, "none")


def test_the_bar_counts_the_results_of_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[rich.progress.Progress] = []
    enter = rich.progress.Progress.__enter__

    def seen(self: rich.progress.Progress) -> rich.progress.Progress:
        bars.append(self)
        return enter(self)

    monkeypatch.setattr(rich.progress.Progress, "__enter__", seen)
    request = profiling.Request([PLAIN, STATE], str(fake_ncu(tmp_path)), tmp_path / "profile.json")
    with _progress_bar() as progress:
        record = profiling.run(request, CPU, progress)
    (task,) = bars[0].tasks
    assert task.completed == task.total == len(counted(record))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ncu", "nowhere"], "--ncu: got nowhere, need an executable file"),
        (["--cell", "1x8K"], "--cell: got '1x8K', need ROWSxN:K"),
        (["--contender", "auto"], "--contender: got 'auto' without --cell, need both"),
        (["--cell", "1x8K:2", "--contender", "x"], "--contender: got 'x', need one of floor"),
        (["--root", "nowhere"], "h200-grid.json"),
        (["--cell", "1x8K:2"], "profile: torch sees no CUDA device, need one"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "profile.json"
    given = ["--ncu", str(fake_ncu(tmp_path)), *arguments, "--out", str(out)]
    result = CliRunner().invoke(app, ["profile", *given])
    assert result.exit_code == 2 and message in result.output
    assert result.output.startswith("error: ") and not out.exists()
