import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb
import yaml
from conftest import IMAGE, ROOT, blank, tiny_config, wandb_record

from distill_dynamics import UserError
from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import signature

pytest.importorskip("wandb_workspaces")

from distill_dynamics.report import panels
from distill_dynamics.report.dashboard import build, write_dashboard
from distill_dynamics.runs.scores import OF_FEATURES

KEY = "0123456789abcdef0123456789abcdef01234567"


def sent(name="Distillation dynamics", logged=()):
    """What goes to the server: the JSON of the view."""
    workspace = build("a-team", "a-project", name)
    workspace.sections = panels.sections(logged)
    view = workspace._to_model()
    return json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def sections(logged=()):
    return {s["name"]: s["panels"] for s in sent(logged=logged)["panelBankConfig"]["sections"]}


def line_plots():
    return [
        (name, panel["config"])
        for name, of_section in sections().items()
        for panel in of_section
        if panel["viewType"] == "Run History Line Plot"
    ]


def named_metrics():
    """Every metric that a panel names, and every picture."""
    found = []
    for of_section in sections().values():
        for panel in of_section:
            found += panel["config"].get("metrics", []) + panel["config"].get("mediaKeys", [])
    return found


def test_every_subject_has_its_section():
    assert list(sections()) == [
        "Accuracy",
        "Loss terms",
        "Entropy",
        "Magnitude",
        "Effective rank",
        "Rank at 95 % energy",
        "Capacity floor",
        "Correlation floor",
        "CKA with the teacher",
        "Gap to the teacher",
        "Signature of the student",
        "Spectra and large values",
        "Evolution over epochs",
        "Gradient conflict",
        "Rate and speed",
    ]
    assert all(sections().values())
    of = {name: json.dumps(panels) for name, panels in sections().items()}
    assert '"val/acc1", "teacher/acc1"' in of["Accuracy"]
    assert '"val/acc1_ema"' in of["Accuracy"]
    assert '"^train/loss_"' in of["Loss terms"]
    assert '"dynamics/entropy_evolution"' in of["Entropy"]
    assert '"^dynamics/student/entropy/block_"' in of["Entropy"]
    assert '"^dynamics/student/magnitude/block_"' in of["Magnitude"]
    assert '"^dynamics/student/effective_rank/block_"' in of["Effective rank"]
    assert '"dynamics/cka_heatmap"' in of["CKA with the teacher"]
    assert '"dynamics/effective_rank_evolution"' in of["Effective rank"]
    assert '"dynamics/floors_by_block"' in of["Capacity floor"]
    assert '"dynamics/gap/entropy_shape_distance"' in of["Gap to the teacher"]
    assert '"dynamics/student/signature/depth"' in of["Signature of the student"]
    assert '"dynamics/evolution/last_rebound"' in of["Evolution over epochs"]
    assert '"^dynamics/conflict/"' in of["Gradient conflict"]


def test_each_curve_is_on_the_axis_it_was_logged_on_and_has_title_and_unit():
    for name, config in line_plots():
        metrics = [
            *config["metrics"],
            *([config["metricRegex"].lstrip("^")] if "metricRegex" in config else []),
        ]
        assert metrics, config["chartTitle"]
        axis = "dynamics/epoch" if metrics[0].startswith("dynamics/") else "epoch"
        assert config["xAxis"] == axis, (name, config["chartTitle"])
        assert all(metric.startswith("dynamics/") == (axis == "dynamics/epoch") for metric in metrics)
        assert config["xAxisTitle"] == "epoch"
        assert config["chartTitle"]
        assert "yAxisTitle" in config
    for section in sent()["panelBankConfig"]["sections"]:
        axes = {p["config"]["xAxis"] for p in section["panels"] if "xAxis" in p["config"]}
        assert axes <= {section["localPanelSettings"]["xAxis"]}


