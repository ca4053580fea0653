import copy
import re
from pathlib import Path

import pytest
from PIL import Image

from vdsr import records
from vdsr.errors import InputError
from vdsr.results import markdown, published, report, runs
from vdsr.results.runs import Group, Run
from vdsr.results.section import Verdict, holds
from vdsr.results.sections import sections

SCALES = (2, 3, 4)


def make(name="depth_sweep", psnr=None, sets=("set5",), **changes):
    """A finished run's record at the paper's budget; `psnr` of (set, scale), else bicubic's plus 1 dB."""
    config = {
        "model": {"_target_": "vdsr.net.VDSR", "depth": 20, "width": 64, "residual": True},
        "data": {"train": "data/train91", "scales": [2, 3, 4], "patch": 41, "batch_size": 64, "turn": False},
        "optim": {"lr": 0.1, "optimiser": {"lr": 0.1, "momentum": 0.9}},
        "clip": {"_target_": "vdsr.clip.Adjustable", "theta": 1e-4},
        "trainer": {"max_steps": 9960, "accumulate_grad_batches": 1, "precision": "auto"},
        "paths": {"data": "data"},
        "name": name,
        "seed": 0,
    }
    record = {
        "format": 1, "name": name, "overrides": [f"+experiment={name}"], "config": config, "status": "finished",
        "steps": 9960, "seconds": 3600.0, "precision": "bf16-mixed", "commit": "0123456789abcdef",
        "hardware": {"cpu": "Abacus", "cores": 2, "threads": 2, "gpus": []},
        "data": {"train": "train91", "checksums": {"train91": "fedcba9876543210"}, "patches_per_epoch": 7992},
        "network": {"name": "VDSR", "parameters": 665921},
        "curve": [{"step": 20, "patches_per_second": 100.0}, {"step": 40, "patches_per_second": 300.0}],
        "metrics": scored(psnr or (lambda name, scale: bicubic(name, scale) + 1), sets), "validations": [],
    }  # fmt: skip
    for key, value in changes.items():
        place, *rest = key.split("__")
        target = record
        while rest:
            target, place = target[place], rest[0]
            rest = rest[1:]
        target[place] = value
    return record


def bicubic(name, scale):
    return published.psnr(name, scale, "bicubic") or 31.0


def scored(psnr, sets=("set5",), scales=SCALES):
    return {
        name: {
            f"x{scale:g}": {
                "psnr": psnr(name, scale),
                "ssim": 0.9,
                "bicubic_psnr": bicubic(name, scale),
                "bicubic_ssim": 0.8,
            }
            for scale in scales
        }
        for name in sets
    }


def unfinished(record, status="diverged", error="the loss is nan at step 40", steps=40):
    kept = {key: value for key, value in record.items() if key != "metrics"}
    return {**kept, "status": status, "error": error, "steps": steps}


def validated(record, psnr):
    """With validations at these steps: {step: PSNR at ×2}."""
    points = [
        {"step": step, "epoch": 1.0, "scores": scored(lambda *_, value=value: value)} for step, value in psnr.items()
    ]
    return {**record, "validations": points}


@pytest.fixture
def laid(tmp_path):
    def lay(*found, folder="results"):
        for number, record in enumerate(found):
            path = tmp_path / folder / record["name"] / f"{number:02}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            records.write_json(path, record)
        return tmp_path / folder

    return lay


@pytest.fixture
def read(laid):
    return lambda *found: runs.read(laid(*found))


@pytest.fixture
def section(read):
    """The only section of these records."""

    def of(*found):
        (made,) = sections(read(*found))
        return made

    return of


def verdicts(section):
    return {verdict.claim: verdict for part in section.parts for verdict in part.verdicts}


def rows(section, part=0):
    return [list(row) for row in section.parts[part].tables[0].rows]


# --- runs ---


def test_budget_and_cost(read):
    (run,) = read(make(config__trainer__max_steps=1992, config__data__batch_size=8))
    assert run.batch == 8
    assert run.share == pytest.approx(1992 * 8 / 637_440)
    assert run.patches_per_second in (100.0, 300.0)
    (twice,) = read(make(config__trainer__accumulate_grad_batches=2))
    assert (twice.batch, twice.share) == (128, 2)


