# SPDX-License-Identifier: Apache-2.0
"""Telemetry names mirror the header that defines them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gvr_topk import stats
from gvr_topk.stats import COLUMNS, RowStats, Stats

PARAMS_H = Path(__file__).parents[1] / "csrc" / "common" / "params.h"


def header_enum(declaration: str, prefix: str) -> dict[str, int]:
    """{snake_case name: value} of one enum in params.h."""
    body = re.search(rf"{declaration}[^{{]*{{(.*?)}};", PARAMS_H.read_text(), re.DOTALL)
    assert body is not None
    entries = re.findall(rf"^\s*{prefix}(\w+) = (\d+),", body.group(1), re.MULTILINE)
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): int(value) for name, value in entries}


def test_columns_are_those_of_the_header() -> None:
    columns = header_enum("enum StatColumn", "kStat")
    assert columns.pop("columns") == len(COLUMNS)
    assert {name: number for number, name in enumerate(COLUMNS)} == columns


def test_paths_are_those_of_the_header() -> None:
    assert {path.label: path.value for path in stats.Path} == header_enum("enum class Path", "k")


def sample() -> Stats:
    return Stats(torch.tensor([[3, 1, 900, 64, 40, 0, 1, 2], [1, 1, 5, 0, 0, 0, 0, 0]]).int())


def test_columns_and_rows_by_name() -> None:
    s = sample()
    assert [getattr(s, name).tolist() for name in COLUMNS] == s.tensor.T.tolist()
    assert s.path_names == ["stream", "short"]
    assert s[0] == RowStats(3, 1, 900, 64, 40, 0, 1, 2)
    assert [row.path_name for row in s] == s.path_names
    assert (len(s), repr(s)) == (2, "Stats(rows=2, stream=1, short=1)")


def test_columns_are_views_of_the_tensor() -> None:
    s = sample()
    s.passes.fill_(7)
    assert s.tensor[:, 1].tolist() == [7, 7]


def test_table_shows_every_column_and_says_when_rows_are_left_out() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(sample().table(title="two rows", max_rows=1))
    text = capture.get()
    assert all(word in text for name in COLUMNS for word in name.split("_"))
    assert max(map(len, text.splitlines())) <= 80
    assert "stream" in text and "short" not in text and "first 1 of 2 rows" in text


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"stats: got shape \[2, 3\], need \[rows, 8\]"):
        Stats(torch.zeros(2, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="name: got 'speed', need one of path"):
        sample().column("speed")
