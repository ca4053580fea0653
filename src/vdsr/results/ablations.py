"""Tables 1 and 2, figure 3, and our own questions: clipping, scales in between, precision."""

import itertools
from collections.abc import Callable, Sequence

from vdsr.results import charts, published
from vdsr.results.cells import budget, difference, drawn, figures, gains, mean, mean_gain, panel, titled
from vdsr.results.runs import Benchmark, Figure, Group, Run, benchmarks, series
from vdsr.results.section import NOTHING, Part, Section, Table, Verdict, decibels, holds, scale_set, shown, signed

LEVEL = 0.1  # dB within which two networks are level (table 2), or a network is no better than bicubic
SAME = 0.05  # dB within which bf16 and fp32 are to lie
EPOCHS = tuple(published.RESIDUAL[True])


def residual(runs: Sequence[Run]) -> Section:
    """Table 1 and figure 4: residual against plain networks at three learning rates."""
    question = "What does learning the residual bring? Trained and scored at ×2; 80 epochs are the whole schedule."
    parts = []
    for number, (title, points) in enumerate(titled(runs, "model.residual", "optim.lr", "optim.optimiser.lr")):
        points = sorted(points, key=lambda g: (-float(g.first["optim.lr"]), not g.first["model.residual"]))
        scored = _scored_at(points)
        rows = []
        for group in points:
            run, figures = group.first, {}
            if (float(run["optim.lr"]), scored) == (published.RESIDUAL_LR, published.RESIDUAL_SCORED):
                figures = published.RESIDUAL[run["model.residual"]]
            cells = [decibels(_at(group, scored, epoch), figures.get(epoch)) for epoch in EPOCHS]
            kind = "residual" if run["model.residual"] else "plain"
            rows.append([f"{run['optim.lr']:g}", kind, *cells, budget(run), group.outcome])
        header = ["γ₀", "network", *(f"epoch {epoch}" for epoch in EPOCHS), "trained with", "outcome"]
        pictures = drawn(number, "residual", "PSNR by epoch, residual against plain", charts.residual, points, scored)
        parts.append(Part(title, [Table(header, rows)], _residual_verdicts(points, scored), pictures))
    return Section("Residual learning (table 1, figure 4)", question, parts, runs)


def scale_sets(runs: Sequence[Run]) -> Section:
    """Table 2: trained on some scales, tested at each."""
    question = "Does one network do for all scales? Each is trained for as many epochs; more scales are more patches."
    parts = []
    swept = "data.scales", "trainer.max_steps", "optim.schedule"
    budgets = itertools.groupby(sorted(runs, key=_patches_a_scale, reverse=True), _patches_a_scale)
    found = itertools.chain.from_iterable(titled(list(alike), *swept) for _, alike in budgets)
    for number, (title, points) in enumerate(found):
        points = sorted(points, key=lambda group: (len(group.first.scales), group.first.scales))
        tested = panel(points)
        rows = []
        for group in points:
            beside = published.SCALE_SETS.get(group.first.scales, {})
            cells = [decibels(group.figure(b), beside.get(b[1]) if b[0] == "set5" else None) for b in tested]
            rows.append([scale_set(group.first.scales), *cells, budget(group.first), group.outcome])
        bicubic = [next((decibels(f) for g in points if (f := g.figure(b, "bicubic_psnr"))), NOTHING) for b in tested]
        header = ["trained on", *map(shown, tested), "trained with", "outcome"]
        pictures = drawn(number, "scales", "PSNR of each scale set at each scale", charts.scale_sets, points, tested)
        table = Table(header, [*rows, ["bicubic", *bicubic, "", ""]])
        parts.append(Part(title, [table], _scale_verdicts(points, tested), pictures))
    return Section("Scale sets (table 2)", question, parts, runs)


def depth(runs: Sequence[Run]) -> Section:
    """Figure 3: PSNR against depth."""
    question = "Does depth help?"
    parts = []
    for number, (title, points) in enumerate(titled(runs, "model.depth")):
        tested = panel(points)
        rows = [[str(g.first["model.depth"]), *figures(g, tested), budget(g.first), g.outcome] for g in points]
        header = ["D", *map(shown, tested), "trained with", "outcome"]
        found = [[psnr for g in points if (psnr := g.value(b)) is not None] for b in tested]
        steps = [b - a for line in found for a, b in itertools.pairwise(line)]
        whole = [line[-1] - line[0] for line in found if len(line) > 1]
        low, high = published.DEPTH_GAIN
        claim = f"The deepest is above the shallowest at each scale (paper: by {low:+.1f} to {high:+.1f} dB)"
        verdicts = [holds(claim, whole), holds("Each step in depth raises PSNR at each scale", steps)]
        pictures = drawn(number, "depth", "PSNR against depth", charts.depth, points, tested)
        parts.append(Part(title, [Table(header, rows)], verdicts, pictures))
    return Section("Depth (figure 3)", question, parts, runs)