def test_the_command_repeats_the_run_and_names_no_folder_of_this_machine(read):
    overrides = ["data.scales=[2,3]", "+experiment=scale_sweep", "paths.data=/here", "logger=none", "budget=paper"]
    (run,) = read(make(overrides=overrides))
    assert run.command == "python src/train.py +experiment=scale_sweep hydra.mode=RUN 'data.scales=[2,3]' budget=paper"
    (plain,) = read(make(overrides=["seed=3"]))
    assert plain.command == "python src/train.py seed=3"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (make(), "finished"),
        (make(psnr=bicubic), "finished, not beyond bicubic"),
        (unfinished(make()), "diverged: the loss is nan at step 40"),
        (unfinished(make(), "running", None, 512), "killed or still running at step 512 of 9,960"),
        (unfinished(make(), "preempted", "SIGTERM"), "preempted at step 40 of 9,960: SIGTERM"),
        (unfinished(make(), "failed", "RuntimeError: full", 0), "failed at step 0 of 9,960: RuntimeError: full"),
    ],
)
def test_a_run_is_shown_as_what_it_is(read, record, words):
    (run,) = read(record)
    assert run.outcome == words
    assert run.learnt == (words == "finished")


def test_a_single_scale_network_has_learnt_what_it_was_trained_on(read):
    (run,) = read(make(psnr=lambda _, scale: 36.0 if scale == 2 else 20.0, config__data__scales=[2]))
    assert run.outcome == "finished"


def test_validations_are_found_by_their_share_of_the_schedule(read):
    (run,) = read(validated(make(), {1245: 30.0, 2500: 31.0, 9960: 35.0}))
    assert run.at(1 / 8)["set5", 2].psnr == 30.0
    assert run.at(1 / 4)["set5", 2].psnr == 31.0  # 10 steps off
    assert run.at(1 / 2) == {}
    assert run.at(1)["set5", 2].psnr == bicubic("set5", 2) + 1  # the final score, not a validation's
    assert run.curve(("set5", 2)) == [(0.125, 30.0), (2500 / 9960, 31.0), (1.0, 35.0)]


def test_what_is_not_a_number_is_no_figure(read, laid):
    record = make()
    record["metrics"]["set5"]["x3"]["psnr"] = float("nan")
    (run,) = read(record)
    assert set(run.scores) == {("set5", 2), ("set5", 4)}
    path = next(laid(make()).rglob("*.json"))
    path.write_text(path.read_text().replace('"psnr": 34.66', '"psnr": NaN'))  # as other tools write it
    assert set(runs.read(path.parent)[0].scores) == {("set5", 3), ("set5", 4)}


# --- groups and series ---


def test_seeds_are_one_group_with_a_deviation_from_three_on(read):
    three = [make(psnr=lambda *_, value=value: value, config__seed=seed) for seed, value in enumerate((36, 37, 38))]
    ((group,),) = runs.series(read(*three), "model.depth")
    assert group.figure(("set5", 2)) == (37, 1, 3)
    assert Group(group.runs[:2]).figure(("set5", 2)) == (36.5, None, 2)


def test_only_what_was_swept_may_differ_within_a_series(read):
    base = [make(config__model__depth=depth) for depth in (20, 5)]
    other = [
        make(config__trainer__max_steps=498),
        make(config__optim__lr=0.01),
        make(data__checksums={"train91": "other"}),
        make(precision="32-true"),
    ]
    alike = make(config__model__depth=10, config__paths__data="/elsewhere", config__data__train="/elsewhere/train91")
    found = runs.series(read(*base, *other, alike), "model.depth")
    depths = [[group.first["model.depth"] for group in points] for points in found]
    assert sorted(depths) == [[5, 10, 20], [20], [20], [20], [20]]
    assert found[-1][0].first.planned == 498  # the most training first


