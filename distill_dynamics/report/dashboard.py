"""A W&B workspace for the runs of this project: every curve in its section, on its axis, seeds together.

`build` describes it and needs neither an account nor a network; `write_dashboard` saves it. The module needs
the extra `dashboard` (the library wandb-workspaces), and raises UserError without it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice

import wandb

from distill_dynamics.errors import UserError

try:
    import wandb_workspaces.workspaces as ws

    from distill_dynamics.report.panels import TRAINING, sections
except ImportError as error:
    raise UserError("the dashboard needs one more library: pip install wandb-workspaces") from error

COLUMNS = (
    "val/acc1",
    "val/knn1",
    "dynamics/student/signature/nadir",
    "dynamics/student/signature/depth",
    "dynamics/gap/entropy_shape_distance",
    "dynamics/evolution/last_rebound",
)
"""What the list of runs shows beside their names, and can be sorted by; it comes sorted by the first."""

LOOKED_AT = 50
"""How many of a project's latest runs say which panels have something to show."""


def build(entity: str, project: str, name: str = "Distillation dynamics") -> ws.Workspace:
    """The workspace with every panel, not yet saved.

    Raises:
        UserError: a name with symbols in it, which W&B refuses.
    """
    try:
        workspace = ws.Workspace(entity=entity, project=project, name=name)
    except ValueError as error:
        raise UserError(f"dashboard: W&B takes no symbols and no emoji in a name: {name!r}") from error
    workspace.settings = ws.WorkspaceSettings(x_axis=TRAINING, smoothing_type="none", smoothing_weight=0)
    workspace.runset_settings = ws.RunsetSettings(
        groupby=[ws.Metric("Group")],
        order=[ws.Ordering(ws.Summary(COLUMNS[0]), ascending=False)],
        pinned_columns=[f"summary:{column}" for column in COLUMNS],
    )
    workspace.sections = sections()
    return workspace


def write_dashboard(entity: str, project: str, name: str = "Distillation dynamics") -> str:
    """Save the workspace to W&B and give its URL.

    Its panels are those for which the project's latest runs have data, all of them where it has no run yet.
    One that was saved under the same name is updated: its panels are written anew, and its list of runs
    (colours, filters, grouping, hidden runs) is left as it is.

    Raises:
        UserError: no account, no network, no such project, and what `build` raises.
    """
    workspace = build(entity, project, name)
    # The address of a view is its writer's choice. One that follows from the name is found again.
    address = sha256(name.encode()).hexdigest()[:11]
    with _no_questions():
        try:
            api = wandb.Api(timeout=10)
        except wandb.errors.UsageError as error:
            raise UserError(
                "W&B: nobody is logged in on this machine: run `wandb login` (or set WANDB_API_KEY) first"
            ) from error
        except Exception as error:
            raise UserError(
                "W&B cannot be reached or does not accept the key: check the network, WANDB_BASE_URL and "
                f"`wandb login --relogin` ({_reason(error)})"
            ) from error
        try:
            workspace.sections = sections(_logged(api, f"{entity}/{project}"))
            saved = _saved(entity, project, address)
            if saved is None:
                workspace._internal_name = f"nw-{address}-v"
            else:
                saved.sections, saved.settings = workspace.sections, workspace.settings
                workspace = saved
            return workspace.save().url
        except Exception as error:  # the library's own, pydantic's, W&B's, in no common class
            raise UserError(
                f"W&B did not take the dashboard: is there a project {entity}/{project}, and may you write "
                f"to it? ({_reason(error)})"
            ) from error


def _logged(api: wandb.Api, path: str) -> set[str]:
    """Metrics and pictures of the latest runs: a summary has each that was logged."""
    runs = api.runs(path, order="-created_at", per_page=LOOKED_AT, lazy=False)
    return {name for run in islice(runs, LOOKED_AT) for name in run.summary_metrics}


def _saved(entity: str, project: str, address: str) -> ws.Workspace | None:
    try:
        return ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={address}")
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise


@contextmanager
def _no_questions() -> Iterator[None]:
    """Keep W&B from printing, and from asking for a key where there is a terminal to ask on."""
    settings = wandb.setup().settings
    wandb.termsetup(settings.model_copy(update={"silent": True}), None)
    try:
        yield
    finally:
        wandb.termsetup(settings, None)


def _reason(error: Exception) -> str:
    return textwrap.shorten(str(error), 300).rstrip(".") or type(error).__name__
