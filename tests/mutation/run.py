# SPDX-License-Identifier: Apache-2.0
"""Puts each fault of faults.py into a copy of the sources and sees which test notices it.

    python tests/mutation/run.py --device cpu                    # C++ tests, then pytest
    python tests/mutation/run.py --device cuda --workers 4       # on a machine with a GPU
    python tests/mutation/run.py --list                          # is every fault's place found?

The copies build and test on their own, several at a time; the sources here stay as they are. The
exit code is 0 only if every fault found its place, compiled, and was noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from faults import FAULTS, Fault

from gvr_topk.bench import environment

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
COPIED = ("csrc", "gvr_topk", "tests", "tools", "setup.py", "pyproject.toml", "README.md")
CPP_TESTS = ("cpu_kernel", "rows", "order", "plan")  # those that need no torch
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")

# What follows for a fault that the C++ tests overlook: name, seconds, arguments of Python.
CPU_COMMANDS = [
    (
        "fuzz",
        600.0,
        ["-m", "gvr_topk.fuzz", "--device", "cpu", "--cases", "8000", "--most-failures", "1"],
    ),
    (
        "pytest ops, state, coverage",
        600.0,
        [
            *PYTEST,
            *("tests/ops/test_topk_cache.py", "tests/ops/test_telemetry.py"),
            *("tests/ops/test_windows.py", "tests/ops/test_plan.py"),
            *("tests/hazards/test_state.py", "tests/hazards/test_coverage.py"),
        ],
    ),
    ("pytest guard pages", 600.0, [*PYTEST, "tests/hazards/test_guard_pages.py"]),
    ("pytest selection", 1200.0, [*PYTEST, "tests/hazards/test_selection.py"]),
]
# Copies keep the 16-bit instances of the unchanged sources, so only fp32 shows a fault.
CUDA_COMMANDS = [
    (
        "fuzz",
        60.0,
        [
            *("-m", "gvr_topk.fuzz", "--device", "cuda", "--dtype", "fp32"),
            *("--cases", "100000", "--most-failures", "1", "--seed", "11"),
        ],
    ),
    (
        "pytest ops, state, coverage",
        600.0,
        [
            *(*PYTEST, "-k", "cuda and not fp16 and not bf16"),
            *("tests/ops/test_topk_cache.py", "tests/ops/test_telemetry.py"),
            *("tests/ops/test_windows.py", "tests/ops/test_out.py"),
            *("tests/hazards/test_state.py", "tests/hazards/test_coverage.py"),
        ],
    ),
    (
        "pytest selection",
        300.0,
        [*PYTEST, "-k", "cuda and not fp16 and not bf16", "tests/hazards/test_selection.py"],
    ),
]


@dataclass
class Outcome:
    name: str
    file: str
    why: str
    device: str
    outcome: str  # caught, survived, misplaced, does not compile
    by: str | None = None
    seconds: float = 0.0


class Copy:
    """A copy of the sources with a build of its own, used for one fault after the other."""

    def __init__(self, folder: Path, device: str, jobs: int, timeout: float) -> None:
        self.folder, self.device, self.jobs, self.timeout = folder, device, jobs, timeout
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copy2(source, target)
        self.extension_built = False

    def run(self, command: list[str], timeout: float, **variables: str) -> int | None:
        """The exit code; None where the time was over. What it started ends with it."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(self.folder), **variables},
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    def build_cpp(self, name: str) -> bool:
        build = self.folder / "build-cpp"
        if not build.is_dir():
            configure = ["cmake", "-S", "tests/cpp", "-B", str(build)]
            configure += [f"-DPython_EXECUTABLE={sys.executable}"]
            configure += [f"-DGVR_CATCH2_INCLUDE={os.environ.get('GVR_CATCH2_INCLUDE', '')}"]
            # Little optimised: the faults are the same and compile in half the time.
            configure += ["-DCMAKE_BUILD_TYPE=Debug"]
            configure += ["-DCMAKE_CXX_FLAGS_DEBUG=-O1 -D_GLIBCXX_ASSERTIONS"]
            if self.run(configure, 300) != 0:
                return False
        make = ["cmake", "--build", str(build), "--parallel", str(self.jobs)]
        return self.run([*make, "--target", f"test_{name}"], 1800) == 0

    def build_extension(self) -> bool:
        """Compiles what a fault may have changed: on the GPU its fp32 instances alone."""
        if self.device == "cuda" and self.extension_built:
            for instance in self.folder.glob("build/**/instances/*float32.o"):
                instance.unlink()
        for library in [
            *self.folder.glob("gvr_topk/*.so"),
            *self.folder.glob("build/lib*/**/*.so"),
        ]:
            library.unlink()
        variables = {"MAX_JOBS": str(self.jobs)}
        if self.device == "cpu":
            variables["GVR_CPU_ONLY"] = "1"
        else:
            variables["GVR_FORCE_CUDA"] = "1"
            variables["TORCH_CUDA_ARCH_LIST"] = _architectures()
        setup = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = self.run(setup, 3000, **variables) == 0
        self.extension_built = self.extension_built or built
        return built

    def judge(self, fault: Fault) -> Outcome:
        """Applies the fault, asks the tests, and takes the fault back."""
        outcome = Outcome(fault.name, fault.file, fault.why, fault.device, "survived")
        began = perf_counter()
        path = self.folder / fault.file
        before, times = path.read_text(), path.stat()
        self._replace(path, before.replace(fault.old, fault.new), times)
        try:
            noticed = self._cpu(outcome) if self.device == "cpu" else self._cuda(outcome, fault)
        finally:
            self._replace(path, before, times)
        if noticed is not None:
            outcome.outcome, outcome.by = "caught", noticed
        outcome.seconds = round(perf_counter() - began, 1)
        return outcome

    def _replace(self, path: Path, text: str, times: os.stat_result) -> None:
        path.write_text(text)
        if self.device == "cuda":
            # Unchanged to ninja, which then compiles only the objects that are taken away.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            for made in self.folder.glob(f"build/**/{path.stem}.o"):
                made.unlink()

    def _cpu(self, outcome: Outcome) -> str | None:
        # First the test of the file at fault.
        stem = Path(outcome.file).stem
        for name in sorted(CPP_TESTS, key=lambda name: name != stem):
            if not self.build_cpp(name):
                outcome.outcome = "does not compile"
                return None
            code = self.run([f"./build-cpp/test_{name}"], self.timeout)
            if code != 0:
                return _noticed(f"C++ test {name}", code)
        if not self.build_extension():
            outcome.outcome = "does not compile"
            return None
        return self._ask(CPU_COMMANDS)

    def _cuda(self, outcome: Outcome, fault: Fault) -> str | None:
        if not self.build_extension():
            outcome.outcome = "does not compile"
            return None
        noticed = self._ask(CUDA_COMMANDS)
        if noticed is None and fault.tool is not None:
            sanitizer = ["tests/sanitizer/run.py", "--tool", fault.tool]
            noticed = self._ask([(fault.tool, 300.0, sanitizer)])
        return noticed

    def _ask(self, commands: list[tuple[str, float, list[str]]]) -> str | None:
        for name, seconds, command in commands:
            code = self.run([sys.executable, *command], seconds)
            if code != 0:
                return _noticed(name, code)
        return None

    def baseline(self) -> str | None:
        """Why this copy cannot be used: the tests must pass without a fault."""
        if self.device == "cuda":
            if not self.build_extension():
                return "the extension does not build"
            noticed = self._ask(CUDA_COMMANDS[:1])
            return noticed and f"without a fault: {noticed}"
        for name in CPP_TESTS:
            if not self.build_cpp(name):
                return "the C++ tests do not build"
            if self.run([f"./build-cpp/test_{name}"], self.timeout) != 0:
                return f"without a fault: C++ test {name}"
        return None


