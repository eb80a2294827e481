# SPDX-License-Identifier: Apache-2.0
"""What `ncu --csv --page raw` prints: messages, a header, as a rule a row of units, and a row per
profiled kernel. Cells may be as long as they like and go over several lines.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_UNITS = {
    "second": 1e6, "s": 1e6, "msecond": 1e3, "ms": 1e3, "usecond": 1.0, "us": 1.0,
    "nsecond": 1e-3, "ns": 1e-3,
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip
_HEADER = re.compile(r'^\ufeff?"?ID"?,', re.MULTILINE)
_MESSAGE = re.compile(r"^==\w+==.*\n?", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")
_INSTANCE = re.compile(r"(?<![\w.])([A-Z][A-Z0-9_.]*)\"?\s*[:=]\s*(\d[\d,]*)")
_LIMIT = Lock()  # csv has one limit for the whole process


class NcuError(RuntimeError):
    """Counters could not be read; says what to do about it."""


def kernel_rows(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(units, one row per kernel) by column."""
    told = _MESSAGE.sub("", text)
    begin = _HEADER.search(told)
    if begin is None:
        last = " ".join(text.split("\n")[-4:]).strip()
        raise NcuError(f"ncu: no table in what it exported: {last[:200] or 'nothing'}")
    table = told[begin.start() :].removeprefix("\ufeff")
    with _field_limit(len(table)):
        try:
            rows = list(csv.DictReader(io.StringIO(table, newline=""), restval=""))
        except csv.Error as error:
            raise NcuError(f"ncu: the table that it exported cannot be read: {error}") from error
    units = next((row for row in rows[:1] if not row["ID"].strip()), {})
    return units, [row for row in rows if row["ID"].strip().isdecimal()]


@contextmanager
def _field_limit(length: int) -> Iterator[None]:
    with _LIMIT:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, length))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def number(text: str | None, unit: str | None) -> float | int | None:
    """A cell's own value, without those of its instances; None for n/a, nan, nothing."""
    plain = (text or "").removeprefix("(!)").partition("(")[0].replace(",", "").strip()
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain) * _UNITS.get((unit or "").partition("/")[0], 1.0)
    return int(value) if value.is_integer() else round(value, 6)


def volume(text: str | None) -> int | None:
    """Of a shape like "(256, 1, 1)"."""
    sizes = re.findall(r"\d+", text or "")
    volume = 1
    for size in sizes:
        volume *= int(size)
    return volume if sizes else None


def instances(text: str) -> dict[str, int]:
    """Of a metric with its instances by name, as "12 (BAR: 4; LDG: 8)" or without the sum."""
    found: Counter[str] = Counter()
    for name, count in _INSTANCE.findall(text):
        found[name] += int(count.replace(",", ""))
    return dict(found)
