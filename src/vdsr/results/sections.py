"""Which run belongs where: every record under exactly one question."""

from collections.abc import Callable, Sequence

from vdsr.results.ablations import depth, fractional, precision, residual, scale_sets, theta
from vdsr.results.benchmark import benchmark
from vdsr.results.cells import budget, gains
from vdsr.results.runs import Run, benchmarks, series
from vdsr.results.section import Part, Section, Table, shown

# Experiments that share a section.
TOGETHER = {"paper": "benchmark", "srcnn": "benchmark", "clip_ablation": "theta_sweep"}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Every run in exactly one section's list; a section without runs is left out."""
    sorted_out: dict[str, list[Run]] = {}
    for run in runs:
        sorted_out.setdefault(_place(run), []).append(run)
    made = [make(sorted_out.get(place, [])) for place, make in BUILDERS.items()]
    scored_between = [run for run in runs if any(scale % 1 for _, scale in run.scores)]
    if scored_between or "fractional" in sorted_out:
        after_scales = list(BUILDERS).index("scale_sweep") + 1
        made.insert(after_scales, fractional(scored_between, sorted_out.get("fractional", [])))
    return [section for section in made if section.parts]


def others(runs: Sequence[Run]) -> Section:
    """Whatever else was recorded."""
    names = sorted({run.name for run in runs})
    groups = [points[0] for name in names for points in series(run for run in runs if run.name == name)]
    tested = benchmarks(groups)
    rows = [[g.first.name, g.first.network, *gains(g, tested), budget(g.first), g.outcome] for g in groups]
    header = ["experiment", "network", *map(shown, tested), "trained with", "outcome"]
    return Section("Other runs", "", [Part("", [Table(header, rows)])] if groups else [], runs)


BUILDERS: dict[str, Callable[[Sequence[Run]], Section]] = {
    "benchmark": benchmark,
    "residual_ablation": residual,
    "scale_sweep": scale_sets,
    "depth_sweep": depth,
    "theta_sweep": theta,
    "precision": precision,
    "others": others,
}


def _place(run: Run) -> str:
    """The section that lists a run: its experiment's, or by what it was trained on and scored at."""
    place = TOGETHER.get(run.name, run.name)
    if place in BUILDERS:
        return place
    if any(scale % 1 for _, scale in run.scores):
        return "fractional"
    return "benchmark" if run.data == "train291" else "others"