def theta(runs: Sequence[Run]) -> Section:
    """Which θ, and what adjustable clipping brings over a fixed norm and over none."""
    question = "Which θ? The paper gives none. By value to ±θ/γ, against a fixed norm and no clipping."
    parts = []
    for number, (title, points) in enumerate(titled(runs, "clip")):
        points = sorted(
            points, key=lambda g: (g.first["clip.theta"] is None, g.first["clip.theta"] or 0, _clip(g.first))
        )
        tested = panel(points)
        rows = [[_clip(g.first), *figures(g, tested), mean_gain(g, tested), budget(g.first), g.outcome] for g in points]
        header = ["clipping", *map(shown, tested), "mean gain over bicubic (dB)", "trained with", "outcome"]
        pictures = drawn(number, "theta", "Gain over bicubic against θ", charts.theta, points, tested)
        parts.append(Part(title, [Table(header, rows)], _theta_verdicts(points, tested), pictures))
    return Section("Gradient clipping (θ)", question, parts, runs)


def fractional(scored: Sequence[Run], own: Sequence[Run]) -> Section:
    """Fractional scales, that no patch was made at."""
    question = "Does a network trained at ×2, ×3 and ×4 do for scales that it was not trained at? (The paper: it does.)"
    groups = [points[0] for points in series({id(run): run for run in [*scored, *own]}.values())]
    tested = [b for b in benchmarks(groups) if b[1] <= 4]
    name = tested[0][0] if tested else ""
    tested = [b for b in tested if b[0] == name]
    rows = [
        [f"{g.first.network}, {scale_set(g.first.scales)}", *gains(g, tested), budget(g.first), g.outcome]
        for g in groups
    ]
    header = ["network, trained on", *map(shown, tested), "trained with", "outcome"]
    vdsr = [g for g in groups if g.first.network == "VDSR"]
    between = [gain for g in vdsr for b in tested if b[1] % 1 and (gain := g.value(b, "gain")) is not None]
    verdict = holds("VDSR is above bicubic at each fractional scale", between)
    return Section("Fractional scales", question, [Part("", [Table(header, rows)], [verdict])], own)


def precision(runs: Sequence[Run]) -> Section:
    """bf16 against fp32."""
    question = "Does training in bf16 cost accuracy?"
    parts = []
    for title, points in titled(runs, "trainer.precision"):
        tested = panel(points)
        rows = []
        for group in points:
            rates = [run.patches_per_second for run in group.runs if run.patches_per_second]
            rate = f"{sum(rates) / len(rates):,.0f}" if rates else NOTHING
            rows.append([group.first.arithmetic, *figures(group, tested), rate, budget(group.first), group.outcome])
        header = ["precision", *map(shown, tested), "patches/s", "trained with", "outcome"]
        parts.append(Part(title, [Table(header, rows)], [_precision_verdict(points, tested)]))
    return Section("Precision", question, parts, runs)


def _residual_verdicts(points: Sequence[Group], scored: Benchmark) -> list[Verdict]:
    pairs = []
    for rate in dict.fromkeys(group.first["optim.lr"] for group in points):
        found = {bool(g.first["model.residual"]): g for g in points if g.first["optim.lr"] == rate}
        if len(found) == 2:
            pairs.append((found[True], found[False]))
    along = [
        (a.mean - b.mean)
        for with_residual, plain in pairs
        for epoch in EPOCHS[:-1]
        if (a := _at(with_residual, scored, epoch)) and (b := _at(plain, scored, epoch))
    ]
    end = [d for with_residual, plain in pairs if (d := difference(with_residual, plain, scored)) is not None]
    verdicts = [
        holds("Residual is above plain at the end, at each learning rate", end),
        holds("Residual is above plain along the way, at each learning rate", along),
    ]
    lost = [plain for with_residual, plain in pairs if with_residual.value(scored) and plain.value(scored) is None]
    for plain in lost:
        claim = f"Residual trains at γ₀ = {plain.first['optim.lr']:g}, where plain does not"
        verdicts.append(Verdict(claim, plain.first.record["status"] == "diverged" or None, f"plain {plain.outcome}"))
    return verdicts


def _patches_a_scale(run: Run) -> float:
    """To two digits: steps are whole numbers."""
    return float(f"{run.planned * run.batch / max(1, len(run.scales)):.2g}")