def test_a_point_that_failed_before_it_had_data_stays_with_the_others(read):
    lost = unfinished(make(config__model__depth=5, precision="auto"), "failed", "no memory", 0)
    for key in ("data", "network", "precision", "hardware"):
        del lost[key]
    (points,) = runs.series(read(lost, make()), "model.depth")
    assert [group.outcome for group in points] == ["failed at step 0 of 9,960: no memory", "finished"]


def test_the_order_of_the_files_does_not_matter(laid):
    found = [make(config__model__depth=depth, config__seed=seed) for depth in (5, 10) for seed in (0, 1)]
    a, b = (sections(runs.read(folder)) for folder in (laid(*found, folder="a"), laid(*found[::-1], folder="b")))
    assert [part.tables for section in a for part in section.parts] == [p.tables for s in b for p in s.parts]


# --- sections: with the paper's own figures as ours, every difference is nothing ---


def test_table_3(section):
    keys = ("set5", "set14", "b100")
    ours = {
        name: make(name, lambda *key, method=method: published.psnr(*key, method), keys, network={"name": method})
        for name, method in (("paper", "VDSR"), ("srcnn", "SRCNN"))
    }
    ours["srcnn"]["config"]["model"] = {"_target_": "vdsr.net.SRCNN"}
    made = section(*ours.values())
    table = {row[0]: row[1:] for row in rows(made)}
    assert table["Set5 ×2"][2] == "ours 37.53 / 0.9000\npaper 37.53 / 0.9587 (+0.00 / -0.0587)"
    assert table["Set14 ×3"][1] == "ours 29.28 / 0.9000\npaper 29.28 / 0.8209 (+0.00 / +0.0791)"
    assert table["Urban100 ×4"][2] == "ours –\npaper 25.18 / 0.7524"  # not measured, not left out
    assert table["trained with"][2] == "100 % of the paper's patches (9,960 × 64)\nseed 0"
    found = [(verdict.holds, verdict.by) for verdict in verdicts(made).values()]
    assert found == [
        (True, "largest difference 0.000 dB over 9 figures"),
        (True, "9 of 9, +0.39 to +0.91 dB"),
        (True, "9 of 9, +0.39 to +0.91 dB"),
        (True, "9 of 9, +0.00 dB"),
    ]


def single_scale(scale, seed=0, off=0.0, method="SRCNN", **changes):
    """A network of one scale, scored there only."""
    model = {"_target_": f"vdsr.net.{method}"}
    metrics = scored(lambda *key: published.psnr(*key, method) - off, ("set5", "set14"), [scale])
    record = make(
        "srcnn", network={"name": method}, metrics=metrics, config__model=model, config__data__scales=[scale],
        config__trainer__max_steps=3320, config__seed=seed,
    )  # fmt: skip
    record["config"]["data"] |= {"test_scales": [scale]}
    record["config"] |= changes
    return record


def test_networks_of_one_scale_each_are_one_row(section):
    made = section(*(single_scale(scale) for scale in (4, 2, 3)))
    beside = {row[0]: row[2] for row in rows(made)}
    assert beside["trained with"] == "3 networks, each with 33 % of the paper's patches (3,320 × 64)\nseed 0"
    assert beside["Set5 ×2"].startswith("ours 36.66 / ")
    assert beside["Set14 ×4"].startswith("ours 27.49 / ")
    (row,) = rows(made, 1)
    assert row[0] == "SRCNN, one a scale"
    assert row[2:4] == ["36.66 (36.66, +0.00)", "32.75 (32.75, +0.00)"]
    assert row[-2:] == ["100 % of the paper's patches", "finished"]


def test_seeds_of_networks_of_one_scale_each(section):
    found = [single_scale(scale, seed, off=0.1 * seed) for scale in (2, 3, 4) for seed in (0, 1, 2)]
    (row,) = rows(section(*found), 1)
    assert row[2] == "36.56 ± 0.10 (36.66, -0.10)"
    assert row[-1] == "finished, 3 seeds"


