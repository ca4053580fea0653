"""Every option and experiment in conf/ composes and builds what it says; a mistyped one is refused."""

import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from vdsr import clip
from vdsr.cli import register_resolvers
from vdsr.data import SuperResolutionData
from vdsr.muon import Muon

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def options(group):
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def composed(*overrides, config="train", with_hydra=False):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, list(overrides), return_hydra_config=with_hydra)


def optimised(cfg):
    """The optimiser of one parameter, and its schedule."""
    optimiser = instantiate(cfg.optim.optimiser)([torch.nn.Parameter(torch.zeros(3))])
    return optimiser, instantiate(cfg.optim.schedule)(optimiser)


# --- groups ---


def test_every_group_is_looked_at_here():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    elsewhere = {"dataset", "hydra", "sweep"}  # how images are prepared, how Hydra logs, W&B's sweeps
    assert groups - elsewhere == {
        "budget", "clip", "data", "experiment", "logger", "model", "optim", "paths", "trainer",
    }  # fmt: skip


def test_networks():
    specs = {option: instantiate(composed(f"model={option}").model).spec() for option in options("model")}
    assert specs == {
        "vdsr": {"name": "VDSR", "depth": 8, "width": 64, "residual": True},
        "srcnn": {"name": "SRCNN"},
        "bicubic": {"name": "Bicubic"},
    }


def test_clips():
    clips = {option: instantiate(composed(f"clip={option}").clip) for option in options("clip")}
    assert {option: (type(c), c.bound(0.1)) for option, c in clips.items()} == {
        "adjustable": (clip.Adjustable, pytest.approx(1e-3)),
        "norm": (clip.Norm, 0.4),
        "none": (clip.Unclipped, float("inf")),
    }


@pytest.mark.parametrize(
    ("option", "train", "val", "turn"),
    [
        ("sample", "sample", "sample_val", True),
        ("train91", "train91", "set5", False),
        ("train291", "train291", "set5", True),
        ("folder", "mine", "sample_val", True),
    ],
)
def test_data(prepare, noise, tmp_path, option, train, val, turn):
    prepare(tmp_path / train, {f"t{seed}": noise(seed, 96, 96) for seed in range(2)})
    prepare(tmp_path / val, {"v": noise(9, 48, 48)})
    own = [f"data.train={tmp_path}/mine"] if option == "folder" else []
    data = instantiate(composed(f"data={option}", f"paths.data={tmp_path}", *own, "seed=3").data)
    assert isinstance(data, SuperResolutionData)
    assert (data.train_shards.name, [s.name for s in data.val_shards]) == (train, [val])
    assert [s.name for s in data.test_shards] == [val]
    assert (data.scales, data.val_scales, data.patch, data.batch_size) == ((2, 3, 4), (2, 3, 4), 41, 16)
    assert (data.plan.turn, data.plan.seed) == (turn, 3)


def test_data_that_has_to_be_named():
    assert options("data") == {"base", "sample", "train91", "train291", "folder"}
    for option in ("base", "folder"):  # base: what the others have in common
        with pytest.raises(MissingMandatoryValue, match="train"):
            _ = composed(f"data={option}").data.train


def test_optimisers():
    assert options("optim") == {"sgd", "cosine", "adam", "muon"}
    optimiser, _ = optimised(composed("optim=sgd"))
    assert isinstance(optimiser, torch.optim.SGD)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    assert (group["nesterov"], group["dampening"]) == (False, 0)


