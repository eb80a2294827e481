# SPDX-License-Identifier: Apache-2.0
"""Analyses: rows whose answer is known by construction, and figures that are complete."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

pandas = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from gvr_topk import analysis  # noqa: E402
from gvr_topk.analysis import plots  # noqa: E402
from gvr_topk.reference import topk_reference  # noqa: E402
from gvr_topk.traces import (  # noqa: E402
    Row,
    SynthSpec,
    Trace,
    TraceError,
    packaged_trace,
    rope_frequencies,
    synthesise,
)

FREQUENCIES = rope_frequencies(16, base=1e6)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthesise(SynthSpec(keys=8192, steps=12, overlap=0.6, k=512))


@pytest.fixture(scope="module")
def rows(trace: Trace) -> list[Row]:
    return list(trace.rows())


def row(winners: list[int], step: int, *, n: int = 100, first_key: int = 0, layer: int = 0) -> Row:
    """Scores whose best are `winners` (positions in the context), the first one best."""
    scores = torch.arange(n).flip(0).float() / n
    for rank, winner in enumerate(winners):
        scores[winner - first_key] = 10.0 + len(winners) - rank
    return Row(scores, first_key, layer, 0, 0, step, None)


def test_overlap_is_a_share_of_positions_in_the_context(device: str) -> None:
    """The second row's window begins one key later: columns move, positions do not."""
    first = row([10, 20, 30, 40], 0)
    second = row([10, 20, 30, 50], 1, first_key=1)
    third = row([10, 60, 70, 80], 2)
    given = [r._replace(scores=r.scores.to(device)) for r in (first, second, third)]
    found = analysis.overlap(given, k=4, lags=(1, 2))
    assert list(zip(found["step"], found["lag"], found["overlap"], strict=True)) == [
        (1, 1, 0.75),
        (2, 1, 0.25),
        (2, 2, 0.25),
    ]
    assert (found["chance"] == 0.04).all()


def test_overlap_follows_each_sequence_by_its_own_steps() -> None:
    """Two layers in turns, and a step that was not recorded: no overlap across either."""
    source = [
        row([1, 2], 0, layer=0),
        row([51, 52], 0, layer=1),
        row([1, 3], 1, layer=0),
        row([51, 52], 1, layer=1),
        row([1, 3], 3, layer=0),
    ]
    found = analysis.overlap(source, k=2)
    assert found[["layer", "step", "overlap"]].values.tolist() == [[0, 1, 0.5], [1, 1, 1.0]]
    assert analysis.overlap(source, k=2, lags=2)[["layer", "step"]].values.tolist() == [[0, 3]]


def test_overlap_of_a_trace_is_that_of_the_exact_answers(trace: Trace) -> None:
    found = analysis.overlap(trace, k=(100, 512), n=(1000, 4096, 10**6))
    assert sorted(set(found["n"])) == [1000, 4096]  # no row has a million scores
    assert len(found) == 11 * 2 * 2
    for n, k in ((1000, 100), (4096, 512)):
        answers = [
            topk_reference(trace.scores(s, n), k)[1] + trace.window(s, n).start
            for s in range(trace.steps)
        ]
        expected = [torch.isin(b, a).float().mean().item() for a, b in pairwise(answers)]
        part = found[(found["n"] == n) & (found["k"] == k)]
        assert part["overlap"].tolist() == expected


def test_answers_as_long_as_the_row_are_left_out() -> None:
    assert len(analysis.overlap([row([1], 0), row([1], 1)], k=100)) == 0
    assert list(analysis.overlap([], k=1).columns)[-3:] == ["lag", "overlap", "chance"]


def test_hint_offsets_find_the_shift_of_winners_that_keep_their_distance() -> None:
    moving = [row([10 + s, 30 + s, 50 + s], s) for s in range(4)]
    staying = [row([10, 30, 50], s) for s in range(4)]
    for source, best in ((moving, 1), (staying, 0)):
        means = analysis.hint_offsets(source, k=3).groupby("offset")["overlap"].mean()
        assert means[best] == 1.0 and means.drop(best).max() == 0.0


