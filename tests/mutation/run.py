# SPDX-License-Identifier: Apache-2.0
"""Puts each fault of faults.py into a copy of the sources and sees which test notices it.

    python tests/mutation/run.py --device cpu                       # C++ tests, then pytest
    python tests/mutation/run.py --device cuda --workers 16 --seconds 240 --out FILE
    python tests/mutation/run.py --device emulator                  # faults of the GPU without one
    python tests/mutation/run.py --list                             # is every fault's place found?

Needs the extension that `make build` leaves (rebuild.py), but for the emulator, which runs the CUDA
kernels in a C++ test (tests/cpp/emulator), plainly and then under ThreadSanitizer: it knows neither
launches nor the kernels that sort and compare, so some faults survive it. The copies build and test
on their own, several at a time; the sources here stay as they are. The exit code is 0 only if every
fault found its place, compiled, and was noticed. After --seconds it ends: faults that are left out
then are named, and --resume with the same --out does them.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from fault import Fault
from faults import FAULTS
from rebuild import ROOT, Built, NotBuilt, affected

from gvr_topk.bench import environment
from gvr_topk.bench.process import run_group

SCHEMA = 2
COPIED = ("csrc", "gvr_topk", "tests", "tools", "setup.py", "pyproject.toml", "README.md")
# C++ tests that need no torch.
CPP_TESTS: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu_kernel", "rows", "order", "plan"),
    "cuda": (),
    "emulator": ("cuda_kernels",),
}
# Build folders of the C++ tests, and what they add to a name.
PLAIN, RACES = ("build-cpp", ""), ("build-races", " under ThreadSanitizer")
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")

FUZZ = ("-m", "gvr_topk.fuzz", "--most-failures", "1", "--shrink-seconds", "0", "--seed", "11")
OPS = ("tests/ops/test_topk_cache.py", "tests/ops/test_telemetry.py", "tests/ops/test_windows.py")
STATE = ("tests/hazards/test_state.py", "tests/hazards/test_coverage.py")
# On the GPU a small call costs hardly less than a large one, but shows as much.
ON_GPU = ("--device", "cuda", "--dtype", "fp32", "--most-rows", "48")
ONLY_GPU = ("-k", "cuda and not fp16 and not bf16")
FAMILIES = ("gvr", "resident", "stream", "radix")  # kernels, and what tests call them

# What is asked after the C++ tests, or after the fault's own test: name, seconds, arguments.
COMMANDS: dict[str, list[tuple[str, float, list[str]]]] = {
    "cpu": [
        ("fuzz", 600.0, [*FUZZ, "--device", "cpu", "--most-rows", "16", "--cases", "8000"]),
        (
            "pytest ops, state, coverage",
            600.0,
            [*PYTEST, *OPS, "tests/ops/test_plan.py", *STATE],
        ),
        ("pytest guard pages", 600.0, [*PYTEST, "tests/hazards/test_guard_pages.py"]),
        ("pytest selection", 1200.0, [*PYTEST, "tests/hazards/test_selection.py"]),
    ],
    "cuda": [
        ("fuzz", 60.0, [*FUZZ, *ON_GPU, "--cases", "10000"]),
        (
            "pytest ops, state, coverage",
            150.0,
            [*PYTEST, *ONLY_GPU, *OPS, "tests/ops/test_out.py", *STATE],
        ),
        ("pytest selection", 150.0, [*PYTEST, *ONLY_GPU, "tests/hazards/test_selection.py"]),
    ],
}
_TOOL_SECONDS = 90.0
_LEAST_TIMEOUT = 15.0  # of a C++ test, seconds
_SLOWER = 6.0  # than without the fault: then it has no end


@dataclass
class Outcome:
    name: str
    file: str
    why: str
    device: str
    outcome: str  # caught, survived, misplaced, does not compile, not tested
    by: str | None = None
    seconds: float = 0.0
    compiled: list[str] = field(default_factory=list)  # of the extension; none: C++ tests noticed


class Unusable(RuntimeError):
    """The tests fail without a fault: they would notice any."""


class OutOfTime(Exception):
    """The end of --seconds: what is being asked has no answer."""


class Copy:
    """A copy of the sources with a build of its own, used for one fault after the other."""

    def __init__(
        self,
        folder: Path,
        device: str,
        built: Built | None,  # None: the extension is not asked
        jobs: int,
        timeout: float,  # seconds of one test
        end: float,  # of everything, as perf_counter tells the time
    ) -> None:
        self.folder, self.device, self.built = folder, device, built
        self.jobs, self.timeout, self.end = jobs, timeout, end
        self.usual_seconds: dict[str, float] = {}  # of each C++ test
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copy2(source, target)
        if built is not None:
            built.describe(folder)

    def run(self, command: list[str], timeout: float, **variables: str) -> int | None:
        """The exit code; None where the time was over. What it started ends with it."""
        left = max(0.0, self.end - perf_counter())
        # One process: a test of seconds is not worth workers of its own.
        variables = {"PYTHONPATH": str(self.folder), "PYTEST_ADDOPTS": "", **variables}
        code, _ = run_group(command, min(timeout, left), cwd=self.folder, variables=variables)
        if code is None and left < timeout:
            raise OutOfTime
        return code

    def build_cpp(self, name: str, kind: tuple[str, str] = PLAIN) -> bool:
        build = self.folder / kind[0]
        if not build.is_dir():
            configure = ["cmake", "-S", "tests/cpp", "-B", str(build)]
            configure += [f"-DPython_EXECUTABLE={sys.executable}"]
            configure += [f"-DGVR_CATCH2_INCLUDE={os.environ.get('GVR_CATCH2_INCLUDE', '')}"]
            # Little optimised: the faults are the same and compile in half the time.
            configure += ["-DCMAKE_BUILD_TYPE=Debug"]
            configure += ["-DCMAKE_CXX_FLAGS_DEBUG=-O1 -D_GLIBCXX_ASSERTIONS"]
            configure += [f"-DGVR_SANITIZE={'ON' if kind == RACES else 'OFF'}"]
            if self.run(configure, 300) != 0:
                return False
        make = ["cmake", "--build", str(build), "--parallel", str(self.jobs)]
        return self.run([*make, "--target", f"test_{name}"], 1800) == 0

    def build_extension(self, sources: list[Path]) -> bool:
        """Compiles these sources of the copy, and links them to the objects of the checkout."""
        assert self.built is not None
        commands = [self.built.compile(source, self.folder) for source in sources]
        with ThreadPoolExecutor(self.jobs) as pool:
            codes = list(pool.map(lambda command: self.run(command, 1800), commands))
        if any(code != 0 for code in codes):
            return False
        return self.run(self.built.link(self.folder, sources), 600) == 0

    def judge(self, fault: Fault) -> Outcome:
        """Applies the fault, asks the tests, and takes the fault back."""
        outcome = Outcome(fault.name, fault.file, fault.why, fault.device, "survived")
        began = perf_counter()
        path = self.folder / fault.file
        before = path.read_text()
        path.write_text(before.replace(fault.old, fault.new))
        try:
            noticed = self._ask_all(outcome, fault)
        finally:
            path.write_text(before)
        if noticed is not None:
            outcome.outcome, outcome.by = "caught", noticed
        outcome.seconds = round(perf_counter() - began, 1)
        return outcome

    def _ask_all(self, outcome: Outcome, fault: Fault) -> str | None:
        if self.device == "emulator":
            noticed = self._ask_cpp(outcome)
            if noticed is not None or outcome.outcome != "survived":
                return noticed
            return self._ask_cpp(outcome, RACES)
        if self.device == "cpu" and fault.test is None:
            noticed = self._ask_cpp(outcome)
            if noticed is not None or outcome.outcome != "survived":
                return noticed
        sources = affected(fault.file, self.device)
        outcome.compiled = [str(source) for source in sources]
        if not sources or not self.build_extension(sources):
            outcome.outcome = "does not compile"
            return None
        commands = COMMANDS[self.device]
        if fault.test is not None:
            words = [*PYTEST, *self._only(fault), fault.test]
            commands = [(fault.test, 150.0, words), *commands]
        if fault.tool is None:
            return self._ask(commands, outcome)
        return (
            self._ask(commands[:1], outcome)
            or self._ask_sanitizer(fault)
            or self._ask(commands[1:], outcome)
        )

    def _only(self, fault: Fault) -> tuple[str, ...]:
        """Of a fault's own test: what runs on the device, by the family at fault."""
        if self.device == "cpu":
            return ()
        family = Path(fault.file).stem
        return (ONLY_GPU[0], f"{ONLY_GPU[1]} and {family}") if family in FAMILIES else ONLY_GPU

    def _ask_sanitizer(self, fault: Fault) -> str | None:
        """The tool over the calls of the kernels at fault; only a finding is an answer."""
        only = Path(fault.file).stem if "/kernels/" in fault.file else "gvr"
        record = self.folder / "sanitizer.json"
        record.unlink(missing_ok=True)
        script = ["tests/sanitizer/run.py", "--tool", str(fault.tool), "--only", only]
        script += ["--shares", "1", "--seconds", str(_TOOL_SECONDS), "--out", str(record)]
        self.run([sys.executable, *script], 2 * _TOOL_SECONDS)
        if not record.is_file():
            return None
        [tool] = json.loads(record.read_text())["tools"]
        return fault.tool if tool["findings"] else None

    def _ask_cpp(self, outcome: Outcome, kind: tuple[str, str] = PLAIN) -> str | None:
        # First the test of the file at fault.
        stem = Path(outcome.file).stem
        for name in sorted(CPP_TESTS[self.device], key=lambda name: name != stem):
            if not self.build_cpp(name, kind):
                outcome.outcome = "does not compile"
                return None
            limit = self.timeout
            if kind == PLAIN:
                limit = min(limit, max(_LEAST_TIMEOUT, _SLOWER * self.usual_seconds[name]))
            code = self.run([f"./{kind[0]}/test_{name}"], limit, TSAN_OPTIONS="halt_on_error=1")
            if code != 0:
                return _noticed(f"C++ test {name}{kind[1]}", code)
        return None

    def _ask(
        self, commands: list[tuple[str, float, list[str]]], outcome: Outcome | None = None
    ) -> str | None:
        for name, seconds, command in commands:
            code = self.run([sys.executable, *command], seconds)
            if code is not None and code > 1:
                # Of pytest and the fuzzer: nothing was tested, so nothing was noticed.
                if outcome is None:
                    return f"{name}: exit code {code}"
                outcome.outcome, outcome.by = "not tested", f"{name}: exit code {code}"
                return None
            if code != 0:
                return _noticed(name, code)
        return None

    def baseline(self) -> str | None:
        """Why this copy cannot be used: the C++ tests must pass without a fault."""
        for name in CPP_TESTS[self.device]:
            if not self.build_cpp(name):
                return "the C++ tests do not build"
            began = perf_counter()
            if self.run([f"./build-cpp/test_{name}"], self.timeout) != 0:
                return f"without a fault: C++ test {name}"
            self.usual_seconds[name] = perf_counter() - began
        return None

    def sound(self) -> str | None:
        """The same of what is asked of the extension: one copy asks for all."""
        if not self.build_extension([]):
            return "the extension does not link"
        noticed = self._ask(COMMANDS[self.device][:1])
        return noticed and f"without a fault: {noticed}"


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
    """The outcomes; without those of faults for which no time was left."""
    end = perf_counter() + arguments.seconds
    built = None if arguments.device == "emulator" else Built()
    problems: list[str] = []
    work: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    outcomes: list[Outcome] = []
    # Those that take longest to compile first.
    device = "cuda" if arguments.device == "emulator" else arguments.device
    for fault in sorted(faults, key=lambda fault: -len(affected(fault.file, device))):
        problem = misplaced(fault)
        if problem is None:
            work.put(fault)
        else:
            outcomes.append(
                Outcome(fault.name, fault.file, fault.why, fault.device, "misplaced", problem)
            )
    jobs = max(1, (os.cpu_count() or 1) // arguments.workers)

    def work_off(number: int) -> None:
        copy = Copy(folder / str(number), arguments.device, built, jobs, arguments.timeout, end)
        problem = copy.baseline()
        if problem is None and number == 0 and built is not None:
            problem = copy.sound()
        if problem is not None:
            problems.append(problem)
        while not problems:
            try:
                fault = work.get_nowait()
            except queue.Empty:
                return
            outcome = copy.judge(fault)
            outcomes.append(outcome)
            report(list(outcomes))
            by = f" by {outcome.by}" if outcome.by else ""
            print(f"{outcome.outcome:9} {fault.name}{by} ({outcome.seconds} s)", flush=True)

    def worker(number: int) -> None:
        with suppress(OutOfTime):
            work_off(number)

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(worker, range(arguments.workers)))
    if problems:
        raise Unusable("; ".join(problems))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda", "emulator"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="copies at work at once")
    parser.add_argument("--timeout", type=float, default=90, help="seconds of one C++ test")
    parser.add_argument("--only", action="append", help="a part of a fault's name, repeatable")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the end of all of it")
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
        if (arguments.list or (fault.device == "cpu") == (arguments.device == "cpu"))
        and (not arguments.only or any(part in fault.name for part in arguments.only))
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    left_out = [fault.name for fault in chosen if not fault.runs_with(capability)]
    if left_out and not arguments.list:
        chosen = [fault for fault in chosen if fault.runs_with(capability)]
        print(f"{capability} alone here, left out: {', '.join(left_out)}")
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
            done = {outcome.name for outcome in outcomes}
            left_out = [fault.name for fault in chosen if fault.name not in done]
            record = evidence(outcomes, left_out, arguments.device, perf_counter() - began)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="gvr-mutation-") as folder:
        try:
            outcomes = run_all(chosen, arguments, Path(folder), report)
        except (NotBuilt, Unusable) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    report(outcomes)
    no_time = len(chosen) - len(outcomes)
    outcomes = [*kept, *outcomes]
    totals = Counter(outcome.outcome for outcome in outcomes)
    print(f"{len(outcomes)} faults: {dict(totals)}; no time for {no_time}")
    return 0 if set(totals) == {"caught"} and not no_time else 1


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


def evidence(
    outcomes: list[Outcome], left_out: list[str], device: str, seconds: float
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "mutation-evidence",
        "environment": environment.describe(),
        "device": device,
        "built": "on this machine: the C++ test of the CUDA kernels on the emulator"
        if device == "emulator"
        else "on this machine: the objects that include the fault, linked to those of the "
        "checkout" + (" (CUDA: the fp32 instances)" if device == "cuda" else ""),
        "complete": not left_out,
        "left_out": left_out,
        "seconds": round(seconds, 1),
        "totals": dict(Counter(outcome.outcome for outcome in outcomes)),
        "faults": [asdict(outcome) for outcome in sorted(outcomes, key=lambda o: o.name)],
    }


if __name__ == "__main__":
    sys.exit(main())