def test_a_cosine_falls_to_nothing_over_the_steps():
    optimiser, schedule = optimised(composed("optim=cosine", "trainer.max_steps=100"))
    assert isinstance(optimiser, torch.optim.SGD)
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("budget", sorted(options("budget")))
def test_srcnn_is_trained_by_adam_at_each_budget(budget):
    cfg = composed("+experiment=srcnn", f"budget={budget}", "data.scales=[3]", "budget.steps=300")
    optimiser, schedule = optimised(cfg)
    assert isinstance(optimiser, torch.optim.Adam)
    assert isinstance(instantiate(cfg.clip), clip.Unclipped)
    assert (list(cfg.data.scales), list(cfg.data.test_scales), cfg.trainer.max_steps) == ([3], [3], 100)
    rates = []
    for _ in range(cfg.trainer.max_steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[0] < 1e-4  # of more its second layer would die at once
    assert max(rates) == rates[29] == pytest.approx(1e-3)
    assert rates[-1] < 1e-5


@pytest.mark.parametrize("budget", ["full", "twentieth"])
def test_budgets_of_small_steps_take_a_cosine_unless_told_otherwise(budget):
    for overrides in ([], ["+experiment=paper"]):
        optimiser, schedule = optimised(composed(*overrides, f"budget={budget}", "trainer.max_steps=10"))
        assert isinstance(optimiser, torch.optim.SGD)
        assert isinstance(schedule, torch.optim.lr_scheduler.CosineAnnealingLR)
        assert "factor" in composed(*overrides, f"budget={budget}", "optim=sgd").optim.schedule


def test_muon():
    optimiser, schedule = optimised(composed("optim=muon", "budget=full", "trainer.max_steps=10"))
    assert isinstance(optimiser, Muon)
    assert [group["lr"] for group in optimiser.param_groups] == [0.005]
    assert schedule.T_max == 10


@pytest.mark.parametrize("option", ["default"])
def test_trainers(option):
    assert options("trainer") == {"default"}
    settings = set(composed(f"trainer={option}").trainer)
    ours = {"kernels", "chunk", "compile", "validations", "checkpoint_every"}
    assert settings - ours <= set(inspect.signature(pl.Trainer).parameters)
    assert "gradient_clip_val" not in settings  # clipping is the task's


def test_loggers():
    found = {option: composed(f"logger={option}").logger for option in options("logger")}
    assert {option: set(loggers or {}) for option, loggers in found.items()} == {
        "default": {"wandb", "tensorboard"},
        "wandb": {"wandb"},
        "tensorboard": {"tensorboard"},
        "none": set(),
    }
    for loggers in found.values():
        for logger in (loggers or {}).values():
            settings = {key: value for key, value in OmegaConf.to_container(logger).items() if key != "_target_"}
            inspect.signature(get_method(logger._target_)).bind(Path(), {}, **settings)


def test_budgets():
    assert options("budget") == {"quick", "twentieth", "paper", "full"}
    for option in options("budget"):
        cfg = composed(f"budget={option}")
        budget = cfg.budget
        assert budget.name == option
        assert (cfg.model.depth, cfg.data.batch_size) == (budget.depth, budget.batch_size)
        assert (cfg.trainer.max_steps, cfg.trainer.validations) == (budget.steps, budget.validations)
        assert set(budget) == set(composed().budget)


def test_the_paper_budget_is_the_papers_schedule():
    cfg = composed("budget=paper")
    assert (cfg.trainer.max_steps, cfg.data.batch_size, cfg.model.depth, cfg.model.width) == (9960, 64, 20, 64)
    optimiser, schedule = optimised(cfg)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    drops = {}
    for step in range(1, 9961):
        before = group["lr"]
        optimiser.step()
        schedule.step()
        if group["lr"] != before:
            drops[step] = group["lr"]
    assert drops == {2490: pytest.approx(1e-2), 4980: pytest.approx(1e-3), 7470: pytest.approx(1e-4)}


# --- experiments ---

SWEEPS = {
    "depth_sweep": {"model.depth": [5, 10, 15, 20]},
    "theta_sweep": {"clip.theta": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]},
    "scale_sweep": {"data.scales": [[2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4]]},
    "srcnn": {"data.scales": [[2], [3], [4]]},
    "residual_ablation": {"model.residual": [True, False], "optim.lr": [0.1, 0.01, 0.001]},
    "clip_ablation": {"clip": ["none", "norm"]},
    "precision": {"seed": [0, 1, 2], "trainer.precision": ["32-true", "bf16-mixed"]},
}