def test_hint_quantiles_are_ranks_in_the_whole_row() -> None:
    before = row([0, 1, 2, 3], 0)
    scores = torch.zeros(100)
    scores[:4] = torch.tensor([9.0, 7.0, 5.0, 3.0])
    scores[10:30] = 4.0  # between the third and the fourth hinted score
    now = Row(scores, 0, 0, 0, 0, 1, None)
    found = analysis.hint_quantiles([before, now], k=4, quantiles=(0.1, 0.5, 1.0))
    assert found[["quantile", "rank"]].values.tolist() == [[0.1, 1], [0.5, 3], [1.0, 24]]
    assert (found["overlap"] == 0.75).all()
    with pytest.raises(ValueError, match="quantiles: got"):
        analysis.hint_quantiles([], quantiles=(0.0,))


def test_entering_keys_are_counted_once_by_their_origin() -> None:
    before = row([10, 20, 30, 40], 0)
    now = row([10, 22, 70, 98], 1)  # one stays, a neighbour, one from elsewhere, a recent one
    found = analysis.entering([before, now], k=4, recent=5, near=2).iloc[0]
    assert found["entered"] == 0.75
    assert (found["recent"], found["neighbours"], found["elsewhere"]) == (0.25, 0.25, 0.25)
    # Of the 95 keys before the recent 5, 4 were winners, 16 of the others lie beside one.
    assert found["neighbours_chance"] == pytest.approx(16 / 91)


def test_row_statistics_of_known_rows() -> None:
    scores = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    found = analysis.row_statistics([Row(scores, 0, 0, 0, 0, 0, None)]).iloc[0]
    assert (found["mean"], found["zeros"], found["repeated"]) == (0.0, 0.5, 1.0)
    assert found["deviation"] == pytest.approx(0.5**0.5)
    assert found["skewness"] == 0.0
    assert found["kurtosis"] == pytest.approx(2.0 - 3.0)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found = analysis.row_statistics([Row(normal, 0, 0, 0, 0, 0, None)], n=150_000).iloc[0]
    assert abs(found["kurtosis"]) < 0.1 and found["n"] == 150_000


def test_boundary_ties_count_what_equals_the_kth_score() -> None:
    scores = torch.tensor([3.0, 2.0, 2.0 + 2**-9, 2.0, 1.0])
    found = analysis.boundary_ties([Row(scores, 0, 0, 0, 0, 0, None)], k=(1, 3, 9))
    assert found[["k", "ties_fp32", "ties_bf16", "ties_fp16"]].values.tolist() == [
        [1, 1, 1, 1],
        [3, 2, 3, 2],
    ]


def test_survivors_are_the_telemetry_of_each_algorithm(rows: list[Row]) -> None:
    found = analysis.survivors(rows, k=(100, 512), n=4096, check=True)
    assert len(found) == 12 * 2 * 3
    assert found["exact"].all()
    assert set(found["algorithm"]) == {"gvr", "stream", "radix"}
    assert (found["survivors"] >= found["k"]).all() and (found["passes"] >= 1).all()
    assert found[found["algorithm"] == "stream"]["passes"].median() == 1


def test_a_trace_of_distances_alone_is_explained_by_them() -> None:
    """Scores that are a function of the distance: position predicts everything."""
    profile = torch.linspace(3, 0, 200).square() + torch.linspace(0, 2, 200)
    source = [Row(profile.flip(0).contiguous(), step, 0, 0, 0, step, None) for step in range(6)]
    found = analysis.position_prior(source, k=20).groupby("predictor")["explained"].mean()
    assert found["profile"] > 0.8 and found["chance"] == pytest.approx(0.1)
    shares = analysis.variance_shares(source, 200).set_index("part")["share"]
    assert shares["distance"] > 0.95  # the rest is the width of the bins of distances


def test_a_trace_of_fixed_keys_is_explained_by_the_previous_step_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(1000, generator=generator)
    source = [Row(content[s : s + 900], s, 0, 0, 0, s, None) for s in range(6)]
    found = analysis.position_prior(source, k=90).groupby("predictor")["explained"].mean()
    assert found["previous"] > 0.95 and found["profile"] < 0.5
    shares = analysis.variance_shares(source, 900).set_index("part")["share"]
    assert shares["key"] > 0.9 and shares.sum() == pytest.approx(1.0)