def _architectures() -> str:
    """Those that are asked for, or those of this machine's GPUs."""
    tool = [sys.executable, str(ROOT / "tools" / "gpu_architectures.py")]
    return (
        os.environ.get("TORCH_CUDA_ARCH_LIST")
        or subprocess.run(tool, capture_output=True, text=True, check=True).stdout.strip()
    )


def _noticed(name: str, code: int | None) -> str:
    if code is None:
        return f"{name}: no end"
    return f"{name}: signal {-code}" if code < 0 else name


def misplaced(fault: Fault) -> str | None:
    path = ROOT / fault.file
    found = path.read_text().count(fault.old) if path.is_file() else 0
    return None if found == 1 else f"its text occurs {found} times in {fault.file}"


def run_all(
    faults: list[Fault],
    arguments: argparse.Namespace,
    folder: Path,
    report: Callable[[list[Outcome]], None],
) -> list[Outcome]:
    work: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    outcomes: list[Outcome] = []
    for fault in faults:
        problem = misplaced(fault)
        if problem is None:
            work.put(fault)
        else:
            outcomes.append(
                Outcome(fault.name, fault.file, fault.why, fault.device, "misplaced", problem)
            )
    jobs = max(1, (os.cpu_count() or 1) // arguments.workers)

    def worker(number: int) -> None:
        copy = Copy(folder / str(number), arguments.device, jobs, arguments.timeout)
        problem = copy.baseline()
        if problem is not None:
            raise RuntimeError(problem)
        while True:
            try:
                fault = work.get_nowait()
            except queue.Empty:
                return
            outcome = copy.judge(fault)
            outcomes.append(outcome)
            report(list(outcomes))
            by = f" by {outcome.by}" if outcome.by else ""
            print(f"{outcome.outcome:9} {fault.name}{by} ({outcome.seconds} s)", flush=True)

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(worker, range(arguments.workers)))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="copies at work at once")
    parser.add_argument("--timeout", type=float, default=90, help="seconds of one C++ test")
    parser.add_argument("--only", action="append", help="a part of a fault's name, repeatable")
    parser.add_argument("--part", metavar="I/N", help="every N-th fault, beginning with the I-th")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument(
        "--resume", action="store_true", help="keep what --out says of the same sources"
    )
    parser.add_argument("--list", action="store_true", help="name the faults and their places")
    arguments = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if (arguments.list or fault.device == arguments.device)
        and (not arguments.only or any(part in fault.name for part in arguments.only))
    ]
    if torch.backends.cpu.get_cpu_capability() != "AVX512" and not arguments.list:
        left_out = [fault.name for fault in chosen if fault.needs_avx512]
        chosen = [fault for fault in chosen if not fault.needs_avx512]
        print(f"no AVX-512 here, left out: {', '.join(left_out) or 'none'}")
    if arguments.list:
        for fault in chosen:
            print(f"{fault.device:4} {fault.name}: {misplaced(fault) or fault.file}")
        return 1 if any(misplaced(fault) for fault in chosen) else 0
    if arguments.part:
        which, parts = map(int, arguments.part.split("/"))
        chosen = chosen[which - 1 :: parts]
    kept = earlier(arguments.out, chosen) if arguments.resume else []
    chosen = [fault for fault in chosen if fault.name not in {outcome.name for outcome in kept}]
    began = perf_counter()

    def report(outcomes: list[Outcome]) -> None:
        outcomes = [*kept, *outcomes]
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            record = evidence(outcomes, arguments.device, perf_counter() - began)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="gvr-mutation-") as folder:
        outcomes = run_all(chosen, arguments, Path(folder), report)
    report(outcomes)
    outcomes = [*kept, *outcomes]
    totals = Counter(outcome.outcome for outcome in outcomes)
    print(f"{len(outcomes)} faults: {dict(totals)}")
    return 0 if set(totals) == {"caught"} else 1


def earlier(path: Path | None, faults: list[Fault]) -> list[Outcome]:
    """Faults that a record of the same sources says were caught."""
    if path is None or not path.is_file():
        return []
    record = json.loads(path.read_text())
    if record["environment"]["source_sha256"] != environment.source_hash():
        return []
    same = {(fault.name, fault.file, fault.why, fault.device) for fault in faults}
    outcomes = [Outcome(**entry) for entry in record["faults"]]
    return [
        outcome
        for outcome in outcomes
        if outcome.outcome == "caught"
        and (outcome.name, outcome.file, outcome.why, outcome.device) in same
    ]


def evidence(outcomes: list[Outcome], device: str, seconds: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "mutation-evidence",
        "environment": environment.describe(),
        "device": device,
        "seconds": round(seconds, 1),
        "totals": dict(Counter(outcome.outcome for outcome in outcomes)),
        "faults": [asdict(outcome) for outcome in sorted(outcomes, key=lambda o: o.name)],
    }


if __name__ == "__main__":
    sys.exit(main())