def test_seeds_of_one_of_the_networks(section):
    found = [single_scale(2, seed) for seed in (0, 1, 2)] + [single_scale(scale) for scale in (3, 4)]
    (row,) = rows(section(*found), 1)
    assert row[-1] == "finished, 1 to 3 seeds"


def test_each_network_of_one_scale_says_how_it_ended(section):
    (row,) = rows(section(single_scale(2), single_scale(3), unfinished(single_scale(4))))
    assert row[0] == "SRCNN, one a scale"  # without ×4 it is not put beside the paper's
    ended = ["finished", "finished", "diverged: the loss is nan at step 40"]
    assert row[-1].split("\n") == [f"seed 0 at ×{scale}: {how}" for scale, how in zip((2, 3, 4), ended, strict=True)]


def test_other_schedules_of_one_scale_are_other_networks(section):
    other = {"optim": {"lr": 0.1, "optimiser": {"lr": 0.1, "momentum": 0.9}, "schedule": {"T_max": 3320}}}
    made = section(*(single_scale(scale) for scale in (2, 3, 4)), single_scale(2, off=4, **other))
    assert sorted(row[2] for row in rows(made, 1)) == ["32.66 (36.66, -4.00)", "36.66 (36.66, +0.00)"]


def test_a_network_for_all_scales_keeps_its_row(section):
    everywhere = {"config__data__val_scales": [2, 3, 4], "config__trainer__max_steps": 3320}
    half, broken = (make("paper", config__data__scales=[scale], **everywhere) for scale in (2, 3))
    made = section(make("paper"), *(single_scale(scale) for scale in (2, 3, 4)), half, unfinished(broken))
    assert [row[0] for row in rows(made, 1)] == ["VDSR", "SRCNN, one a scale", "VDSR", "VDSR"]


def test_srcnn_beside_vdsr_is_the_better_with_as_many_patches(section):
    vdsr, worse = (
        make("paper", lambda *key, off=off: published.psnr(*key, "VDSR") - off, ("set5", "set14")) for off in (0, 3)
    )
    worse["config"]["model"], worse["network"] = {"_target_": "vdsr.net.SRCNN"}, {"name": "SRCNN"}
    made = section(vdsr, worse, *(single_scale(scale) for scale in (2, 3, 4)))
    assert {row[0]: row[2] for row in rows(made)}["Set5 ×2"].startswith("ours 36.66 / ")
    assert "VDSR is above SRCNN, both ours, at every set and scale" in verdicts(made)  # no word of another budget


def test_vdsr_of_one_scale_each_is_not_the_papers_network(section):
    made = section(make("paper"), *(single_scale(scale, method="VDSR") for scale in (2, 3, 4)))
    assert {row[0]: row[3] for row in rows(made)}["trained with"].startswith(
        "100 % of the paper's patches (9,960 × 64)"
    )
    assert [row[0] for row in rows(made, 1)] == ["VDSR", "VDSR, one a scale"]


def test_table_3_takes_the_best_network_and_keeps_the_misses(section):
    best, miss = (make("paper", lambda *key, off=off: published.psnr(*key, "VDSR") - off) for off in (0.1, 0.6))
    miss["config"]["trainer"]["max_steps"] = 498
    made = section(miss, best)
    assert verdicts(made)["VDSR reaches the paper's VDSR at every set and scale"].by == "0 of 3, -0.10 dB"
    every = rows(made, 1)
    assert [row[2] for row in every] == ["37.43 (37.53, -0.10)", "36.93 (37.53, -0.60)"]
    assert [row[-2] for row in every] == ["100 % of the paper's patches", "5 % of the paper's patches"]


