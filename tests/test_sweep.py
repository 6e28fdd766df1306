"""A sweep's file, as W&B reads it and as its agent starts the runs."""

import itertools
import os
from pathlib import Path

import pytest
import wandb
from conftest import ROOT, wandb_record
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.main import main

BETA = ROOT / "configs" / "sweeps" / "beta.yaml"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Lets W&B's agent start a run, and gives the command; its environment is then that of the test."""
    monkeypatch.chdir(tmp_path)
    kept = {}
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **kwargs: kept.update(kwargs))
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")

    def start(sweep, run_id, **values):
        agent = wandb_agent.Agent(None, None, sweep_id="s1")
        agent._sweep_command = [*sweep["command"]]
        agent._run_processes = _Processes()
        arguments = {name.replace("__", "."): {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": run_id, "program": sweep["program"], "args": arguments})
        return kept["command"]

    yield start
    wandb.teardown()  # which remembers the sweep


class _Processes(dict):
    """The agent notes when it has stopped a process; here there is none."""

    def __getitem__(self, key):
        return type("Process", (), {})()


def parsed(monkeypatch, words):
    """What `fit` makes of a command's words, short of training."""
    kept = {}
    monkeypatch.setattr(DistillCLI, "_run_subcommand", lambda self, command: kept.update(cli=self))
    main(words)
    return kept["cli"]


def test_the_file_is_a_grid_over_what_the_config_has_and_watches_what_a_run_logs():
    sweep = load_sweep_config(str(BETA))
    assert sweep["method"] == "grid"
    assert sweep["metric"] == {"name": "val/acc1", "goal": "maximize"}
    assert sweep["project"] == "distill_dynamics"
    grid = {name: of["values"] for name, of in sweep["parameters"].items()}
    assert all(len(values) == len(set(values)) > 1 for values in grid.values())
    assert len([*itertools.product(*grid.values())]) == 18  # as the file says
    assert {0, 0.2} <= {*grid["model.terms.spectral.weight"]}  # SoftKD; the paper's
    macros = {word for word in sweep["command"] if word.startswith("$")}
    assert macros == {"${env}", "${interpreter}", "${program}", "${args}"}


@pytest.mark.parametrize("weight", [0, 0.05, 0.8])
def test_its_agent_starts_a_run_of_that_weight(started, monkeypatch, weight):
    sweep = load_sweep_config(str(BETA))
    assert weight in sweep["parameters"]["model.terms.spectral.weight"]["values"]
    command = started(sweep, f"id{weight}", model__terms__spectral__weight=weight, seed_everything=2)
    assert command[:4] == ["/usr/bin/env", "python", "-m", "distill_dynamics"]
    # No account here, and no run of minutes.
    cli = parsed(monkeypatch, [*command[4:], "--wandb.mode=offline"])
    (term,) = (term for name, term in cli.model.terms.items() if name == "spectral")
    assert term.weight == weight
    assert term.pairs == [(1, 1), (12, 12)]  # the rest of the config's term is there
    assert cli.config.fit.seed_everything == 2
    assert cli.config.fit.wandb.group == f"quickstart, weight {weight}"
    assert cli.run_dir == Path("runs") / f"quickstart-id{weight}"


def test_seeds_share_a_group_and_each_run_has_a_name_that_stays(started, monkeypatch, experiment):
    sweep = {"program": "distill_dynamics", "command": ["fit", f"--config={experiment()}", "${args}"]}
    names, groups = set(), set()
    for seed in (0, 1):
        words = started(sweep, f"id{seed}", model__alpha=0.5, seed_everything=seed)
        for again in ([], ["--ckpt_path=auto"]):
            cli = parsed(monkeypatch, [*words, *again])
            names.add(cli.run_dir.name)
            groups.add(cli.config.fit.wandb.group)
    assert names == {"tiny-id0", "tiny-id1"}
    assert groups == {"tiny, alpha 0.5"}
    cli = parsed(monkeypatch, [*words, "--name=mine", "--wandb.group=ours"])
    assert (cli.run_dir.name, cli.config.fit.wandb.group) == ("mine", "ours")


def test_a_run_of_a_sweep_is_the_sweeps_and_says_nothing_of_it(
    started, experiment, tmp_path, monkeypatch, capfd, no_report
):
    quiet = wandb.Settings
    monkeypatch.setattr(wandb, "Settings", lambda **settings: quiet(**{**settings, "silent": False}))
    config = experiment(trainer__max_epochs=1, probe__every_n_epochs=0)
    sweep = {"program": "distill_dynamics", "command": ["fit", f"--config={config}", "${args}"]}
    wandb.teardown()  # what a test before has started has read its settings
    words = started(sweep, "abc123", model__terms__projector__weight=0.3)
    main([*words, "--wandb.mode=offline"])
    printed = "".join(capfd.readouterr())
    assert "wandb" in printed
    assert "Ignoring" not in printed
    (folder,) = (tmp_path / "runs" / "tiny-abc123" / "wandb").glob("offline-run-*")
    assert folder.name.endswith("-abc123")  # the server's id of it
    _, _, summary = wandb_record(folder)
    assert 0 <= summary["val/acc1"] <= 100
    assert os.environ["WANDB_RUN_ID"] == "abc123"
