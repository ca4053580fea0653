"""What the page's charts show is what the records say."""

import json
import math

import pytest

from vdsr.results import interactive, runs


@pytest.fixture
def read(tmp_path, recorded):
    """Runs of (settings, gain) pairs, or of keywords for `recorded`."""

    def make(*points):
        for number, point in enumerate(points):
            given = point if isinstance(point, dict) else {"settings": point[0], "gain": point[1]}
            recorded(tmp_path / f"{number:03}" / "record.json", **{"points": 20, **given})
        return runs.read(tmp_path)

    return make


def charts(found, **how):
    return {chart.title: chart for chart in interactive.charts(found, **how)}


def traces(chart):
    json.dumps(chart.figure, allow_nan=False)
    return chart.figure["data"]


def test_what_was_swept(read):
    found = read(
        {"settings": {"model.depth": 5, "data.scales": [2], "optim.lr": 0.1, "seed": 0}},
        {"settings": {"model.depth": 10, "data.scales": [2, 3], "optim.lr": 0.1, "seed": 1}},
    )
    assert interactive.swept(found) == ["model.depth", "data.scales"]  # not the seed, nor what is alike
    assert [interactive.label(run, interactive.swept(found)) for run in found] == [
        "depth 5, scales {2}",
        "depth 10, scales {2, 3}",
    ]


def test_an_option_of_a_group_is_known_by_its_values(read):
    norm = {"_target_": "vdsr.clip.Norm", "max_norm": 0.4}
    found = read({}, {"settings": {"clip": norm}})
    assert interactive.swept(found) == ["clip._target_", "clip.theta", "clip.max_norm"]
    assert interactive.label(found[1], ["clip._target_", "clip.theta", "clip.max_norm"]) == (
        "clip Norm, θ none, max_norm 0.4"
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (5, "5"), (1e-5, "1e-5"), (0.1, "0.1"), (True, "True"), (None, "none"), ([2, 3], "{2, 3}"), (["a", 1], "a, 1"),
        ("/data/train91", "train91"), ("vdsr.net.VDSR", "VDSR"), ("bf16-mixed", "bf16-mixed"),
    ],
)  # fmt: skip
def test_settings_as_text(found, text):
    assert interactive.value(found) == text


def test_curves_are_the_records(read):
    found = read(({"model.depth": 5}, 0.4), ({"model.depth": 10}, 0.8))
    made = charts(found)
    gains = traces(made["Gain over bicubic while training"])
    assert [trace["name"] for trace in gains] == ["depth 5", "depth 10"]
    assert [(trace["x"], trace["y"]) for trace in gains] == [([200, 400], [0.2, 0.4]), ([200, 400], [0.4, 0.8])]
    losses = traces(made["Loss while training"])
    curve = [(point["step"], point["loss"]) for point in found[0].record["curve"]]
    assert [*zip(losses[0]["x"], losses[0]["y"], strict=True)] == [(s, pytest.approx(y, rel=1e-3)) for s, y in curve]
    assert "ends at +0.80 dB: depth 10" in made["Gain over bicubic while training"].text


def test_a_long_curve_is_thinned_to_its_ends(read):
    (trace,) = traces(charts(read({"points": 1000}))["Loss while training"])
    assert len(trace["x"]) <= interactive.POINTS + 1
    assert (trace["x"][0], trace["x"][-1]) == (20, 20_000)


def test_a_figure_that_is_none_leaves_a_gap(read):
    curve = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 2.0}]
    (trace,) = traces(charts(read({"curve": curve}))["Loss while training"])
    assert trace["y"] == [3.0, None, 2.0]


def test_seeds_share_a_colour_and_a_line_of_the_legend(read):
    found = read(*({"settings": {"model.depth": depth, "seed": seed}} for depth in (5, 10) for seed in (0, 1)))
    shown = traces(charts(found)["Loss while training"])
    assert len({trace["line"]["color"] for trace in shown}) == 2
    assert [trace["showlegend"] for trace in shown] == [True, False, True, False]


