# SPDX-License-Identifier: Apache-2.0
"""Every measured number and plot of the documentation, from the committed records alone.

A document holds marked blocks, `<!-- report:NAME -->` up to `<!-- /report -->`; what lies between
is the text of the block of that name. `refresh` writes them and draws the plots, `stale` names
what does not fit the records. In Python, where the measured links of the distributed model stand,
the markers are `# report:NAME` and `# /report`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import profile_record, profile_report
from .blocks import BLOCKS as BENCHMARK_BLOCKS
from .client_report import BLOCKS as CLIENT_BLOCKS
from .client_report import ClientRecords
from .results import Results, ResultsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCUMENTS = ("README.md", "docs/*.md", "gvr_topk/distributed/model.py")
IMAGES = "docs/images"
# Every suite that the documentation shows, in the order of its targets.
SUITES = (
    "grid",
    "issue",
    "short",
    "hints",
    "dispatch",
    "adversarial",
    "dtypes",
    "dense",
    "state",
)
_TWO_GPU_TESTS = "benchmarks/results/h200x2-tests.json"
_TRACE = "gvr_topk/data/trace_A_layer6_cut.safetensors"
_BLOCK = re.compile(
    r"(?P<open>^(?:<!--|#) report:(?P<name>[\w-]+)(?: -->)?\n)"
    r"(?P<text>.*?)(?P<close>^(?:<!--|#) /report)",
    re.DOTALL | re.MULTILINE,
)


def record_file(name: str) -> str:
    return f"benchmarks/results/h200-{name}.json"


_DEMO = record_file("demo")


@cache
def _drawing_code(names: tuple[str, ...]) -> bytes:
    folder = Path(__file__).parent
    return b"".join((folder / name).read_bytes() for name in names)


class Records:
    """The data that the documentation is made of, each file loaded once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._suites: dict[str, Results] = {}

    def suite(self, name: str) -> Results:
        """The record of a suite; ResultsError where it is missing or no record."""
        if name not in self._suites:
            self._suites[name] = Results.load(self.root / record_file(name))
        return self._suites[name]

    def suites(self) -> list[Results]:
        return [self.suite(name) for name in SUITES]

    @cached_property
    def demo(self) -> dict[str, Any]:
        return _json(self.root / _DEMO)

    @cached_property
    def tests(self) -> dict[str, Any]:
        return _json(self.root / record_file("tests"))

    @property
    def two_gpu_tests(self) -> dict[str, Any] | None:
        path = self.root / _TWO_GPU_TESTS
        return _json(path) if path.is_file() else None

    @cached_property
    def clients(self) -> ClientRecords:
        return ClientRecords(self.root)

    @cached_property
    def profile(self) -> list[profile_record.Launch]:
        """The profiled launches; none without a record."""
        path = self.root / profile_report.RECORD
        return profile_record.launches(profile_record.load(path)) if path.is_file() else []

    def digest(self, picture: Picture) -> str:
        """sha256 over the bytes of a picture's files and of the code that draws them."""
        digest = hashlib.sha256(_drawing_code(picture.code))
        for source in picture.sources:
            digest.update((self.root / source).read_bytes())
        return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Picture:
    """A figure and the files that it is drawn from, relative to the root."""

    sources: tuple[str, ...]
    draw: Callable[[Records], Figure | None]
    caption: Callable[[Records], str]
    code: tuple[str, ...] = ("plots.py", "figures.py")
    shown: Callable[[Records], bool] = lambda records: True  # False: its record is not there yet


def refresh(root: Path) -> list[Path]:
    """Rewrites blocks and plots; the files that changed."""
    from . import plots

    records = Records(root)
    changed = []
    for path in _documents(root):
        before = path.read_text()
        after = rendered(before, records, path)
        if after != before:
            path.write_text(after)
            changed.append(path)
    for path in _stale_pictures(records):
        picture = PICTURES[path.stem]
        figure = picture.draw(records)
        if figure is None:
            raise ResultsError(f"{', '.join(picture.sources)}: nothing to draw {path.name} from")
        plots.save(figure, path, picture.caption(records), records.digest(picture))
        changed.append(path)
    return changed


