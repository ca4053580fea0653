"""The dashboard: the workspace that is stored here, saved to the server and read back from it."""

import json
import sys
from pathlib import Path

import pytest

from tests.golden.dashboard import made, steady
from vdsr.dashboard import workspaces

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src/dashboard.py"


@pytest.fixture
def dashboard(run):
    return lambda *overrides, **variables: run(sys.executable, SCRIPT, "sets=[set5]", *overrides, **variables)


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "tests/golden/dashboard.json").read_text(encoding="utf-8"))["workspace"]


def test_it_is_the_stored_one(stored):
    assert made() == stored


def test_it_has_the_panels_that_people_look_at(stored):
    sections = stored["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Sweeps", "Benchmarks", "Training", "Pictures"]
    assert [panel["viewType"] for panel in sections[0]["panels"]] == [
        "Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot", "Run History Line Plot"
    ]  # fmt: skip
    columns = [column["accessor"] for column in sections[0]["panels"][0]["config"]["columns"]]
    assert columns == [
        "config:model.value.depth", "config:clip.value.theta", "config:data.value.scales", "config:optim.value.lr",
        "summary:val/psnr_best",
    ]  # fmt: skip


def test_a_dry_run_needs_no_server(dashboard, endpoint, stored, tmp_path):
    endpoint.unreachable()
    done = dashboard("dry_run=true", "out=mine.json", WANDB_API_KEY="")
    assert done.status == 0, done.out
    assert steady(json.loads((tmp_path / "mine.json").read_text())) == stored


def test_it_is_saved_once_changed_and_read_back(dashboard, endpoint, stored, environment, monkeypatch):
    first = dashboard()
    assert first.status == 0, first.out
    (name,) = endpoint.views
    assert f"dashboard: {endpoint.url}/tester/vdsr?nw={name[3:-2]}" in first.out
    endpoint.views[name]["spec"] = endpoint.views[name]["spec"].replace("Depth and PSNR", "changed by hand")
    again = dashboard()
    assert again.status == 0, again.out
    assert endpoint.views.keys() == {name}
    assert steady(json.loads(endpoint.views[name]["spec"])) == stored
    for variable in ("HOME", "NETRC", "WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(variable, environment[variable])
    back = workspaces.Workspace.from_url(f"{endpoint.url}/tester/vdsr?nw={name[3:-2]}")
    assert [section.name for section in back.sections] == ["Sweeps", "Benchmarks", "Training", "Pictures"]


@pytest.mark.parametrize(
    ("overrides", "variables", "complaint"),
    [
        (["project=missing"], {}, "tester/missing"),
        (["project=forbidden"], {}, "permission denied: tester may not write to forbidden"),
        ([], {"WANDB_API_KEY": "f" * 40}, "W&B: "),
        ([], {"WANDB_API_KEY": "hello"}, "API key must have 40+ characters"),
        ([], {"WANDB_API_KEY": ""}, "there is no key: wandb login"),
    ],
)
def test_what_cannot_be_saved_is_one_line(dashboard, overrides, variables, complaint):
    done = dashboard(*overrides, **variables)
    assert done.status == 1
    (line,) = done.out.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert "f" * 40 not in line
