# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What the examples of these pages need, which this test does not set up.
NEEDS = {"integration": "a model", "scaling": "a process group", "traces": "a recorded trace"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.stem not in NEEDS],
    ids=lambda page: page.stem,
)
def test_python_examples_run_from_the_top_of_the_page(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if page.name == "README.md" and "scores.sort(" in block:
            continue  # the definition at its top: no example, it has no scores yet
        exec(compile(block, str(page), "exec"), names)


@every_page
def test_pictures_and_links_of_a_page_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        # Links between pages of the site are checked by its strict build.
        if "://" not in target and not (page.parent.name == "docs" and target.endswith(".md")):
            assert (page.parent / target).exists(), target


@every_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = r"`((?:csrc|gvr_topk|tests|tools|benchmarks|notebooks)/[\w./-]+)`"
    for path in re.findall(named, page.read_text()):
        assert (ROOT / path).exists(), path


@every_page
def test_commands_that_a_page_shows_are_known(page: Path) -> None:
    import typer

    from gvr_topk.cli import app

    known: Any = typer.main.get_command(app)
    for words in re.findall(r"^python -m gvr_topk([. ][^#`\n]*)", page.read_text(), re.MULTILINE):
        if words.startswith(".bench.distributed"):
            continue  # a program of its own, under torchrun
        names = re.findall(r"[a-z][\w-]*|-\S*|\S+", words.replace(".bench", " bench"))
        command = known
        for name in names:
            if not hasattr(command, "commands"):
                break
            assert name in command.commands, f"{page.name}: python -m gvr_topk{words}"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"--[a-z-]+[a-z]", words.partition(" -- ")[0]):
            assert option in options, f"{page.name}: python -m gvr_topk{words}"


def test_every_command_and_its_help_name_examples_that_exist() -> None:
    import typer

    from gvr_topk.cli import app

    def leaves(command: Any, path: str) -> list[tuple[str, str]]:
        if not hasattr(command, "commands"):
            return [(path, command.help or "")]
        return [leaf for n, c in command.commands.items() for leaf in leaves(c, f"{path} {n}")]

    for path, text in leaves(typer.main.get_command(app), "python -m gvr_topk"):
        assert path in text, f"{path} --help has no example"


def test_aligned_columns_of_docstrings_become_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from aligned_docstrings import with_definitions

    prose = "Only prose.\nTwo lines.\n\n    >>> code()  # kept as it is"
    assert with_definitions(prose) == prose
    columns = "a, b   one\n       two\nword   x  first\n          more\n       Prose.\n\nAfter."
    lines = [line.rstrip() for line in with_definitions(columns).split("\n") if line.strip()]
    assert lines == [
        "`a, b`",
        ":   one",
        "    two",
        "`word`",
        ":   `x`",
        "    :   first",
        "        more",
        "    Prose.",
        "After.",
    ]
