"""Charts to look into, of any runs and whatever was swept in them: curves, parallel coordinates, heat map, settings.

plotly builds them and checks every name in them; the page's own copy of plotly.js draws them.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from vdsr import plots, records
from vdsr.results.runs import SETTINGS, Run, Score, below, scored
from vdsr.results.section import scale_set, shown, signed

POINTS = 60  # of a curve that are drawn
LEGEND = 8  # kinds of runs that get a line in a legend; more are told apart by their gain
AXES = 6  # parallel coordinates beside the gain
TICKS = 8  # different values of an axis that are all named
CELLS = 160  # of a heat map that have room for a figure
LOWEST = -0.5  # dB above bicubic: below it lies nothing but a network's start

SWEPT = (*SETTINGS, "trainer.precision")
ASIDE = ("data.seed", "data.val", "data.test", "data.val_scales", "data.test_scales", "data.mode", "data.stream")
NAMES = {"model.depth": "depth", "clip.theta": "θ", "data.scales": "scales", "optim.lr": "γ₀", "data.train": "data"}

# each at least 3 : 1 against white
FROM_POOR_TO_GOOD = [[0, plots.COLOURS[1]], [0.5, plots.GREY], [1, plots.COLOURS[0]]]
AROUND_BICUBIC = [[0, "#EDA36B"], [0.5, "#FFFFFF"], [1, "#6FB1DA"]]  # light enough to be written on
INK, RULE = "#1F2933", "#E4E7EB"

Axis = tuple[list[float], dict[str, Any]]  # where each run lies on it, and its ticks


class Chart(NamedTuple):
    """A figure as plotly's JSON, what it is called, and what it shows in words."""

    title: str
    text: str
    figure: dict[str, Any]


def charts(runs: Sequence[Run], kind: Callable[[Run], str] | None = None) -> list[Chart]:
    """All that can be drawn of these runs; of those that swept nothing, curves alone.

    kind: what tells runs apart in the curves; what was swept if None.
    """
    keys = swept(runs)
    kind = kind or (lambda run: label(run, keys) or run.name)
    made = [_gain_curves(runs, kind), *(_curves(runs, kind, *what) for what in TRAINING.items())]
    scored = [run for run in runs if gain(run) is not None]
    if keys and len(scored) > 1:
        numbers = [key for key in keys if _numeric(run[key] for run in scored)]
        made += [_parallel(scored, keys), _heat_map(scored, keys), *(_by_setting(scored, key) for key in numbers[:3])]
    return [chart for chart in made if chart]


def swept(runs: Sequence[Run]) -> list[str]:
    """The settings that were asked for differently in these runs: dotted keys of single values."""
    given = records.swept([run.record for run in runs])
    flat = [records.flatten(run.record["config"]) for run in runs]
    keys = [key for key in dict.fromkeys(key for config in flat for key in config) if below(key, given)]
    keys = [key for key in keys if below(key, SWEPT) and not below(key, ASIDE)]
    return [key for key in keys if len({str(config.get(key)) for config in flat}) > 1]


def label(run: Run, keys: Sequence[str]) -> str:
    """A run by what was swept: depth 10, γ₀ 0.1."""
    return ", ".join(f"{name(key)} {value(run[key])}" for key in keys)


def name(key: str) -> str:
    """A dotted key in a word."""
    return NAMES.get(key) or next(part for part in reversed(key.split(".")) if part != "_target_")


def value(found: Any) -> str:
    """A setting as text."""
    if isinstance(found, (list, tuple)):
        return scale_set(found) if _numeric(found) else ", ".join(map(str, found))
    if _numeric([found]):
        return f"{found:g}".replace("e-0", "e-")
    return "none" if found is None else str(found).split("/")[-1].removeprefix("vdsr.").split(".", 1)[-1]


def gain(run: Run) -> float | None:
    """dB above bicubic, the mean over its final scores; None for a run without any."""
    return _mean_gain(run.scores.values())


def _mean_gain(found: Iterable[Score]) -> float | None:
    gains = [score.gain for score in found]
    return fmean(gains) if gains else None


# --- curves ---

TRAINING = {"loss": "Loss while training", "gradient_norm": "Norm of the gradient while training"}


def _gain_curves(runs: Sequence[Run], kind: Callable[[Run], str]) -> Chart | None:
    lines = [[(v["step"], _mean_gain(scored(v["scores"]).values())) for v in run.record["validations"]] for run in runs]
    layout = _layout("step", "dB above bicubic", zeroline=True, zerolinecolor=plots.GREY)
    found = [y for line in lines for _, y in line if y is not None]
    if found and min(found) < LOWEST < max(found):
        layout["yaxis"]["range"] = [LOWEST, max(found) + 0.05 * (max(found) - LOWEST)]
    text = "A line a run, by step: the mean gain over bicubic at its validations."
    if ends := [(end, kind(run)) for run in runs if (end := gain(run)) is not None]:
        text += f" The best ends at {signed(max(ends)[0])} dB: {max(ends)[1]}."
    return _lines("Gain over bicubic while training", text, runs, kind, lines, layout)


