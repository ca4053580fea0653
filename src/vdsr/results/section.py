"""What a report is made of, and how its figures are written; knows neither Markdown nor HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vdsr.results.runs import Benchmark, Figure, Run

NAMES = {"set5": "Set5", "set14": "Set14", "b100": "B100", "urban100": "Urban100"}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Plain text in cells; a newline there is one."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds on our figures, and by how much; None where runs are missing that it needs."""

    claim: str
    holds: bool | None
    by: str


@dataclass(frozen=True)
class Picture:
    """A PNG's name, what it shows in words, and what draws it at a path."""

    file: str
    text: str
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Part:
    """One budget's answer to a section's question."""

    title: str
    tables: Sequence[Table]
    verdicts: Sequence[Verdict] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Section:
    """One of the paper's tables or figures, or a question of our own, and every run that was made for it."""

    title: str
    question: str
    parts: Sequence[Part]
    runs: Sequence[Run] = field(default_factory=list)


def shown(benchmark: Benchmark) -> str:
    """Set5 ×2."""
    name, scale = benchmark
    return f"{NAMES.get(name, name)} ×{scale:g}"


def scale_set(scales: Sequence[float]) -> str:
    """{2, 3, 4}."""
    return "{" + ", ".join(f"{scale:g}" for scale in scales) + "}"


def percent(share: float) -> str:
    """100 %, 5 %, 0.38 %: two digits where it is not whole."""
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"


def trained_with(run: Run) -> str:
    """The budget in words: 5 % of the paper's patches (498 × 64)."""
    patch = run["data.patch"]
    size = "" if patch == 41 else f", each {patch}×{patch}"
    return f"{percent(run.share)} of the paper's patches ({run.planned:,} × {run.batch}{size})"


def signed(value: float, digits: int = 2) -> str:
    """+0.31; never -0.00."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def decibels(figure: Figure | None, published: float | None = None, digits: int = 2) -> str:
    """37.21 ± 0.02 (37.53, -0.32): ours, the published figure and the difference."""
    if figure is None:
        return NOTHING if published is None else f"{NOTHING} ({published:.{digits}f})"
    spread = "" if figure.sd is None else f" ± {figure.sd:.{digits}f}"
    beside = "" if published is None else f" ({published:.{digits}f}, {signed(figure.mean - published, digits)})"
    return f"{figure.mean:.{digits}f}{spread}{beside}"


def holds(claim: str, differences: Sequence[float], least: float = 0.0) -> Verdict:
    """A claim that every difference (dB) is above `least`: how many are, and from where to where they lie."""
    if not differences:
        return Verdict(claim, None, "no finished runs to compare")
    kept = sum(difference > least for difference in differences)
    reach = " to ".join(dict.fromkeys(signed(end(differences)) for end in (min, max))) + " dB"
    of = "" if len(differences) == 1 else f"{kept} of {len(differences)}, "
    return Verdict(claim, kept == len(differences), f"{of}{reach}")
