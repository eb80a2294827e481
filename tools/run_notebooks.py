# SPDX-License-Identifier: Apache-2.0
"""Executes notebooks from top to bottom, each in a fresh kernel, and keeps what they show.

    python tools/run_notebooks.py                      # all of notebooks/, written in place
    python tools/run_notebooks.py notebooks/04*.ipynb

An error in a cell, or a notebook of more than 3 minutes, ends with exit code 1 and is not written.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SECONDS = 180


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of this machine; CellExecutionError where a cell fails."""
    # The kernel imports the package of this checkout, whatever is installed.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    notebook = nbformat.read(path, as_version=4)
    began = perf_counter()
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = perf_counter() - began
    if seconds > SECONDS:
        raise CellTimeoutError(f"{path.name}: {seconds:.0f} s in all, need at most {SECONDS} s")
    return _plain(notebook)


def _plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what changes from machine to machine and says nothing."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = re.sub(r"\x1b\[[0-9;]*m", "", output.text)
    return notebook


def main(names: list[str]) -> int:
    paths = [Path(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    failed = 0
    for path in paths:
        began = perf_counter()
        try:
            nbformat.write(execute(path), path)
        except (CellExecutionError, CellTimeoutError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{path.name}: {perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