def _curves(runs: Sequence[Run], kind: Callable[[Run], str], key: str, title: str) -> Chart | None:
    lines = [[(point["step"], point.get(key)) for point in run.record["curve"]] for run in runs]
    layout = _layout("step", title.split(" while")[0].lower(), type="log", exponentformat="power")
    return _lines(title, f"A line a run, by step, on a logarithmic axis: {title.lower()}.", runs, kind, lines, layout)


def _lines(
    title: str,
    text: str,
    runs: Sequence[Run],
    kind: Callable[[Run], str],
    lines: Sequence[Sequence[tuple[float, float | None]]],
    layout: dict[str, Any],
) -> Chart | None:
    """A trace a run, coloured by kind, or by gain where there are too many kinds; None where there is no line."""
    if not any(lines):
        return None
    kinds = list(dict.fromkeys(map(kind, runs)))
    few = len(kinds) <= LEGEND
    colours = dict(zip(kinds, (plots.COLOURS * 2)[:LEGEND], strict=False)) if few else {}
    by_gain = [] if few else _by_gain(runs)
    traces, seen = [], set[str]()
    for number, (run, line) in enumerate(zip(runs, lines, strict=True)):
        if line:
            kept = [*line[: -1 : math.ceil(len(line) / POINTS)], line[-1]]
            traces.append(
                go.Scatter(
                    x=[step for step, _ in kept],
                    y=[_digits(y) for _, y in kept],
                    mode="lines" if len(kept) > 13 else "lines+markers",
                    line={"width": 1.5, "color": colours.get(kind(run)) or by_gain[number]},
                    marker={"size": 4},
                    name=_plain(kind(run)),
                    legendgroup=_plain(kind(run)),
                    showlegend=few and len(kinds) > 1 and kind(run) not in seen,
                    hovertemplate=f"{_plain(kind(run))}, seed {run.seed}<br>step %{{x}}: %{{y}}<extra></extra>",
                )
            )
            seen.add(kind(run))
    return Chart(title, text, _json(traces, layout))


def _by_gain(runs: Sequence[Run]) -> list[str]:
    gains = [gain(run) for run in runs]
    known = [found for found in gains if found is not None] or [0.0]
    low, high = _reach(known)
    shares = [0 if found is None else max(0, (found - low) / (high - low or 1)) for found in gains]
    return list(sample_colorscale(FROM_POOR_TO_GOOD, shares))


def _reach(gains: Sequence[float]) -> tuple[float, float]:
    """From where to where colours are told apart: not below LOWEST, where networks have failed, if any did not."""
    return (max(min(gains), LOWEST) if max(gains) > LOWEST else min(gains)), max(gains)


# --- what was swept ---


def _parallel(runs: Sequence[Run], keys: Sequence[str]) -> Chart:
    gains = [_digits(gain(run)) for run in runs]
    dimensions = []
    for key in keys[:AXES]:
        positions, ticks = _axis([run[key] for run in runs])
        dimensions.append({"label": _plain(name(key)), "values": positions, **ticks})
    dimensions.append({"label": "gain (dB)", "values": gains, "tickformat": "+.2f"})
    low, high = _reach([gain(run) or 0 for run in runs])
    line = {"color": gains, "colorscale": FROM_POOR_TO_GOOD, "cmin": low, "cmax": high, "showscale": False}
    font = {"size": 12, "color": INK}
    figure = go.Parcoords(line=line, dimensions=dimensions, labelfont=font, tickfont=font, rangefont=font)
    text = (
        f"A line a finished run through {', '.join(name(key) for key in keys[:AXES])} and its gain over bicubic. "
        "Drag along an axis to keep a part of it."
    )
    layout = _layout("", "") | {"margin": {"l": 60, "r": 60, "t": 45, "b": 25}}
    return Chart("Parallel coordinates", text, _json([figure], layout))