def test_table_1(section):
    shares = {10: 1245, 20: 2490, 40: 4980}
    found = []
    for residual, lr in ((True, 0.1), (False, 0.1), (True, 0.01), (False, 0.01)):
        figures = published.RESIDUAL[residual]
        final = figures[80]
        record = make("residual_ablation", lambda *_, value=final: value, config__data__scales=[2])
        record["config"]["model"]["residual"], record["config"]["optim"]["lr"] = residual, lr
        found.append(validated(record, {step: figures[epoch] for epoch, step in shares.items()}))
    found[3] = unfinished(found[3])
    made = section(*found)
    assert rows(made)[0][2:6] == [f"{p:.2f} ({p:.2f}, +0.00)" for p in published.RESIDUAL[True].values()]
    assert rows(made)[1][:4] == ["0.1", "plain", "27.42 (27.42, +0.00)", "19.59 (19.59, +0.00)"]
    assert rows(made)[2][2] == "36.90"  # the paper's table has γ₀ = 0.1 only
    assert rows(made)[3][5:] == ["–", "100 % of the paper's patches", "diverged: the loss is nan at step 40"]
    said = list(verdicts(made).values())
    assert said[0].by == "+1.39 dB"
    assert said[1].by == "6 of 6, +5.74 to +17.05 dB"
    assert said[2] == Verdict(
        "Residual trains at γ₀ = 0.01, where plain does not", True, "plain diverged: the loss is nan at step 40"
    )


def test_table_2(section):
    found = [
        make(
            "scale_sweep",
            lambda _, scale, f=figures: f[scale],
            config__data__scales=list(scales),
            config__trainer__max_steps=round(steps * len(scales) / 3),
            config__optim__schedule={"steps": round(steps * len(scales) / 3)},
        )
        for steps in (9960, 1000)
        for scales, figures in published.SCALE_SETS.items()
    ]
    made = section(*found[::-1])
    assert [part.title for part in made.parts] == [
        "100 % of the paper's patches (9,960 × 64), on train91",
        "10 % of the paper's patches (1,000 × 64), on train91",
    ]
    assert [row[0] for row in rows(made)] == ["{2}", "{3}", "{4}", "{2, 3}", "{2, 4}", "{3, 4}", "{2, 3, 4}", "bicubic"]
    assert rows(made)[1][1:4] == ["30.05 (30.05, +0.00)", "32.89 (32.89, +0.00)", "28.73 (28.73, +0.00)"]
    assert rows(made)[-1][1:4] == ["33.66", "30.39", "28.42"]
    foreign, level = verdicts(made).values()
    assert (foreign.holds, foreign.by) == (False, "4 of 6, at most +0.31 dB (paper: 4 of 6, at most +0.31 dB)")
    assert (level.holds, level.by) == (True, "3 of 3, at most +0.04 dB (paper: 3 of 3, at most +0.04 dB)")


def test_a_network_that_has_not_learnt_proves_nothing_of_foreign_scales(section):
    made = section(make("scale_sweep", lambda *_: 10.0, config__data__scales=[2]))
    assert [verdict.holds for verdict in verdicts(made).values()] == [None, None]


@pytest.mark.parametrize(("deepest", "held"), [(37.3, (True, True)), (37.05, (True, False)), (36.9, (False, False))])
def test_figure_3(section, deepest, held):
    psnr = {5: 37.0, 10: 37.1, 20: deepest}
    made = section(*(make(psnr=lambda *_, d=d: psnr[d], config__model__depth=d) for d in (20, 10, 5)))
    assert [row[:2] for row in rows(made)] == [["5", "37.00"], ["10", "37.10"], ["20", f"{deepest:.2f}"]]
    whole, steps = verdicts(made).values()
    assert (whole.holds, steps.holds) == held
    assert whole.by.endswith(f"{deepest - 37:+.2f} dB")


