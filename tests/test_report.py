# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the committed records say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gvr_topk.bench.cli import app
from gvr_topk.bench.report import (
    BLOCKS,
    DOCUMENTS,
    IMAGES,
    PICTURES,
    Records,
    record_file,
    refresh,
    rendered,
    stale,
)

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks/results").is_dir(), reason="the records come with a checkout only"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the report reads and writes."""
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "gvr_topk/data", tmp_path / "gvr_topk/data")
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "gvr_topk/distributed").mkdir()
    shutil.copy(ROOT / "gvr_topk/distributed/model.py", tmp_path / "gvr_topk/distributed")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_committed_documents_and_plots_fit_the_committed_records() -> None:
    assert stale(ROOT) == [], "run: python -m gvr_topk.bench report"


def test_every_block_and_picture_is_used_and_no_other_picture_lies_about() -> None:
    text = "".join(path.read_text() for pattern in DOCUMENTS for path in ROOT.glob(pattern))
    assert [
        name for name in BLOCKS if not re.search(f"^(<!--|#) report:{name}( |$)", text, re.M)
    ] == []
    shown = [name for name, picture in PICTURES.items() if picture.shown(Records(ROOT))]
    assert [name for name in shown if f"images/{name}.png" not in text] == []
    unused = [p.name for p in (ROOT / IMAGES).iterdir() if f"images/{p.name}" not in text]
    assert unused == []


def test_an_edited_number_is_noticed_and_restored(checkout: Path) -> None:
    before = (checkout / "README.md").read_text()
    edit(checkout / "README.md", "| 1 x 64K | ", "| 1 x 64K | 0")
    assert stale(checkout) == ["README.md: block headline"]
    assert refresh(checkout) == [checkout / "README.md"]
    assert (checkout / "README.md").read_text() == before and stale(checkout) == []


def test_a_new_record_changes_text_and_plots(checkout: Path) -> None:
    path = checkout / "benchmarks/results/h200-grid.json"
    record = json.loads(path.read_text())
    for entry in record["cells"]:
        for result in entry["results"]:
            if result["contender"] == "auto":
                result["cold"]["median_us"] = 4.25
    path.write_text(json.dumps(record))
    grid = {name for name, picture in PICTURES.items() if "grid" in picture.sources[0]}
    found = stale(checkout)
    assert {f"{IMAGES}/{name}.png: drawn from other data" for name in grid} < set(found)
    assert not any(f"{name}.png" in " ".join(found) for name in PICTURES.keys() - grid)
    assert refresh(checkout) and stale(checkout) == []
    text = (checkout / "README.md").read_text()
    assert "| 4.2 us |" in text and "in all 60 cells" in text


def test_a_result_that_is_not_exact_has_no_number(checkout: Path) -> None:
    path = checkout / "benchmarks/results/h200-grid.json"
    record = json.loads(path.read_text())
    for entry in record["cells"]:
        for result in entry["results"]:
            if result["contender"] == "torch.topk":
                result["exact"] = False
    path.write_text(json.dumps(record))
    lines = BLOCKS["headline"](Records(checkout))
    assert all(line.split("|")[4:6] == ["  ", "  "] for line in lines[2:])


def test_a_hint_that_pays_is_not_said_to_be_worth_little(checkout: Path) -> None:
    path = checkout / "benchmarks/results/h200-issue.json"
    record = json.loads(path.read_text())
    for factor, verdict in ((0.95, "is worth little here"), (0.8, "does not always pay")):
        for entry in record["cells"]:
            times = {r["contender"]: r["cold"] for r in entry["results"]}
            times["auto"]["median_us"] = factor * times["auto-nohint"]["median_us"]
        path.write_text(json.dumps(record))
        assert verdict in "\n".join(BLOCKS["hint-worth"](Records(checkout)))


@pytest.mark.parametrize("said", [True, False])
def test_the_report_says_how_often_auto_ignores_its_hint_if_the_records_do(
    checkout: Path, said: bool
) -> None:
    for suite in ("grid", "dispatch"):
        path = checkout / record_file(suite)
        record = json.loads(path.read_text())
        for entry in record["cells"]:
            for result in entry["results"]:
                result.pop("plan", None)
                if said and result["contender"] == "auto":
                    hint = "used" if entry["cell"]["rows"] == 512 else "ignored"
                    result["plan"] = {"family": "stream", "ctas_per_row": 1, "hint": hint}
        path.write_text(json.dumps(record))
    text = " ".join(BLOCKS["hint-choice"](Records(checkout)))
    assert ("ignores the hint that it is given in 90 of the 108 cells" in text) == said
    assert ("does not say" in text) != said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- report:grid -->\n", "do not pair"),
        ("<!-- /report -->\n", "do not pair"),
        ("<!-- report:speed -->\n<!-- /report -->\n", "got the block 'speed', need one of"),
    ],
)
def test_a_bad_marker_names_the_document(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rendered(text, Records(ROOT), Path("some.md"))
    assert str(caught.value).startswith("some.md: ")


def test_check_says_what_is_stale_and_changes_nothing(checkout: Path) -> None:
    arguments = ["report", "--root", str(checkout), "--check"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    edit(checkout / "README.md", "* **Public kernels", "* **Some public kernels")
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (1, "README.md: block public-kernels\n")
    assert "Some public kernels" in (checkout / "README.md").read_text()
    (checkout / "benchmarks/results/h200-grid.json").unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "h200-grid.json" in result.output
