"""The W&B workspace that src/dashboard.py makes.

`python tests/golden/dashboard.py` writes dashboard.json anew. That takes a reason: a panel was added, changed or left
out, or wandb-workspaces writes it differently.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

from vdsr import dashboard

COMMAND = "python tests/golden/dashboard.py"


def steady(specification):
    """A workspace less the ids of its panels, which are drawn anew each time."""
    if isinstance(specification, dict):
        return {key: steady(value) for key, value in specification.items() if key != "__id__"}
    return [steady(value) for value in specification] if isinstance(specification, list) else specification


def made():
    return steady(dashboard.specification(dashboard.workspace("vdsr", "tester", ["set5"])))


if __name__ == "__main__":
    about = {"command": COMMAND, "machine": platform.machine(), "wandb-workspaces": version("wandb-workspaces")}
    content = json.dumps({"about": about, "workspace": made()}, indent=1, ensure_ascii=False)
    Path(__file__).with_suffix(".json").write_text(content + "\n", encoding="utf-8")
