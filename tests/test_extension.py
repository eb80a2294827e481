# SPDX-License-Identifier: Apache-2.0
"""An extension that does not fit is one ImportError with the remedy, and `env` describes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gvr_topk import __version__, _extension
from gvr_topk._extension import build_info, mismatches
from gvr_topk.env import collect, installed_bytes

ROOT = Path(__file__).parents[1]
BUILT = build_info()
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
REMEDY = "pip install --no-build-isolation ."


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package whose record a test may spoil; the library itself is linked."""
    copy = tmp_path / "gvr_topk"
    shutil.copytree(ROOT / "gvr_topk", copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in (ROOT / "gvr_topk").glob("*.so"):
        os.symlink(library, copy / library.name)
    return copy


# What a user of this package sees, in one process: each costs the import of torch.
SESSION = """
import contextlib, io, json, sys
if "--without-torch" in sys.argv:
    sys.modules["torch"] = None
import gvr_topk
from gvr_topk.cli import main
seen = {}
try:
    gvr_topk.topk
except ImportError as error:
    seen["use"] = str(error)
for name in ("env", "demo"):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = main([name])
    seen[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
print(json.dumps(seen))
"""


def session(package: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *arguments],
        capture_output=True,
        text=True,
        cwd=package.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(seen: dict[str, Any], message: str) -> None:
    """The package imports; its use and its demo say why not; env works and has the remedy."""
    assert message in seen["use"] and REMEDY in seen["use"] and "gvr_topk env" in seen["use"]
    assert seen["demo"]["code"] == 2 and seen["demo"]["err"].count("\n") == 1
    assert seen["demo"]["err"].startswith("error: ") and message in seen["demo"]["err"]
    assert seen["env"]["code"] == 0 and not seen["env"]["err"]
    assert "\nproblem " in seen["env"]["out"]


def test_an_extension_for_another_torch_is_one_error_with_the_remedy(package: Path) -> None:
    (package / "_build.json").write_text(json.dumps({**BUILT, "torch": "2.10.3+cu130"}))
    message = f"it was built for torch 2.10.3+cu130, running is {torch.__version__}"
    seen = session(package)
    check(seen, message)
    assert message in seen["env"]["out"] and REMEDY in seen["env"]["out"]


def test_a_package_that_was_never_built_says_so(package: Path) -> None:
    (package / "_build.json").unlink()
    check(session(package), "the extension is not built")


def test_a_broken_library_is_named(package: Path) -> None:
    [library] = package.glob("*.so")
    library.unlink()
    library.write_bytes(b"no library")
    check(session(package), "the extension does not load")


def test_a_library_that_was_cut_short_is_an_error_and_no_crash(package: Path) -> None:
    [library] = package.glob("*.so")
    whole = library.read_bytes()
    assert _extension.cut_short(library) == ""
    library.unlink()
    for size in (30, len(whole) // 2, len(whole) - 1):
        library.write_bytes(whole[:size])
        assert f"ends after {size} " in _extension.cut_short(library)
    library.write_bytes(whole[: len(whole) // 2])
    check(session(package), "the extension is damaged")


def test_a_missing_torch_is_named(package: Path) -> None:
    seen = session(package, "--without-torch")
    assert seen["use"].startswith("gvr_topk: torch does not import") and REMEDY in seen["use"]
    assert seen["env"]["code"] == 0 and "install torch >= 2.11" in seen["env"]["out"]


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({}, []),
        ({"torch": torch.__version__.split("+")[0] + "+other"}, []),
        ({"torch": "3.11.0"}, [f"it was built for torch 3.11.0, running is {torch.__version__}"]),
        ({"python": "3.9"}, [f"it was built for Python 3.9, running is {PYTHON}"]),
        ({"cuda": None}, []),
        ({"cuda": "11.8"}, ["it was built for CUDA 11.8, this torch is"]),
        ({"python": "3.9", "torch": "3.1.0"}, ["Python 3.9", "torch 3.1.0"]),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], messages: list[str]) -> None:
    found = mismatches({**BUILT, **changes})
    assert len(found) == len(messages)
    assert all(message in line for message, line in zip(messages, found, strict=True))


def test_a_cuda_extension_beside_a_cpu_torch_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = mismatches({**BUILT, "cuda": "13.0"})
    assert found == ["it was built for CUDA 13.0, this torch is a CPU build"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"torch": "2.11.0"}'])
def test_a_damaged_record_is_an_import_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_build.json"
    path.write_text(text)
    monkeypatch.setattr(_extension, "RECORD", path)
    with pytest.raises(ImportError, match=r"_build\.json is damaged .*Rebuild"):
        build_info()


def test_this_build_fits() -> None:
    assert mismatches(BUILT) == [] and BUILT["torch"].startswith(torch.__version__[:4])
    assert collect()["extension"]["loaded"] is True


def test_installed_size_leaves_out_byte_code(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(bytes(100))
    (tmp_path / "a.py").write_bytes(bytes(7))
    assert installed_bytes(tmp_path) == 7


def test_the_version_stands_in_one_place() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "gvr_topk._version.__version__" }' in pyproject
    assert not re.search(r"^version *= *\"", pyproject, re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
