"""The report as one HTML page that needs no network: runs, charts, pictures, the paper's tables beside ours."""

import base64
import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from vdsr import files
from vdsr.results import interactive
from vdsr.results.cells import panel
from vdsr.results.runs import Group, Run
from vdsr.results.section import NOTHING, Section, percent, shown, signed
from vdsr.results.sections import sections

log = logging.getLogger(__name__)

PICTURES = "pictures"  # the folder beside the page
WEIGHTS = "weights.safetensors"  # as a run leaves them
ALL = "all runs"

TEMPLATES = Environment(
    loader=PackageLoader("vdsr.results"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}


class Cell(NamedTuple):
    """What the table of runs shows, and the number it is sorted by; by its text if None."""

    text: str
    number: float | None = None


class AtScale(NamedTuple):
    """What became of a picture at one scale: files below the pictures' folder, and PSNR in dB."""

    scale: float
    bicubic: str
    network: str
    bicubic_psnr: float
    psnr: float


class Comparison(NamedTuple):
    """One benchmark picture: the original's file, width and height in pixels, and what became of it at each scale."""

    set: str
    name: str
    original: str
    width: int
    height: int
    scales: list[AtScale]


class Pictures(NamedTuple):
    """Benchmark pictures, and the network that they went through, in words; see `vdsr.results.comparisons`."""

    network: str
    comparisons: Sequence[Comparison]

    def files(self) -> list[str]:
        """Every file of theirs, below their folder."""
        shown = [[s.bicubic, s.network] for comparison in self.comparisons for s in comparison.scales]
        return [comparison.original for comparison in self.comparisons] + [file for files in shown for file in files]


def write(page: Path, found: Sequence[Run], damaged: Sequence[str], pictures: Pictures | None = None) -> None:
    """Write the page; `pictures` lie in the folder beside it. damaged: a line for each record that is of no use."""
    text = render(content(found, damaged, pictures))
    with files.whole(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    log.info("%s: %d runs%s", page, len(found), f", {len(pictures.comparisons)} pictures" if pictures else "")


def render(content: str, live: str | None = None) -> str:
    """The whole document. live: the content's tag, where the page is to ask its server for newer content."""
    plotly, script = get_plotlyjs(), _source("page.js")
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (plotly, script)]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)  # scripts of the page's own and no others
    page = TEMPLATES.get_template("page.html")
    return page.render(
        content=content, style=_source("page.css"), plotly=plotly, script=script, allowed=allowed, live=live
    )


def content(
    found: Sequence[Run], damaged: Sequence[str], pictures: Pictures | None = None, figures: bool = True
) -> str:
    """What the page says of these runs: all that changes while a sweep runs.

    figures: with the paper's, which take most of the time.
    """
    made = sections(found)
    header, rows = _table(found)
    return TEMPLATES.get_template("content.html").render(
        summary=_summary(found),
        damaged=damaged,
        header=header,
        rows=rows,
        charts=_charts(found),
        network=pictures.network if pictures else "",
        comparisons=[_urls(comparison) for comparison in pictures.comparisons] if pictures else [],
        sections=made,
        drawn=_drawn(made) if figures else {},
        said={True: "holds", False: "does not hold", None: "not shown yet"},
    )


def best_weights(found: Sequence[Run]) -> Path | None:
    """The weights of the run that gained most, of those whose weights lie beside their record.

    What was scored at most scales comes first: a mean over ×2 alone is higher than one over harder scales.
    """
    ranks = {
        path: (len({scale for _, scale in run.scores}), gain)
        for run in found
        if (path := run.path.parent / WEIGHTS).is_file() and (gain := interactive.gain(run))
    }
    return max(ranks, key=lambda path: ranks[path], default=None)


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _summary(found: Sequence[Run]) -> str:
    """40 runs of 3 experiments: 38 finished, 1 diverged, 1 running."""
    states: dict[str, int] = {}
    for run in found:
        states[str(run.record["status"])] = states.get(str(run.record["status"]), 0) + 1
    experiments = len({run.name for run in found})
    of = f"{len(found)} run{'s' * (len(found) != 1)} of {experiments} experiment{'s' * (experiments != 1)}"
    return f"{of}: {', '.join(f'{number} {state}' for state, number in states.items())}"


def _table(found: Sequence[Run]) -> tuple[list[str], list[list[Cell]]]:
    """A row a run: what was swept, what came of it, what it took, what repeats it."""
    keys = interactive.swept(found)
    tested = panel([Group((run,)) for run in found]) if any(run.scores for run in found) else []
    header = [
        "experiment", *map(interactive.name, keys), "seed", *map(shown, tested), "gain (dB)", "outcome", "steps",
        "of the paper's patches", "data", "precision", "seconds", "patches/s", "hardware", "started", "commit",
        "record", "repeat with",
    ]  # fmt: skip
    rows = []
    for run in found:
        gain, rate = interactive.gain(run), run.patches_per_second
        psnrs = [run.scores[b].psnr if b in run.scores else None for b in tested]
        settings = [Cell(interactive.value(run[key]), _number(run[key])) for key in keys]
        done = run.share * run.record["steps"] / run.planned if run.planned else 0.0
        rows.append(
            [
                Cell(run.name),
                *settings,
                Cell(str(run.seed), run.seed),
                *(Cell(NOTHING if p is None else f"{p:.2f}", p) for p in psnrs),
                Cell(NOTHING if gain is None else signed(gain), gain),
                Cell(run.outcome),
                Cell(f"{run.record['steps']:,}", run.record["steps"]),
                Cell(percent(done), done),
                Cell(run.data),
                Cell(run.arithmetic),
                Cell(f"{run.record['seconds']:,.0f}", run.record["seconds"]),
                Cell(f"{rate:,.0f}" if rate else NOTHING, rate),
                Cell(run.hardware or NOTHING),
                Cell(str(run.record.get("started") or NOTHING)),
                Cell(str(run.record.get("commit") or NOTHING)[:8]),
                Cell(str(run.path)),
                Cell(run.command),
            ]
        )
    return header, rows


def _number(setting: Any) -> float | None:
    return float(setting) if isinstance(setting, (int, float)) and not isinstance(setting, bool) else None


def _charts(found: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The charts of each experiment, and of all where there are several."""
    names = list(dict.fromkeys(run.name for run in found))
    made = {name: interactive.charts([run for run in found if run.name == name]) for name in names}
    if len(names) > 1:
        made = {ALL: interactive.charts(found, kind=lambda run: run.name)} | made
    return {name: [chart._asdict() for chart in charts] for name, charts in made.items() if charts}


def _urls(comparison: Comparison) -> dict[str, Any]:
    def url(file: str) -> str:
        return quote(f"{PICTURES}/{file}")

    scales = [s._replace(bicubic=url(s.bicubic), network=url(s.network))._asdict() for s in comparison.scales]
    return comparison._replace(original=url(comparison.original))._asdict() | {"scales": scales}


def _drawn(made: Sequence[Section]) -> dict[str, str]:
    """The sections' pictures as data: URLs by their file's name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for picture in (picture for section in made for part in section.parts for picture in part.pictures):
            path = Path(folder) / picture.file
            picture.draw(path)
            found[picture.file] = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return found