def _scale_verdicts(points: Sequence[Group], tested: Sequence[Benchmark]) -> list[Verdict]:
    def foreign(psnr: Callable[[Group, Benchmark], float | None]) -> list[float]:
        """What single-scale networks gain over bicubic at scales that they were not trained on."""
        found = [
            (psnr(group, b), group.value(b, "bicubic_psnr"))
            for group in points
            for b in tested
            if len(group.first.scales) == 1 and b[1] not in group.first.scales and group.first.learnt
        ]
        return [ours - bicubic for ours, bicubic in found if ours is not None and bicubic is not None]

    def lag(psnr: Callable[[Group, Benchmark], float | None]) -> list[float]:
        """What the network of all scales is below the best at each."""
        found = []
        for b in tested:
            values = [(value, group) for group in points if (value := psnr(group, b)) is not None]
            every = [value for value, group in values if len(group.first.scales) == len(tested)]
            found += [max(value for value, _ in values) - every[0]] if every else []
        return found

    return [
        _beside_papers(
            f"A single-scale network is no better than bicubic (within {LEVEL} dB) at a scale it was not trained on",
            foreign(Group.value),
            foreign(_paper_scale),
        ),
        _beside_papers(
            f"The network of all scales is within {LEVEL} dB of the best at each", lag(Group.value), lag(_paper_scale)
        ),
    ]


def _paper_scale(group: Group, benchmark: Benchmark) -> float | None:
    name, scale = benchmark
    return published.SCALE_SETS.get(group.first.scales, {}).get(scale) if name == "set5" else None


def _beside_papers(claim: str, ours: Sequence[float], paper: Sequence[float]) -> Verdict:
    """Whether every figure is at most LEVEL; and how the paper's own figures stand to that."""

    def said(values: Sequence[float]) -> str:
        return f"{sum(value <= LEVEL for value in values)} of {len(values)}, at most {signed(max(values))} dB"

    if not ours:
        return Verdict(claim, None, "no finished runs to compare")
    return Verdict(claim, max(ours) <= LEVEL, said(ours) + (f" (paper: {said(paper)})" if paper else ""))


def _theta_verdicts(points: Sequence[Group], tested: Sequence[Benchmark]) -> list[Verdict]:
    by_value = [
        (gain, g) for g in points if g.first["clip.theta"] is not None and (gain := mean(g, tested)) is not None
    ]
    if not by_value:
        return [Verdict("Adjustable clipping trains", None, "no finished runs to compare")]
    gain, best = max(by_value, key=lambda pair: pair[0])
    verdicts = []
    for group in points:
        if group.first["clip.theta"] is None:
            claim = f"Clipping by value at the best θ ({best.first['clip.theta']:g}) is above {_clip(group.first)}"
            other = mean(group, tested)
            diverged = group.first.record["status"] == "diverged" or None
            verdicts.append(Verdict(claim, diverged, group.outcome) if other is None else holds(claim, [gain - other]))
    flat = [value for value, _ in by_value]
    spread = f"{len(flat)} values of θ: {signed(min(flat))} to {signed(max(flat))} dB above bicubic"
    return [Verdict(f"θ = {best.first['clip.theta']:g} is best of those tried", True, spread), *verdicts]


def _precision_verdict(points: Sequence[Group], tested: Sequence[Benchmark]) -> Verdict:
    claim = f"bf16 and fp32 are within {SAME} dB for each seed, on the mean over the scales"
    means: dict[tuple[str, int], float] = {}
    for group in points:
        for run in group.runs:
            gain = mean(Group((run,)), tested)
            if gain is not None:
                means[group.first.precision, run.seed] = gain
    seeds = sorted({seed for _, seed in means})
    found = [
        means["bf16-mixed", seed] - means["32-true", seed]
        for seed in seeds
        if {("bf16-mixed", seed), ("32-true", seed)} <= means.keys()
    ]
    if not found:
        return Verdict(claim, None, "no finished runs to compare")
    reach = ", ".join(signed(difference, 3) for difference in found)
    return Verdict(claim, max(map(abs, found)) <= SAME, f"bf16 against fp32: {reach} dB")


def _clip(run: Run) -> str:
    if run["clip.theta"] is not None:
        return f"by value, θ = {run['clip.theta']:g}"
    return "no clipping" if run["clip.max_norm"] is None else f"a fixed norm of {run['clip.max_norm']:g}"


def _scored_at(points: Sequence[Group]) -> Benchmark:
    """The first set and scale that any point was scored at."""
    found = benchmarks(points)
    return found[0] if found else published.RESIDUAL_SCORED


def _at(group: Group, scored: Benchmark, epoch: int) -> Figure | None:
    return group.figure(scored, share=epoch / published.EPOCHS)
