# SPDX-License-Identifier: Apache-2.0
"""Tables and paragraphs as the documents have them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)]


def paragraph(text: str, indent: str = "", width: int = 120) -> list[str]:
    """Lines as long as those of the documents; `indent` continues a list item."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
