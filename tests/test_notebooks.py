# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom, and what is committed is what a run showed.

Running them takes minutes: `pytest -m notebooks`, or `make notebooks`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    return [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_a_notebook_is_valid(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, as_version=4))


@every_notebook
def test_a_notebook_is_committed_as_a_whole_run_left_it(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert outputs, "a notebook without anything to see; run: make notebooks"


@every_notebook
def test_a_notebook_shows_no_folder_of_the_machine_and_no_warning(path: Path) -> None:
    for cell in code_cells(path):
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", "") or data.get("text/plain", ""))
            assert not re.search(r"/(home|root|work|tmp|Users)/", text), text
            assert output.get("name") != "stderr", text


@every_notebook
@pytest.mark.notebooks
def test_a_notebook_runs_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sys.modules.pop("run_notebooks", None)
    from run_notebooks import execute

    execute(path)


@pytest.mark.notebooks
def test_a_failing_cell_and_a_slow_notebook_fail_and_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import run_notebooks

    monkeypatch.setattr(run_notebooks, "SECONDS", 20)
    for name, source in (("bad", "1 / 0"), ("slow", "import time; time.sleep(60)")):
        path = tmp_path / f"{name}.ipynb"
        cell = nbformat.v4.new_code_cell(source)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        before = path.read_text()
        assert run_notebooks.main([str(path)]) == 1
        assert path.read_text() == before
