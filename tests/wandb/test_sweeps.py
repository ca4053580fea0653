"""Sweeps as W&B's own commands run them: each file of conf/sweep, its parameters, and what becomes of its points."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf
from sweeps import next_run
from sweeps.config import schema_violations_from_proposed_config

from tests.wandb.test_runs import AFTER_A_STEP
from vdsr.cli import register_resolvers

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "conf/sweep").glob("*.yaml"))
MACROS = ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
# where each parameter may be
LIMITS = {"model.depth": (5, 20), "clip.theta": (1e-5, 1e-3), "optim.lr": (0.01, 0.3)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def sweep(request):
    return yaml.safe_load(request.param.read_text())


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def test_the_sweeps():
    assert [path.stem for path in FILES] == ["bayes", "depth", "scales", "theta"]


def test_a_file_is_what_wandb_expects(sweep):
    assert schema_violations_from_proposed_config(sweep) == []
    assert sweep["metric"] == {"name": "val/psnr_best", "goal": "maximize"}
    assert [word for word in sweep["command"] if word.startswith("$")] == MACROS
    assert sweep["program"] == "src/train.py"
    assert schema_violations_from_proposed_config(sweep | {"parametres": {}}) != []


def test_each_parameter_is_one_of_ours_and_its_points_build(sweep):
    fixed = [word for word in sweep["command"] if not word.startswith("$")]
    plain = composed(*fixed)
    assert plain.hydra.mode != RunMode.MULTIRUN
    for key in sweep["parameters"]:
        assert OmegaConf.select(plain, key) is not None, key
    points = []
    for _ in range(7 if sweep["method"] == "grid" else 3):
        point = next_run(sweep, points)
        if point is None:
            break
        point.state = "finished"
        points.append(point)
        values = {key: entry["value"] for key, entry in point.config.items()}
        cfg = composed(*fixed, *(f"{key}={value}" for key, value in values.items()))  # as ${args_no_hyphens} has it
        for key, value in values.items():
            assert OmegaConf.select(cfg, key) == value
            low, high = LIMITS.get(key, (value, value))
            assert low <= value <= high
    assert len(points) == {"depth": 4, "scales": 7}.get(sweep["name"], 3)


@pytest.fixture
def started(run, tmp_path):
    """`wandb sweep FILE` and `wandb agent --count COUNT`: the sweep, and what the agent printed."""

    def start(sweep, count):
        path = tmp_path / f"{sweep['name']}.yaml"
        path.write_text(yaml.safe_dump(sweep | {"program": str(ROOT / sweep["program"])}))
        made = run("wandb", "sweep", path)
        assert made.status == 0, made.out
        assert "Violation" not in made.out
        name = re.search(r"Run sweep agent with: wandb agent (\S+)", made.out)[1]
        return name.rsplit("/", 1)[1], run("wandb", "agent", "--count", count, name)

    return start


def with_overrides(sweep, overrides):
    """The sweep with more words before its parameters, less those that are its parameters."""
    *words, parameters = sweep["command"]
    mine = {word.partition("=")[0]: word for word in overrides}
    return sweep | {"command": [*words, *(w for k, w in mine.items() if k not in sweep["parameters"]), parameters]}


@pytest.mark.slow
def test_agents_run_the_points_of_each_sweep(started, small, endpoint, tmp_path):
    tiny = [*small, "trainer.max_steps=2", "trainer.validations=1", "data.scales=[2]", "model.depth=3"]
    files = [with_overrides(yaml.safe_load(path.read_text()), tiny) for path in FILES]
    with ThreadPoolExecutor(2) as agents:  # which wait five seconds between two looks
        ended = list(agents.map(lambda sweep: started(sweep, 3), files))
    assert len(endpoint.runs) == 3 * len(FILES)
    folders = {path.parent.name.rsplit("_", 1)[1]: path.parent for path in tmp_path.rglob("record.json")}
    assert folders.keys() == endpoint.runs.keys()
    for name, agent in ended:
        assert agent.status == 0, agent.out
        sweep = endpoint.sweeps[name]
        assert sweep.project == "vdsr"
        assert len(sweep.points) == 3, agent.out
        for point, asked in sweep.points.items():
            run, record = endpoint.runs[point], json.loads((folders[point] / "record.json").read_text())
            assert (run.state, run.sweep, run.project) == ("finished", sweep.id, "vdsr"), agent.out
            assert record["status"] == "finished"
            assert run.summary["val/psnr_best"] == pytest.approx(record["psnr_best"])
            for key, entry in asked.config.items():
                assert OmegaConf.select(OmegaConf.create(run.config), key) == entry["value"]
                assert OmegaConf.select(OmegaConf.create(record["config"]), key) == entry["value"]


def test_an_unknown_parameter_is_one_line(started, small, endpoint):
    sweep = yaml.safe_load((ROOT / "conf/sweep/depth.yaml").read_text())
    sweep["parameters"] = {"model.dpeth": {"values": [5]}}
    _, done = started(with_overrides(sweep, small), 1)
    (line,) = re.findall(r"^error: .*$", done.out, re.MULTILINE)
    assert line.endswith("there is no key 'dpeth' (did you mean 'depth'?)")
    assert 'train.py", line' not in done.out
    assert not endpoint.runs


@pytest.mark.parametrize(("signal", "status", "state"), [("SIGTERM", 0, "finished"), ("SIGUSR1", 85, "preempted")])
def test_a_point_that_its_sweep_has_stopped_is_not_one_that_goes_on(endpoint, train, signal, status, state):
    after = AFTER_A_STEP % f"trainer.global_step == 8 and os.kill(os.getpid(), signal.{signal})"
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "point1", "WANDB_PROJECT": "vdsr"}
    done = train(program=("-c", after), **agent)
    assert done.status == status, done.out
    assert endpoint.runs["point1"].state == state
    assert endpoint.runs["point1"].sweep == "abc"