def test_theta_against_a_norm_and_none(section):
    gains = {1e-5: 0.4, 1e-4: 1.0, 1e-3: None}
    found = []
    for theta, gain in gains.items():
        record = make("theta_sweep", lambda *key, gain=gain: bicubic(*key) + (gain or 0), config__clip__theta=theta)
        found.append(record if gain else unfinished(record))
    norm = make("clip_ablation", lambda *key: bicubic(*key) + 0.7)
    norm["config"]["clip"] = {"_target_": "vdsr.clip.Norm", "max_norm": 0.4}
    none = unfinished(make("clip_ablation"))
    none["config"]["clip"] = {"_target_": "vdsr.clip.Unclipped"}
    made = section(none, norm, *found)
    assert [(row[0], row[4], row[6]) for row in rows(made)] == [
        ("by value, θ = 1e-05", "+0.40", "finished"),
        ("by value, θ = 0.0001", "+1.00", "finished"),
        ("by value, θ = 0.001", "–", "diverged: the loss is nan at step 40"),
        ("a fixed norm of 0.4", "+0.70", "finished"),
        ("no clipping", "–", "diverged: the loss is nan at step 40"),
    ]
    best, above_norm, above_none = verdicts(made).values()
    assert best.claim == "θ = 0.0001 is best of those tried"
    assert (above_norm.holds, above_norm.by) == (True, "+0.30 dB")
    assert (above_none.holds, above_none.by) == (True, "diverged: the loss is nan at step 40")


def test_scales_in_between(section):
    record = make("fractional", config__data__scales=[2, 3, 4])
    record["metrics"] = scored(lambda _, scale: 31.0 + (0.5 if scale != 3.5 else -0.1), scales=(1.5, 2.5, 3.5))
    made = section(record)
    assert rows(made)[0][:4] == ["VDSR, {2, 3, 4}", "31.50 (+0.50)", "31.50 (+0.50)", "30.90 (-0.10)"]
    (verdict,) = verdicts(made).values()
    assert (verdict.holds, verdict.by) == (False, "2 of 3, -0.10 to +0.50 dB")


def test_precision_seed_by_seed(section):
    found = []
    for seed in range(3):
        for precision, psnr in (("32-true", 37 + seed), ("bf16-mixed", 37 + seed - 0.01 * seed)):
            record = make("precision", lambda *_, value=psnr: value, precision=precision, config__seed=seed)
            record["config"]["trainer"]["precision"] = precision
            found.append(record)
    made = section(*found)
    assert [row[:2] for row in rows(made)] == [["32-true", "38.00 ± 1.00"], ["bf16-mixed", "37.99 ± 0.99"]]
    (verdict,) = verdicts(made).values()
    assert (verdict.holds, verdict.by) == (True, "bf16 against fp32: +0.000, -0.010, -0.020 dB")


def test_every_run_is_listed_once(read):
    names = ["paper", "srcnn", "depth_sweep", "theta_sweep", "clip_ablation", "precision", "scale_sweep", "smoke", "x"]
    found = read(*map(make, [*names, "residual_ablation"]))
    listed = [run.path for section in sections(found) for run in section.runs]
    assert sorted(listed) == sorted(run.path for run in found)


def test_other_experiments_have_a_row_each(section):
    made = section(make("a"), make("b"), make("b", config__seed=1))
    assert [(row[0], row[-1]) for row in rows(made)] == [("a", "finished"), ("b", "finished, 2 seeds")]


def test_two_budgets_are_two_parts(section):
    made = section(make(), make(config__trainer__max_steps=498), make(config__optim__lr=0.01))
    assert [part.title for part in made.parts] == [
        "100 % of the paper's patches (9,960 × 64), on train91; optim.lr 0.1",
        "100 % of the paper's patches (9,960 × 64), on train91; optim.lr 0.01",
        "5 % of the paper's patches (498 × 64), on train91",
    ]
    assert [picture.file for part in made.parts for picture in part.pictures] == [
        "depth.png",
        "depth-2.png",
        "depth-3.png",
    ]


def test_a_claim_without_figures_is_not_said_to_hold():
    assert holds("so it is", []) == Verdict("so it is", None, "no finished runs to compare")
    assert holds("so it is", [0.0]).holds is False
    assert holds("so it is", [-0.001]).by == "+0.00 dB"


# --- the document ---


def test_kernels_other_than_pytorchs_are_told(laid, tmp_path):
    runs = [make(config__model__depth=depth, kernels=kernels) for depth, kernels in ((5, "AMX"), (20, "PyTorch"))]
    report.write(laid(*runs), tmp_path / "RESULTS.md", tmp_path / "pictures")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text.count("| bf16-mixed, AMX kernels |") == text.count("| bf16-mixed |") == 1