def test_seeds_of_a_group_share_a_curve_with_their_spread_and_nothing_is_smoothed():
    spec = sent()
    (runs,) = spec["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert spec["settings"]["useRunsTableGroupingInPanels"] is True
    assert spec["settings"]["smoothingActive"] is False
    for section in spec["panelBankConfig"]["sections"]:
        assert section["localPanelSettings"]["useRunsTableGroupingInPanels"] is True
        assert section["localPanelSettings"]["smoothingActive"] is False
    for _, config in line_plots():
        assert config["groupAgg"] == "mean"
        assert config["groupArea"] == ("stddev" if len(config["metrics"]) == 1 else "none")
        assert not config.keys() & {"smoothingWeight", "smoothingType", "groupBy"}
    assert spec["settings"]["shouldAutoGeneratePanels"] is False


def test_runs_can_be_sorted_by_what_their_curves_say():
    (runs,) = sent()["runSets"]
    assert runs["sort"]["keys"][0] == {"key": {"section": "summary", "name": "val/acc1"}, "ascending": False}
    columns = [c.removeprefix("summary:") for c in runs["runFeed"]["columnOrder"]]
    assert columns[0] == "run:displayName"
    assert set(columns[1:]) <= set(named_metrics())


FALLS = {"class_path": "distill_dynamics.schedule.Linear", "init_args": {"first": 0.2, "last": 0.0}}
CALLBACKS = [{"class_path": f"distill_dynamics.callbacks.{name}"} for name in ("GradientConflict", "EMA")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Names in the history and in the summary of a run with everything, and of one without a teacher."""
    folder = tmp_path_factory.mktemp("recorded")
    # Three blocks, so that a spectrum is between two others; more than two times the student's channels.
    shape = {"model__student__timm_kwargs__depth": 3, "probe__n_images": 20}
    full = {"trainer__callbacks": CALLBACKS, "model__terms__projector__weight": FALLS}
    alone = {"model__teacher": None, "model__terms": {}}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_dynamics.cli.fit_summary.write_report", lambda *args: None)
        patch.setattr(IMAGE, blank)
        for name, changes in {"full": full, "alone": alone}.items():
            content = {**tiny_config(**shape, **changes), "runs_dir": str(folder)}
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(content))
            main(["fit", "--config", str(path), "--name", name, "--wandb.mode", "offline"])
            (record,) = (folder / name / "wandb").glob("offline-run-*")
            _, history, summary = wandb_record(record)
            found[name] = ({key.split(".")[0] for row in history for key in row}, summary.keys())
    return {name: (history, {key.split(".")[0] for key in keys}) for name, (history, keys) in found.items()}


def test_every_metric_and_picture_is_one_that_fit_logs(recorded):
    history, summary = recorded["full"]
    assert history <= summary  # which is what the server is asked for
    # Of a student that is a U at no epoch, and whose last block is at none the lowest, these are not logged.
    of_epochs = [field.name for field in fields(signature.Evolution) if field.type == (int | None)]
    assert len(of_epochs) == 3
    unknown = {f"dynamics/evolution/{name}" for name in of_epochs}
    unknown |= {f"val/{score.name}{end}" for score in OF_FEATURES for end in ("", "_ema")}  # it has classes
    unknown |= {f"teacher/{score.name}" for score in OF_FEATURES}
    assert set(named_metrics()) - unknown <= history | {"teacher/acc1"}
    assert "teacher/acc1" in summary - history
    for _, config in line_plots():
        if "metricRegex" in config:
            assert config["useMetricRegex"] is True
            assert any(re.search(config["metricRegex"], name) for name in history), config["metricRegex"]


def without(names, *patterns):
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns)}


OPTIONS = ("^dynamics/conflict/", "acc1_ema$", "^train/weight_")
NO_FLOORS = {"Capacity floor", "Correlation floor"}
NO_TEACHER = {*NO_FLOORS, "CKA with the teacher", "Gap to the teacher", "Gradient conflict"}
NO_PROBES = {name for name in sections() if name not in ("Accuracy", "Loss terms", "Rate and speed")}


@pytest.mark.parametrize(
    ("run", "left_out", "gone"),
    [
        ("full", (), set()),
        ("full", OPTIONS, {"Gradient conflict"}),
        ("full", (*OPTIONS, "^train/loss_projector"), {"Gradient conflict"}),
        ("full", ("floor",), NO_FLOORS),  # the teacher's blocks have too few tokens
        ("full", ("^dynamics/",), NO_PROBES),
        ("alone", (), NO_TEACHER),
    ],
    ids=["everything", "no options", "no feature term", "no floors", "no probes", "no teacher"],
)
def test_no_panel_is_empty_and_none_that_has_data_is_missing(recorded, run, left_out, gone):
    history, summary = (
        {name for name in names if not any(re.search(pattern, name) for pattern in left_out)}
        for names in recorded[run]
    )
    every, shown = sections(), sections(summary)
    assert every.keys() - shown.keys() == gone
    for name, of_section in every.items():
        data = [identity(panel) for panel in of_section if has_data(panel["config"], history, summary)]
        bars = [key for key in map(identity, shown.get(name, [])) if "each block of the teacher" in key]
        assert [identity(panel) for panel in shown.get(name, [])] == data + bars
        assert len(bars) == (name in NO_FLOORS - gone)
    for of_section in shown.values():
        for panel in of_section:
            of = summary if panel["viewType"] == "Bar Chart" else history
            assert {*panel["config"].get("metrics", [])} <= of


def identity(panel):
    config = panel["config"]
    return config.get("chartTitle") or json.dumps(config.get("mediaKeys") or config["value"])


def has_data(config, history, summary):
    """Lines and pictures have a history; bars are of summaries, and compare; a note is there always."""
    if "value" in config:
        return True
    if config.get("metrics") == ["val/acc1", "teacher/acc1"]:
        return {*config["metrics"]} <= summary
    named = {*config.get("metrics", []), *config.get("mediaKeys", [])}
    return bool(named & history) or any(
        re.search(config["metricRegex"], name) for name in history if "metricRegex" in config
    )


def test_a_name_that_wandb_refuses_is_one_line():
    with pytest.raises(UserError, match=r"dashboard: .*'a.'") as error:
        build("e", "p", "a\U0001f600")
    assert "\n" not in str(error.value)


# --- writing it ---------------------------------------------------------------------------------------------

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def account(monkeypatch, tmp_path):
    """Puts a process into the shoes of a user with this W&B server and this key."""

    def log_in(server, key):
        wandb.teardown()  # it reads its settings once
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WANDB_BASE_URL", server)
        monkeypatch.setenv("WANDB_API_KEY", key)

    yield log_in
    wandb.teardown()


def one_line(*words):
    with pytest.raises(UserError) as error:
        write_dashboard("a-team", "a-project")
    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    return line


def test_without_an_account_it_says_to_log_in(account):
    account(CLOSED, "")
    one_line("`wandb login`")


@pytest.mark.slow
def test_without_a_network_it_says_so_in_time(account):
    account(CLOSED, KEY)
    began = time.monotonic()
    one_line("cannot be reached", CLOSED)
    assert time.monotonic() - began < 25


def test_a_malformed_key_is_one_line_that_does_not_show_it(account):
    account(CLOSED, "secret")
    assert "secret" not in one_line("WANDB_API_KEY")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.slow
def test_on_a_terminal_it_does_not_ask_for_a_key(tmp_path):
    import pty

    settings = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    settings |= {"HOME": str(tmp_path), "WANDB_BASE_URL": CLOSED, "TERM": "xterm"}
    code = "from distill_dynamics.report.dashboard import write_dashboard as w; w('e', 'p')"
    theirs, ours = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=ours, stdout=ours, stderr=ours, cwd=ROOT, env=settings
    )
    os.close(ours)
    printed = b""
    try:
        while chunk := os.read(theirs, 4096):
            printed += chunk
            assert b"Enter your choice" not in printed
    except OSError:
        pass  # the other end was closed
    finally:
        process.kill()
        process.wait()
    assert b"UserError: W&B: nobody is logged in" in printed


def test_without_the_library_it_names_the_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "distill_dynamics.report.dashboard")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match="pip install wandb-workspaces"):
        importlib.import_module("distill_dynamics.report.dashboard")


@pytest.fixture
def server():
    """A W&B that knows four things: who is there, its runs, the views it was given, and how to take one."""
    views, refused, runs = {}, [], []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if not self.path.endswith("/graphql"):  # W&B counts its own usage
                return self.answer(200, {})
            asked = json.loads(body)
            given = asked.get("variables") or {}
            if refused and "upsertView" in asked["query"]:
                return self.answer(403, {"errors": [{"message": "permission denied"}]})
            if "upsertView" in asked["query"]:
                known = views.get(given["name"])
                assert known is None or given.get("id") == known["id"]
                views[given["name"]] = {"id": f"id-{len(views)}", **(known or {}), **given}
                view = {"id": views[given["name"]]["id"], "name": given["name"]}
                return self.answer(200, {"data": {"upsertView": {"view": view, "inserted": known is None}}})
            if "runs(" in asked["query"]:
                edges = [{"node": run, "cursor": str(i)} for i, run in enumerate(runs)]
                pages = {"hasNextPage": False, "endCursor": None}
                found = {"edges": edges, "pageInfo": pages}
                return self.answer(
                    200, {"data": {"project": {"internalId": "1", "runCount": len(runs), "runs": found}}}
                )
            if "allViews" in asked["query"]:
                assert (given["entityName"], given["projectName"]) == ("a-team", "a-project")
                view = views.get(given["viewName"])
                edges = [{"node": {k: view[k] for k in ("id", "displayName", "spec")}}] if view else []
                return self.answer(200, {"data": {"project": {"allViews": {"edges": edges}}}})
            viewer = {"id": "1", "entity": "a-team", "username": "me", "email": "", "flags": "{}"}
            return self.answer(200, {"data": {"viewer": {**viewer, "teams": {"edges": []}}}})

        def answer(self, status, content):
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.views, httpd.refused, httpd.runs = views, refused, runs
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_a_dashboard_is_made_once_a_name_and_then_updated(server, account, capfd):
    url = f"http://127.0.0.1:{server.server_port}"
    account(url, KEY)
    first = write_dashboard("a-team", "a-project")
    assert capfd.readouterr() == ("", "")
    ((name, view),) = server.views.items()
    assert first == f"{url}/a-team/a-project?nw={re.fullmatch('nw-([0-9a-z]{11})-v', name)[1]}"
    assert view["displayName"] == "Distillation dynamics"
    written, plain = json.loads(view["spec"])["section"], sent()
    for spec in (written, plain):  # panels get random names
        for section in spec["panelBankConfig"]["sections"]:
            for panel in section["panels"]:
                del panel["__id__"]
    assert written == plain

    # Somebody hides a run, gives another a colour, and deletes a section; then it is written again.
    spec = json.loads(view["spec"])
    spec["section"]["runSets"][0]["selections"]["tree"] = ["hidden-run"]
    spec["section"]["customRunColors"] = {"a-run": "#ff0000"}
    del spec["section"]["panelBankConfig"]["sections"][0]
    view["spec"] = json.dumps(spec)
    assert write_dashboard("a-team", "a-project") == first
    assert list(server.views) == [name]
    section = json.loads(server.views[name]["spec"])["section"]
    assert [s["name"] for s in section["panelBankConfig"]["sections"]] == list(sections())
    assert section["runSets"][0]["selections"]["tree"] == ["hidden-run"]
    assert section["customRunColors"]["a-run"] == "#ff0000"
    assert section["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]

    assert write_dashboard("a-team", "a-project", "Another") != first
    assert sorted(v["displayName"] for v in server.views.values()) == ["Another", "Distillation dynamics"]


def test_a_dashboard_asks_for_what_the_projects_runs_have(server, account, recorded):
    account(f"http://127.0.0.1:{server.server_port}", KEY)
    known = dict.fromkeys(("id", "description", "notes", "group", "jobType", "commit", "sweepName"), "")
    known |= {"config": "{}", "systemMetrics": "{}", "tags": [], "historyKeys": None, "state": "finished"}
    summaries = [{"val/acc1": 50.0, "train/loss": 1.0}, {"dynamics/conflict/spectral/block_01": 0.5}]
    for number, summary in enumerate(summaries):
        name = f"run-{number}"
        server.runs.append(known | {"name": name, "displayName": name, "summaryMetrics": json.dumps(summary)})
    write_dashboard("a-team", "a-project")
    (view,) = server.views.values()
    written = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in written] == ["Accuracy", "Loss terms", "Gradient conflict"]
    assert [len(section["panels"]) for section in written] == [2, 1, 2]  # the note is one


def test_a_project_that_may_not_be_written_is_one_line(server, account):
    server.refused.append(True)
    account(f"http://127.0.0.1:{server.server_port}", KEY)
    one_line("a-team/a-project", "may you write", "permission denied")
