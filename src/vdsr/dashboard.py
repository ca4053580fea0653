"""The W&B workspace as code: which panels it has, and how it gets there."""

import json
import os
import warnings
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from vdsr import tracking

os.environ.setdefault("WANDB_SILENT", "true")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # written for pydantic 1
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces import workspaces

NAME = "vdsr"
STEP = "trainer/global_step"
DEPTH, THETA = panels.Config("model.depth"), panels.Config("clip.theta")
GAMMA, SCALES = panels.Config("optim.lr"), panels.Config("data.scales")
BEST = "val/psnr_best"
COMPARED = 50  # runs that a panel shows


def workspace(project: str, entity: str, sets: Sequence[str]) -> workspaces.Workspace:
    """What to look at in a project: sweeps, benchmarks, training, and the pictures of these sets."""
    column = panels.ParallelCoordinatesPlotColumn
    sweep = [
        panels.ParallelCoordinatesPlot(
            title="What makes a good network",
            columns=[
                column(DEPTH, "depth"),
                column(THETA, "θ", log=True),
                column(SCALES, "scales"),
                column(GAMMA, "γ₀", log=True),
                column(panels.SummaryMetric(BEST), "best PSNR (dB)"),
            ],
        ),
        panels.ParameterImportancePlot(with_respect_to=BEST),
        panels.ScatterPlot(title="Depth and PSNR", x=DEPTH, y=panels.SummaryMetric(BEST), regression=True),
        panels.LinePlot(
            title="PSNR by epoch, runs of a depth together",
            x="epoch",
            y=["val/psnr"],
            groupby="model.value.depth",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            aggregate=True,
        ),
    ]
    training = [
        panels.LinePlot(title="Loss", x=STEP, y=["train/loss"], log_y=True),
        panels.LinePlot(
            title="Gradient norm, and the bound θ/γ on each element",
            x=STEP,
            y=["train/gradient_norm", "train/clip_bound"],
            log_y=True,
        ),
        panels.LinePlot(title="Share of gradients clipped", x=STEP, y=["train/share_clipped"]),
        panels.LinePlot(title="γ", x=STEP, y=["train/lr"], log_y=True),
        panels.LinePlot(title="Patches per second", x=STEP, y=["train/patches_per_second"]),
    ]
    benchmarks = [
        panels.LinePlot(title="PSNR of each set and scale (dB)", x=STEP, metric_regex="val/.+/x.+/psnr"),
        panels.LinePlot(title="SSIM of each set and scale", x=STEP, metric_regex="val/.+/x.+/ssim"),
        panels.LinePlot(title="Gain over bicubic (dB)", x=STEP, metric_regex="val/.+/x.+/gain"),
    ]
    pictures = [
        panels.MediaBrowser(
            title="Bicubic, the network, the original", media_keys=[f"pictures/{name}" for name in sets]
        )
    ]
    sections = {"Sweeps": sweep, "Benchmarks": benchmarks, "Training": training, "Pictures": pictures}
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[workspaces.Section(name=name, panels=list(some), is_open=True) for name, some in sections.items()],
        settings=workspaces.WorkspaceSettings(max_runs=COMPARED),
    )


def specification(made: workspaces.Workspace) -> dict[str, Any]:
    """A workspace as W&B stores it; but for its panels' ids, which are drawn anew each time."""
    return dict(json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)))


def save(made: workspaces.Workspace) -> str:
    """Create the project's dashboard in W&B, or change it to this; where it is to be seen.

    Raises InputError when the server cannot be reached, or the project not be written.
    """
    # a name in W&B's way of naming that is the project's own: saving again changes what is there
    name = f"nw-{sha256(f'{NAME} {made.project}'.encode()).hexdigest()[:11]}-v"
    with tracking.refusals(f"{made.entity}/{made.project}"):
        try:
            made._internal_id = workspaces.internal.View.from_name(made.entity, made.project, name).id
        except ValueError as error:
            if not str(error).startswith("Workspace"):  # there is none yet
                raise
        made._internal_name = name
        made.save()
        return str(made.url)