def test_the_document_and_its_pictures(laid, tmp_path):
    folder = laid(*(make(config__model__depth=depth) for depth in (5, 20)))
    out, pictures = tmp_path / "RESULTS.md", tmp_path / "docs" / "results"
    report.write(folder, out, pictures)
    text = out.read_text(encoding="utf-8")
    assert "from the run records in `results`" in text
    assert "![PSNR against depth](docs/results/depth.png)" in text
    row = re.findall(r"^\| finished \| 9,960 steps × 64: 100 % of the paper's patches .*$", text, re.MULTILINE)[0]
    assert [cell.strip() for cell in row.split("|")[3:10]] == [
        "train91 fedcba98",
        "0",
        "bf16-mixed",
        "Abacus, 2 cores",
        "3,600",
        "100",
        "01234567",
    ]
    assert "`python src/train.py +experiment=depth_sweep hydra.mode=RUN`" in text
    with Image.open(pictures / "depth.png") as picture:
        picture.load()
        assert 700 < picture.width < 1000
        assert len(picture.convert("L").getcolors()) > 10
    before = out.read_bytes()
    report.write(folder, out, pictures)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json") == [
        "RESULTS.md",
        "depth.png",
    ]


@pytest.mark.parametrize("name", ["<script>alert(1)<script>", "a|b", "`rm`", "[x](y)", "*bold*", "a\nb", "![x](y.png)"])
def test_any_name_shows_as_text(name):
    text, plain = (
        markdown.render(sections([Run({**make(), "name": n}, Path("0.json"))]), "results", "pictures")
        for n in (name, "plain")
    )
    assert f"| {markdown.escape(name)} | VDSR |" in text
    assert text.replace(markdown.escape(name), "plain") == plain


def test_a_command_shows_as_code_and_stays_in_its_cell(read):
    found = read(make(overrides=["data.train=a|b`c"]))
    line = next(line for line in markdown.render(sections(found), "r", "p").splitlines() if "src/train.py" in line)
    assert line.endswith(r"| `` python src/train.py 'data.train=a\|b`c' `` |")


def test_escaping():
    assert markdown.escape("a_b|c <i>*x*</i>\ny") == r"a\_b\|c &lt;i&gt;\*x\*&lt;/i&gt;<br>y"


def test_without_records_the_document_says_so(tmp_path):
    (tmp_path / "results").mkdir()
    assert report.write(tmp_path / "results", tmp_path / "RESULTS.md", tmp_path / "pictures") == []
    assert "No run has been recorded yet." in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert not (tmp_path / "pictures").exists()


# --- records that are refused ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text(path.read_text()[:300]), "a damaged one"),
        (lambda path: path.write_text("[]"), "a damaged one"),
        (lambda path: records.write_json(path, make(format=2)), "format 2 is newer"),
        (lambda path: records.write_json(path, without("validations")), "without validations, of an older version"),
        (lambda path: records.write_json(path, without("metrics", "network")), "without metrics, network"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_and_nothing_is_written(laid, tmp_path, change, words):
    folder = laid(make(), make())
    path = sorted(folder.rglob("*.json"))[1]
    change(path)
    with pytest.raises(InputError) as caught:
        report.write(folder, tmp_path / "RESULTS.md", tmp_path / "pictures")
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results"]


def without(*keys):
    return {key: value for key, value in make().items() if key not in keys}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder of run records; name it with records=DIR"):
        runs.read(tmp_path / "none")


def test_a_run_folder_is_read_by_its_records_alone(laid, tmp_path):
    folder = laid(make())
    kept = copy.deepcopy(make())
    (folder / "run" / "wandb").mkdir(parents=True)
    records.write_json(folder / "run" / "record.json", kept)
    (folder / "run" / "wandb" / "summary.json").write_text("{}")
    (found,) = runs.read(folder)
    assert isinstance(found, Run)
    assert found.path == folder / "run" / "record.json"