def test_rope_alone_explains_a_local_trace_without_having_seen_a_score(trace: Trace) -> None:
    found = analysis.position_prior(trace, k=512, frequencies=FREQUENCIES)
    means = found.groupby("predictor")["explained"].mean()
    assert list(means.index) == ["chance", "previous", "profile", "recent", "rope"]
    assert means["rope"] > means["chance"] + 0.2
    with pytest.raises(TraceError, match="frequencies: only a factored trace"):
        analysis.position_prior(list(trace.rows()), k=512, frequencies=FREQUENCIES)
    with pytest.raises(ValueError, match=r"frequencies: got 40, need 1 .. 32"):
        analysis.position_prior(trace, k=512, frequencies=rope_frequencies(40))


def test_rope_theory_follows_the_recorded_profile(device: str) -> None:
    recorded = packaged_trace(device)
    n = 8192
    theory = analysis.rope_profile(recorded, FREQUENCIES, n)
    measured = analysis.distance_profile(list(recorded.rows(n, range(0, 64, 8))), n)
    assert _correlation(theory, measured) > 0.9
    wrong = analysis.rope_profile(recorded, rope_frequencies(16, base=1e4), n)
    assert _correlation(wrong, measured) < 0.8


def _correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_the_base_of_rope_can_be_read_off_a_trace() -> None:
    found = analysis.rope_evidence(packaged_trace(), [1e4, 1e5, 1e6, 1e7])
    assert found.loc[found["coherence"].idxmax(), "base"] == 1e6


def test_every_plot_has_units_on_its_axes_and_a_legend_where_lines_differ(
    rows: list[Row], trace: Trace, tmp_path: Path
) -> None:
    import matplotlib.pyplot as plt

    sizes, ks = (2048, 4096), (100, 512)
    overlap = analysis.overlap(rows, ks, sizes, lags=(1, 2, 4))
    drawn = {
        "step": plots.plot_overlap_by_step(overlap),
        "lag": plots.plot_overlap_by_lag(overlap),
        "size": plots.plot_overlap_by_size(overlap),
        "quantiles": plots.plot_hint_quantiles(analysis.hint_quantiles(rows, 512, sizes)),
        "survivors": plots.plot_survivors(analysis.survivors(rows, 512, sizes)),
        "entering": plots.plot_entering(analysis.entering(rows, ks, sizes)),
        "prior": plots.plot_prior(
            analysis.position_prior(trace, 512, 4096, frequencies=FREQUENCIES)
        ),
    }
    for name, axes in drawn.items():
        assert axes.get_ylabel(), name
        assert axes.get_xlabel() or len(axes.get_xticklabels()) > 1, name
        if name != "prior":  # one length and one K: nothing to tell apart
            assert axes.get_legend() is not None, name
        axes.figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
    plt.close("all")


@pytest.mark.parametrize(
    ("count", "label"), [(600, "600"), (8192, "8K"), (130944, "128K"), (1 << 20, "1M")]
)
def test_sizes_are_labelled_as_the_field_names_them(count: int, label: str) -> None:
    assert plots.size_label(count) == label


def test_wrong_numbers_are_named(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="k: got 0, need one or more numbers of at least 1"):
        analysis.overlap(rows, k=0)
    with pytest.raises(ValueError, match=r"n: got \(\), need"):
        analysis.overlap(rows, k=1, n=())


def test_without_pandas_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from gvr_topk import analysis\n"
        "try: analysis.overlap([], k=1)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "gvr_topk.analysis needs pandas: pip install 'gvr-topk[notebooks]'" in done.stdout


def test_a_context_that_grows_is_one_line(trace: Trace) -> None:
    import matplotlib.pyplot as plt

    growing = [row._replace(layer=layer) for row in trace.rows() for layer in (0, 1)]
    axes = plots.plot_overlap_by_step(analysis.overlap(growing, k=100))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["layer 0", "layer 1"]
    axes = plots.plot_survivors(analysis.survivors(growing, 100))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8K"]
    assert axes.get_ylim()[0] == 0
    plt.close("all")