def sweep(name):
    """What an experiment sweeps over: key or group → the values as overrides."""
    params = composed(f"+experiment={name}", with_hydra=True).hydra.sweeper.params or {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    return {o.get_key_element(): [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] for o in parsed}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_its_question(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    said = [match.groups() for line in header if (match := re.match(r"# (\w+): +(\S.*)", line))]
    assert [word for word, _ in said] == ["Question", "Command", "Cost", "Expect"]
    assert dict(said)["Command"].startswith(f"python src/train.py +experiment={name}")
    assert composed(f"+experiment={name}").name == name


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("budget", sorted(options("budget")))
def test_every_point_of_an_experiment_builds(name, budget):
    swept = sweep(name)
    keys, found = list(swept), []
    plain = composed(f"+experiment={name}")
    for key in keys:
        assert OmegaConf.select(plain, key) is not None
    for point in itertools.product(*swept.values()):
        cfg = composed(f"+experiment={name}", f"budget={budget}", *point)
        OmegaConf.to_container(cfg.trainer, resolve=True)
        picked = dict(override.split("=", 1) for override in point)
        found.append(tuple(picked[key] if key == "clip" else OmegaConf.select(cfg, key) for key in keys))
        instantiate(cfg.clip)
        network = instantiate(cfg.model)
        assert all(getattr(network, key) == cfg.model[key] for key in ("depth", "residual") if key in cfg.model)
        optimised(cfg)
        # where training ends shows only at its end
        single = name not in SWEEPS or name in ("precision", "srcnn")
        steps = cfg.budget.steps if single else cfg.budget.point_steps
        share = len(cfg.data.scales) / 3 if "data.scales" in SWEEPS.get(name, {}) else 1
        assert name == "smoke" or cfg.trainer.max_steps == round(steps * share)
    expected = SWEEPS.get(name, {})
    assert keys == list(expected)
    assert found == list(itertools.product(*expected.values()))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_only_a_sweep_sweeps_by_itself(name):
    assert set(SWEEPS) <= set(EXPERIMENTS)
    mode = composed(f"+experiment={name}", with_hydra=True).hydra.mode
    assert (mode == RunMode.MULTIRUN) == (name in SWEEPS)


def test_one_point_of_a_sweep():
    cfg = composed("+experiment=depth_sweep", "hydra.mode=RUN", "model.depth=10", with_hydra=True)
    assert (cfg.hydra.mode, cfg.model.depth) == (RunMode.RUN, 10)


def test_the_ablation_is_at_scale_2():
    assert composed("+experiment=residual_ablation").data.scales == [2]


def test_the_scale_sweep_is_scored_at_every_scale():
    cfg = composed("+experiment=scale_sweep", "data.scales=[3]")
    assert (cfg.data.scales, cfg.data.val_scales) == ([3], [2, 3, 4])


@pytest.mark.parametrize(("scales", "steps"), [("[4]", 3320), ("[2,3]", 6640), ("[2,3,4]", 9960)])
def test_each_scale_set_is_trained_for_as_many_epochs(scales, steps):
    cfg = composed("+experiment=scale_sweep", "budget=paper", f"data.scales={scales}")
    assert (cfg.trainer.max_steps, cfg.optim.schedule.steps) == (steps, steps)


def test_the_paper():
    cfg = composed("+experiment=paper")
    assert (cfg.model.depth, cfg.trainer.max_steps, cfg.data.batch_size, cfg.data.turn) == (20, 9960, 64, True)
    assert (cfg.data.train, cfg.data.val) == ("data/train291", ["data/set5"])
    assert cfg.data.test == ["data/set5", "data/set14", "data/b100"]
    assert composed("+experiment=paper", "budget=quick", "data=sample").model.depth == 8  # the command line wins


# --- the commands themselves ---

SCRIPTS = {
    "src/train.py": ["budget: ", "model: ", "data: ", "optim: ", "clip: ", "trainer: ", "logger: ", *EXPERIMENTS],
    "src/evaluate.py": ["weights=", "model=bicubic", "sets=", "scales=", "out=", "per_image=", "pictures="],
    "src/report.py": ["records=", "out=", "pictures=", "page=", "sets=", "serve=", "crops=", "vdsr=", "srcnn="],
    "src/reproduce.py": ["budget=", "source=", "commands=", "jobs=", "results=", "paths.runs="],
    "src/dashboard.py": ["project=", "entity=", "sets=", "dry_run=", "out="],
    "src/convert.py": ["source=", "out=", "peak=", "residual="],
    "src/upscale.py": [
        "input=",
        "output=",
        "scale=",
        "weights=",
        "format=",
        "codec=",
        "memory=",
        "ensemble=",
        "overwrite=",
    ],
    "src/demo.py": ["weights=", "memory=", "port="],
    "src/export.py": ["weights=", "format=onnx", "torch_export", "output=", "overwrite="],
    "data_prep/prepare.py": ["dataset=", "source=", "name=", "overwrite=", "min_size=", "paths.data="],
    "data_prep/verify.py": ["path="],
}


@pytest.fixture
def process(tmp_path):
    """Run a script in a process of its own, in an empty folder that must stay empty."""

    def run(script, *arguments, flags=()):
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        command = [sys.executable, *flags, str(ROOT / script), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_page_for_people(process, script):
    done = process(script, "--help")
    assert done.returncode == 0
    assert f"python {script}" in done.stdout
    assert [word for word in SCRIPTS[script] if word not in done.stdout] == []
    assert "powered by hydra" not in done.stdout.lower()
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["+experiment=depth_sweep", "--cfg", "job"]])
@pytest.mark.parametrize("script", ["src/train.py", "src/evaluate.py"])
def test_looking_does_not_wait_for_torch(process, script, arguments):
    if script == "src/evaluate.py":
        arguments = [argument for argument in arguments if not argument.startswith("+")]
    done = process(script, *arguments, flags=["-X", "importtime"])
    assert done.returncode == 0
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert {"hydra", "vdsr.cli"} <= imported
    assert imported & {"torch", "pytorch_lightning", "wandb", "matplotlib", "webdataset"} == set()


def test_cfg_job_prints_the_configuration(process):
    done = process("src/train.py", "+experiment=depth_sweep", "model.width=48", "--cfg", "job")
    assert OmegaConf.create(done.stdout) == composed("+experiment=depth_sweep", "model.width=48")


@pytest.mark.parametrize(
    ("script", "override", "nearest"),
    [
        ("src/train.py", "modle.depth=3", "model"),
        ("src/train.py", "model.dpeth=3", "depth"),
        ("src/train.py", "trainer.max_step=3", "max_steps"),
        ("src/train.py", "data.scale=[2]", "scales"),
        ("src/train.py", "model=vdrs", "vdsr"),
        ("src/train.py", "+experiment=depht_sweep", "depth_sweep"),
        ("src/train.py", "budget=papr", "paper"),
        ("src/evaluate.py", "wieghts=x.safetensors", "weights"),
        ("src/evaluate.py", "model=bicubc", "bicubic"),
        ("data_prep/prepare.py", "sourc=images", "source"),
        ("data_prep/prepare.py", "dataset=tran291", "train291"),
        ("data_prep/verify.py", "pth=data", "path"),
    ],
)
def test_a_mistyped_name_is_refused_with_the_nearest(process, script, override, nearest):
    done = process(script, override)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: [^\n]*\(did you mean '{nearest}'\?\)\n", done.stderr), done.stderr


def test_a_sweep_with_a_mistyped_name_does_not_begin(process):
    done = process("src/train.py", "+experiment=depth_sweep", "budget=papr")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]*\(did you mean 'paper'\?\)\n", done.stderr), done.stderr


def test_an_unknown_group_is_refused_with_the_nearest(process):
    done = process("src/train.py", "optm=sgd")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]*optm[^\n]*\(did you mean 'optim'\?\)\n", done.stderr), done.stderr