def _heat_map(runs: Sequence[Run], keys: Sequence[str]) -> Chart:
    """Two settings against one another; one against the sets and scales."""
    cells: dict[tuple[Any, Any], list[float]] = {}
    if len(keys) > 1:
        across, down = keys[0], keys[1]
        title = f"Gain by {name(across)} and {name(down)}"
        for run in runs:
            cells.setdefault((value(run[across]), value(run[down])), []).append(gain(run) or 0)
        columns, rows = (_ordered([run[key] for run in runs]) for key in (across, down))
        axes = name(across), name(down)
    else:
        title = f"Gain by {name(keys[0])}, set and scale"
        for run in runs:
            for benchmark, score in run.scores.items():
                cells.setdefault((value(run[keys[0]]), shown(benchmark)), []).append(score.gain)
        columns = _ordered([run[keys[0]] for run in runs])
        rows = [shown(b) for b in sorted({b for run in runs for b in run.scores}, reverse=True)]
        axes = name(keys[0]), ""
    figures = [[fmean(cells[c, r]) if (c, r) in cells else None for c in columns] for r in rows]
    limit = max(map(abs, _reach([z for row in figures for z in row if z is not None]))) or 1
    few = len(columns) * len(rows) <= CELLS
    drawn = go.Heatmap(
        x=[_plain(column) for column in columns],
        y=[_plain(row) for row in rows],
        z=[[_digits(z) for z in row] for row in figures],
        text=[["" if z is None else signed(z) for z in row] for row in figures],
        texttemplate="%{text}" if few else None,
        textfont={"color": INK},
        colorscale=AROUND_BICUBIC,
        zmin=-limit,
        zmax=limit,
        showscale=False,
        xgap=2,
        ygap=2,
        hovertemplate="%{x}, %{y}: %{text} dB<extra></extra>",
    )
    layout = _layout(axes[0], axes[1], type="category", showgrid=False)
    layout["xaxis"] |= {"type": "category"}
    (best, at) = max((fmean(found), key) for key, found in cells.items())
    text = f"The mean gain over bicubic in dB; the largest is {signed(best)} at {at[0]}, {at[1]}."
    return Chart(title, text, _json([drawn], layout))


def _by_setting(runs: Sequence[Run], key: str) -> Chart:
    """PSNR above bicubic against a number that was swept: a line a set and scale through the means."""
    numbers = sorted({float(run[key]) for run in runs})
    traces = []
    for number, benchmark in enumerate(sorted({b for run in runs for b in run.scores})):
        found = [
            [run.scores[benchmark].gain for run in runs if run[key] == x and benchmark in run.scores] for x in numbers
        ]
        points = [(x, gains) for x, gains in zip(numbers, found, strict=True) if gains]
        means = [fmean(gains) for _, gains in points]
        above = [_digits(max(gains) - mean) for (_, gains), mean in zip(points, means, strict=True)]
        beneath = [_digits(mean - min(gains)) for (_, gains), mean in zip(points, means, strict=True)]
        traces.append(
            go.Scatter(
                x=[x for x, _ in points],
                y=[_digits(mean) for mean in means],
                error_y={"array": above, "arrayminus": beneath, "thickness": 1} if any(above) else None,
                mode="lines+markers",
                line={"width": 1.5, "color": plots.COLOURS[number % len(plots.COLOURS)]},
                name=_plain(shown(benchmark)),
                hovertemplate=f"{_plain(shown(benchmark))}, {_plain(name(key))} %{{x}}: %{{y:+.2f}} dB<extra></extra>",
            )
        )
    layout = _layout(name(key), "dB above bicubic")
    log = numbers[0] > 0 and numbers[-1] / numbers[0] >= 30
    layout["xaxis"] |= {"type": "log"} if log else {}
    if len(numbers) <= TICKS:
        layout["xaxis"] |= {"tickvals": numbers, "ticktext": [value(x) for x in numbers]}
    text = f"PSNR above bicubic against {name(key)}, a line a set and scale: the mean of the runs and their reach."
    return Chart(f"Gain by {name(key)}", text, _json(traces, layout))


def _axis(found: Sequence[Any]) -> Axis:
    """Where each value lies on an axis, logarithmic if they span much; categories in their order."""
    if not _numeric(found):
        categories = _ordered(found)
        ticks = {"tickvals": list(range(len(categories))), "ticktext": [_plain(c) for c in categories]}
        return [float(categories.index(value(v))) for v in found], ticks
    numbers = sorted({float(v) for v in found})
    log = numbers[0] > 0 and numbers[-1] / numbers[0] >= 30
    place = math.log10 if log else float
    if len(numbers) > TICKS:
        ends = range(math.floor(place(numbers[0])), math.ceil(place(numbers[-1])) + 1)
        numbers = [10.0**end for end in ends] if log else []
    ticks = {"tickvals": [place(x) for x in numbers], "ticktext": [value(x) for x in numbers]} if numbers else {}
    return [place(float(v)) for v in found], ticks


def _ordered(found: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(value(v) for v in sorted(found, key=records.order)))


def _numeric(found: Iterable[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in found)


# --- plotly ---


def _layout(x: str, y: str, **yaxis: Any) -> dict[str, Any]:
    axis = {"gridcolor": RULE, "linecolor": RULE, "zeroline": False, "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": _plain(x)}, "showgrid": False},
        "yaxis": {**axis, "title": {"text": _plain(y)}, **yaxis},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "legend": {"orientation": "h", "y": -0.25},
        "paper_bgcolor": "#FFFFFF",
        "plot_bgcolor": "#FFFFFF",
        "hovermode": "closest",
    }


def _json(traces: Sequence[Any], layout: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = go.Figure(traces, {**layout, "template": None}).to_plotly_json()
    return made


def _plain(text: str) -> str:
    """Any text as one that plotly, which reads a few tags of HTML, shows as it is."""
    return html.escape(text, quote=False)


def _digits(number: float | None) -> float | None:
    """Four digits, enough for a picture; None for what is no number."""
    return float(f"{number:.4g}") if number is not None and math.isfinite(number) else None
