"""What the sections' tables have in common: cells, and how a series is titled and drawn."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vdsr.results.runs import Benchmark, Group, Run, benchmarks, series
from vdsr.results.section import NOTHING, Picture, decibels, percent, signed, trained_with


def titled(runs: Sequence[Run], *swept: str) -> list[tuple[str, list[Group]]]:
    """Each series with what tells it from the others: budget and data, and, where those are alike, other settings."""
    found = []
    for points in series(runs, *swept):
        longest = max((group.first for group in points), key=lambda run: run.planned)
        found.append((f"{trained_with(longest)}, on {longest.data}", points))
    alike = {title: [points[0].first.settings for other, points in found if other == title] for title, _ in found}
    return [(f"{title}{_apart(points[0].first, alike[title])}", points) for title, points in found]


def _apart(run: Run, alike: Sequence[Mapping[str, object]]) -> str:
    """; optim.lr 0.1: the settings, of those that each has, in which runs with one title differ."""
    own = run.settings
    keys = [key for key in own if all(key in other for other in alike) and any(own[key] != o[key] for o in alike)]
    said = {k: str(own[k]).split(".")[-1] if k.endswith("_target_") else own[k] for k in keys}
    return "".join(f"; {key.removesuffix('._target_')} {value}" for key, value in said.items())


def panel(points: Sequence[Group]) -> list[Benchmark]:
    """The scales of the first set that the points were scored on; the paper's ablations use Set5 only."""
    found = benchmarks(points)
    return [b for b in found if b[0] == found[0][0] and not b[1] % 1]


def figures(group: Group, tested: Sequence[Benchmark]) -> list[str]:
    """A cell a benchmark: PSNR in dB."""
    return [decibels(group.figure(b)) for b in tested]


def gains(group: Group, tested: Sequence[Benchmark]) -> list[str]:
    """A cell a benchmark: PSNR and the gain over bicubic in dB."""
    return [
        f"{decibels(f)} ({signed(group.value(b, 'gain') or 0)})" if (f := group.figure(b)) else NOTHING for b in tested
    ]


def mean(group: Group, tested: Sequence[Benchmark]) -> float | None:
    """The mean gain over bicubic in dB."""
    gains = [gain for b in tested if (gain := group.value(b, "gain")) is not None]
    return sum(gains) / len(gains) if gains else None


def mean_gain(group: Group, tested: Sequence[Benchmark]) -> str:
    """The mean gain as a cell."""
    gain = mean(group, tested)
    return NOTHING if gain is None else signed(gain)


def difference(one: Group | None, other: Group | None, benchmark: Benchmark) -> float | None:
    """PSNR of one above the other's in dB; None where either has none."""
    a, b = (group.value(benchmark) if group else None for group in (one, other))
    return None if a is None or b is None else a - b


def budget(trained: Run | Group) -> str:
    """What it was trained with, in a row's words."""
    return f"{percent(trained.share)} of the paper's patches"


def seeds(group: Group) -> str:
    """The seeds of the finished runs."""
    found = sorted({run.seed for run in group.runs if run.finished})
    return f"seed {found[0]}" if len(found) == 1 else f"seeds {', '.join(map(str, found))}"


def picture(file: str, text: str, draw: Callable[..., None], *what: object) -> Picture:
    """A chart that `draw(*what, path)` makes."""
    return Picture(f"{file}.png", text, partial(draw, *what))


def drawn(
    number: int, file: str, text: str, draw: Callable[..., None], points: Sequence[Group], what: object
) -> list[Picture]:
    """The picture of the n-th series, where there is a figure to draw."""
    name = file if number == 0 else f"{file}-{number + 1}"
    return [picture(name, text, draw, points, what)] if benchmarks(points) else []