def stale(root: Path) -> list[str]:
    """What differs from the records, one line each; empty when all is current."""
    records = Records(root)
    found = []
    for path in _documents(root):
        text = path.read_text()
        for block in _BLOCK.finditer(text):
            if _text(block, records, path) != block["text"]:
                found.append(f"{path.relative_to(root)}: block {block['name']}")
    pictures = (path.relative_to(root) for path in _stale_pictures(records))
    return [*found, *(f"{path}: drawn from other data" for path in pictures)]


def rendered(text: str, records: Records, path: Path) -> str:
    """A document with the text of every block."""
    opened, closed = (
        len(re.findall(f"^(?:<!--|#) {m}", text, re.M)) for m in ("report:", "/report")
    )
    if not opened == closed == len(_BLOCK.findall(text)):
        raise ValueError(
            f"{path}: got {opened} opening and {closed} closing markers that do not pair"
        )
    return _BLOCK.sub(lambda b: b["open"] + _text(b, records, path) + b["close"], text)


def _text(block: re.Match[str], records: Records, path: Path) -> str:
    if block["name"] not in BLOCKS:
        raise ValueError(
            f"{path}: got the block {block['name']!r}, need one of {', '.join(BLOCKS)}"
        )
    return "\n".join(BLOCKS[block["name"]](records)) + "\n"


def _documents(root: Path) -> list[Path]:
    return sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))


def _stale_pictures(records: Records) -> list[Path]:
    """Pictures that are missing or were drawn from other bytes."""
    from PIL import Image

    found = []
    for name, picture in PICTURES.items():
        if not picture.shown(records):
            continue
        path = records.root / IMAGES / f"{name}.png"
        source = None
        if path.is_file():
            with Image.open(path) as image:
                source = image.info.get("Source")
        if source != records.digest(picture):
            found.append(path)
    return found


def _of_suite(suite: str, plot: str) -> Picture:
    def draw(records: Records) -> Figure | None:
        from .plots import PLOTS

        return PLOTS[plot](records.suite(suite))

    return Picture((record_file(suite),), draw, lambda r: r.suite(suite).describe())


def _paper_and_ours(records: Records) -> Figure:
    from . import figures

    return figures.paper_and_ours(records.suite("dispatch"), records.suite("hints"))


def _recorded_row(records: Records) -> Figure:
    from gvr_topk.traces import Trace

    from . import figures

    last = records.demo["steps"][-1]
    scores = Trace.load(records.root / _TRACE).scores(last["step"])
    return figures.row(scores, records.demo["k"], last["survivors"])


def _recorded_decode(records: Records) -> Figure:
    from . import figures

    return figures.decode(records.demo)


def _of_demo(records: Records) -> str:
    return f"{records.demo['trace']}, {records.demo['device_name']}, K = {records.demo['k']}"


def _stalls(records: Records) -> Figure | None:
    from .profile_figure import stalls

    return stalls(records.profile)


PICTURES: dict[str, Picture] = {
    **{
        f"{suite}-{plot}": _of_suite(suite, plot)
        for suite, plot in (
            ("grid", "headline"),
            ("grid", "time-over-n"),
            ("grid", "floor-multiple"),
            ("issue", "time-over-n"),
            ("short", "floor-multiple"),
            ("hints", "hints"),
            ("adversarial", "adversarial"),
            ("dtypes", "dtypes"),
            ("dense", "dense"),
            ("state", "state"),
            ("dispatch", "regret"),
        )
    },
    "paper-and-ours": Picture(
        (record_file("dispatch"), record_file("hints")),
        _paper_and_ours,
        lambda r: r.suite("hints").describe(),
    ),
    "algorithm-row": Picture((_DEMO, _TRACE), _recorded_row, _of_demo),
    "algorithm-decode": Picture((_DEMO,), _recorded_decode, _of_demo),
    profile_report.PICTURE: Picture(
        (profile_report.RECORD,),
        _stalls,
        lambda r: Results.load(r.root / profile_report.RECORD).describe(),
        ("profile_figure.py", "profile_record.py"),
        lambda r: any(launch.activities for launch in r.profile),
    ),
}


def _of_clients(block: Callable[[ClientRecords], list[str]]) -> Callable[[Records], list[str]]:
    return lambda records: block(records.clients)


BLOCKS: dict[str, Callable[[Records], list[str]]] = {
    **BENCHMARK_BLOCKS,
    **{name: _of_clients(block) for name, block in CLIENT_BLOCKS.items()},
    "profile": lambda records: profile_report.why(records.root),
    "profile-ladder": lambda records: profile_report.ladder(records.root),
}
