# SPDX-License-Identifier: Apache-2.0
"""The table of faults fits the sources, so that the mutation check tests what it says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run
from faults import FAULTS
from rebuild import affected
from run import CPP_TESTS, Copy, OutOfTime, misplaced

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_every_fault_finds_its_place() -> None:
    """A rewritten kernel needs its faults anchored anew: tests/mutation/run.py --list."""
    assert {fault.name: misplaced(fault) for fault in FAULTS if misplaced(fault)} == {}


def test_faults_are_many_distinct_and_everywhere() -> None:
    assert len(FAULTS) >= 30
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert all(fault.old != fault.new and fault.why for fault in FAULTS)
    folders = {fault.file.rsplit("/", 1)[0] for fault in FAULTS}
    assert folders >= {
        "csrc/common",
        "csrc/cpu",
        "csrc/cuda/phases",
        "csrc/cuda/kernels",
        "csrc/ops",
    }
    assert {fault.device for fault in FAULTS} == {"cpu", "cuda"}


def test_every_cuda_source_of_kernels_and_phases_has_a_fault() -> None:
    kernels = {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/kernels/*.cuh")}
    phases = {f"csrc/cuda/phases/{name}.cuh" for name in ("emit", "verify", "collect", "refine")}
    at_fault = {fault.file for fault in FAULTS if fault.device == "cuda"}
    assert phases <= at_fault
    assert kernels - at_fault <= {"csrc/cuda/kernels/gvr.cuh", "csrc/cuda/kernels/stream.cuh"}


def test_only_what_includes_a_fault_is_compiled_anew() -> None:
    def names(file: str, device: str) -> set[str]:
        return {path.name for path in affected(file, device)}

    assert names("csrc/cuda/kernels/resident.cuh", "cuda") == {"resident_float32.cu"}
    assert "common_float32.cu" in names("csrc/cuda/kernels/radix.cuh", "cuda")
    assert names("csrc/cpu/row.cpp", "cpu") == {"row.cpp"}
    assert names("csrc/ops/topk_cache.cpp", "cpu") == {"topk_cache.cpp"}
    assert "topk_cache.cpp" not in names("csrc/common/rows.h", "cpu")
    assert {"row.cpp", "collect.cpp", "refine.cpp"} <= names("csrc/common/order.h", "cpu")
    for fault in FAULTS:
        assert affected(fault.file, fault.device), f"{fault.name}: no object includes its file"


def test_a_fault_s_own_test_exists() -> None:
    for fault in FAULTS:
        # The C++ tests that judge know nothing of the operators.
        assert fault.test is not None or not fault.file.startswith("csrc/ops/"), fault.name
        if fault.test is not None:
            file, _, function = fault.test.partition("::")
            assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text(), fault.name


def test_a_command_that_never_ends_is_stopped(tmp_path: Path) -> None:
    copy = Copy.__new__(Copy)
    copy.folder, copy.end = tmp_path, float("inf")
    assert copy.run([sys.executable, "-c", "pass"], 60) == 0
    assert copy.run([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert copy.run([sys.executable, "-c", "while True: pass"], 1) is None
    copy.end = perf_counter() + 1
    with pytest.raises(OutOfTime):  # which is no answer, so nothing was noticed
        copy.run([sys.executable, "-c", "while True: pass"], 60)


@pytest.mark.parametrize("code, outcome", [(0, "survived"), (1, "caught"), (4, "not tested")])
def test_only_a_test_that_ran_and_failed_notices(
    code: int, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest and the fuzzer say 2 and more where they tested nothing."""
    copy = Copy.__new__(Copy)
    copy.folder, copy.end, copy.device = tmp_path, float("inf"), "cuda"
    monkeypatch.setattr(copy, "build_extension", lambda sources: True)
    stand_in = ("stand-in", 60.0, ["-c", f"raise SystemExit({code})"])
    monkeypatch.setitem(run.COMMANDS, "cuda", [stand_in])
    fault = next(fault for fault in FAULTS if fault.device == "cuda" and not fault.test)
    (tmp_path / fault.file).parent.mkdir(parents=True)
    (tmp_path / fault.file).write_text(fault.old)
    judged = copy.judge(fault)
    assert judged.outcome == outcome and (judged.by is None) == (code == 0)
    assert (tmp_path / fault.file).read_text() == fault.old
    assert judged.compiled


def test_the_tests_that_judge_are_built_by_cmake() -> None:
    made = (HERE.parent / "cpp" / "CMakeLists.txt").read_text()
    names = [name for tests in CPP_TESTS.values() for name in tests]
    assert all(f" {name} " in made or f" {name})" in made for name in names)


def test_the_list_names_every_place() -> None:
    command = [sys.executable, str(HERE / "run.py"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(FAULTS)


class _NothingBuilt:
    def describe(self, copy: Path) -> None:
        assert (copy / "csrc").is_dir()


def test_a_copy_runs_commands_until_its_end(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", "cpu", _NothingBuilt(), 1, 5.0, perf_counter() + 60)
    assert copy.run([sys.executable, "-c", "raise SystemExit(3)"], 30) == 3
    assert copy.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) is None
    copy.end = perf_counter()
    with pytest.raises(OutOfTime):
        copy.run([sys.executable, "-c", "import time; time.sleep(60)"], 30)