def test_many_kinds_are_coloured_by_gain(read):
    found = read(*(({"model.depth": depth}, depth / 10) for depth in range(1, 13)))
    shown = traces(charts(found)["Loss while training"])
    assert len({trace["line"]["color"] for trace in shown}) == 12
    assert not any(trace["showlegend"] for trace in shown)


def test_parallel_coordinates(read):
    found = read(
        ({"clip.theta": 1e-5, "data.scales": [2, 3]}, 0.1),
        ({"clip.theta": 1e-3, "data.scales": [2]}, -0.2),
        ({"clip.theta": 1e-4, "data.scales": [2]}, 0.5),
    )
    (trace,) = traces(charts(found)["Parallel coordinates"])
    scales, theta, gain = trace["dimensions"]
    assert (theta["label"], [*theta["values"]]) == ("θ", [pytest.approx(v) for v in (-5, -3, -4)])  # logarithmic
    assert [*theta["ticktext"]] == ["1e-5", "0.0001", "0.001"]
    assert [scales["ticktext"][int(v)] for v in scales["values"]] == ["{2, 3}", "{2}", "{2}"]
    assert [*gain["values"]] == [0.1, -0.2, 0.5]


def test_the_heat_map_of_one_setting(read):
    found = read(({"model.depth": 10}, 0.4), ({"model.depth": 5}, 0.2), ({"model.depth": 5, "seed": 1}, 0.3))
    chart = charts(found)["Gain by depth, set and scale"]
    (trace,) = traces(chart)
    assert [[*trace["x"]], [*trace["y"]]] == [["5", "10"], ["sample_val ×4", "sample_val ×3", "sample_val ×2"]]
    assert [[*row] for row in trace["z"]] == [[0.25, 0.4]] * 3
    assert "largest is +0.40 at 10" in chart.text


def test_the_heat_map_of_two_settings_leaves_empty_what_was_not_run(read):
    found = read(*(({"model.depth": d, "optim.lr": lr}, d * lr) for d, lr in ((5, 0.1), (10, 0.1), (10, 0.01))))
    (trace,) = traces(charts(found)["Gain by depth and γ₀"])
    assert [[*row] for row in trace["z"]] == [[None, 0.1], [0.5, 1.0]]
    assert trace["text"][0][0] == ""


def test_a_setting_against_gain_with_its_reach(read):
    found = read(({"model.depth": 5}, 0.1), ({"model.depth": 5, "seed": 1}, 0.4), ({"model.depth": 10}, 0.7))
    shown = traces(charts(found)["Gain by depth"])
    assert [trace["name"] for trace in shown] == ["sample_val ×2", "sample_val ×3", "sample_val ×4"]
    assert ([*shown[0]["x"]], [*shown[0]["y"]]) == ([5, 10], [0.25, 0.7])
    assert [*shown[0]["error_y"]["array"]] == [0.15, 0]


def test_runs_without_scores_have_curves_alone(read):
    found = read(
        {"settings": {"model.depth": 5}, "status": "diverged", "error": "the loss is nan"},
        {"settings": {"model.depth": 10}},
        {"settings": {"model.depth": 15}, "curve": [], "validations": [], "status": "running"},
    )
    made = charts(found)
    assert list(made) == [
        "Gain over bicubic while training", "Loss while training", "Norm of the gradient while training",
    ]  # fmt: skip
    assert interactive.charts(found[2:]) == []


def test_markup_in_a_name_is_text_to_plotly(read):
    found = read({"name": "<b>a</b> & b"}, {"name": "c"})
    shown = traces(charts(found, kind=lambda run: run.name)["Loss while training"])
    assert shown[0]["name"] == "&lt;b&gt;a&lt;/b&gt; &amp; b"
    assert "<b>" not in shown[0]["hovertemplate"]
