import json
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from distill_dynamics.cli.main import main
from distill_dynamics.errors import UserError
from distill_dynamics.report import page
from distill_dynamics.report.comparability import comparison_warnings
from distill_dynamics.report.records import Run, range_name
from distill_dynamics.report.runs import load_runs
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.text import listed


def load(*paths):
    (run,) = load_runs(paths)
    return run


def test_a_run_directory(tmp_path):
    run = load(made.write_run(tmp_path / "soft", **made.all_profiles()))
    assert (run.name, run.kind, run.range) == ("soft", "fit", "global")
    assert [profile.epoch for profile in run.profiles.students] == [0, 3]
    assert run.profiles.best.epoch == 2
    assert run.latest is run.profiles.best
    losses = {"train/loss": 1.0, "train/loss_ce": 2.0}
    assert run.metrics[2] == {"epoch": 2.0, "step": 10.0, **losses, "val/acc5": 97.0, "val/acc1": 80.0}
    assert run.config["model"]["alpha"] == 0.9
    assert (run.epochs, run.finished, run.data, run.validation_images) == (3, True, "d1", 1000)
    assert [who for who, _ in run.named()] == [
        "teacher", "student, epoch 0", "student, epoch 3", "student, best (epoch 2)",
    ]  # fmt: skip
    assert run.warnings == []


def test_kinds_in_the_order_given_and_each_path_once(tmp_path):
    curve = made.write_published(tmp_path / "Soft.csv", {"model_best": [1, 2, 3, 4]})
    fit = made.write_run(tmp_path / "b")
    folder = made.write_analysis(
        tmp_path / "out", [("cait", "global", None, False, made.profile(None, made.U))]
    )
    (folder / "curves.csv").write_text("Model/Epoch,Layer_1\nmodel_best,1\n")  # an analysis all the same
    runs = load_runs([curve, fit, folder, tmp_path / "b" / ".." / "b"])
    assert [(run.name, run.kind) for run in runs] == [
        ("Soft", "published"), ("b", "fit"), ("cait", "analysis"),
    ]  # fmt: skip
    # The folder of the CSV holds one such file, and folders that are not looked into.
    assert [run.name for run in load_runs([tmp_path])] == ["Soft"]


def test_an_analysis_is_a_run_a_label_and_range(tmp_path):
    layer = {"range_mode": "layer"}
    folder = made.write_analysis(
        tmp_path / "out",
        [
            ("cait", "global", None, False, made.profile(None, made.U)),
            ("cait", "layer", None, False, made.profile(None, made.FALLING, **layer)),
            ("deit", "global", 60, False, made.profile(60, made.U)),
            ("deit", "global", 30, False, made.profile(30, made.U)),
            ("deit", "global", None, True, made.profile(None, made.U)),
        ],
    )
    runs = load_runs([folder])
    assert [(run.name, run.range) for run in runs] == [
        ("cait (global)", "global"), ("cait (layer)", "layer"), ("deit (global)", "global"),
    ]  # fmt: skip
    assert [len(run.models) for run in runs] == [1, 1, 0]
    assert runs[1].models[0].range_mode == "layer"
    assert [profile.epoch for profile in runs[2].profiles.students] == [30, 60]
    assert runs[2].profiles.best is not None
    assert [who for who, _ in runs[2].named()][-1] == "student, best"
    assert runs[0].starts == [
        {"command": "analyze", "versions": made.VERSIONS, "images": {"source": "sample", "n": 4, "seed": 0}}
    ]
    assert [run.warnings for run in runs] == [[], [], []]

    (folder / "profiles/deit/global/best.npz").unlink()
    (folder / "profiles/deit/global/epoch_0060.npz").write_bytes(b"no")
    run = load_runs([folder])[2]
    assert [profile.epoch for profile in run.profiles.students] == [30]
    assert len(run.warnings) == 2
    assert "epoch_0060.npz: not a readable Profile" in run.warnings[0]
    assert "There is no" in run.warnings[1]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 99, "curves": []}'])
def test_a_damaged_or_newer_analysis_is_one_line(tmp_path, content):
    (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(UserError, match=r"analysis\.json: ") as caught:
        load_runs([tmp_path])
    assert "\n" not in str(caught.value)


def test_what_is_no_run_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_runs([tmp_path / "none"])
    with pytest.raises(UserError, match="neither a run directory"):
        load_runs([tmp_path])
    made.write_run(tmp_path / "runs" / "soft")
    with pytest.raises(UserError, match=r"did you mean those in it, such as .*soft\?"):
        load_runs([tmp_path / "runs"])


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    paths = [made.write_run(tmp_path / folder / "soft") for folder in ("x/a", "y/a", "y/b")]
    other = made.write_run(tmp_path / "x" / "last")
    assert [run.name for run in load_runs([*paths, other])] == ["x/a/soft", "y/a/soft", "b/soft", "last"]
    outs = [
        made.write_analysis(tmp_path / out, [("cait", "global", None, False, made.profile(None, made.U))])
        for out in ("one", "two")
    ]
    assert [run.name for run in load_runs(outs)] == ["one/cait", "two/cait"]


def test_analyses_of_one_label_are_told_apart_whole_whatever_their_ranges(tmp_path):
    def analysis(folder, *ranges):
        curves = [("cait", name, None, False, made.profile(None, made.U, range_mode=name)) for name in ranges]
        return made.write_analysis(tmp_path / folder, curves)

    runs = load_runs([analysis("one", "global", "layer"), analysis("two", "global")])
    assert [(run.name, run.label) for run in runs] == [
        ("one/cait (global)", "one/cait"), ("one/cait (layer)", "one/cait"), ("two/cait", "two/cait"),
    ]  # fmt: skip
    odd = [("cait (global)", "global", None, False, made.profile(None, made.U))]
    (run,) = load_runs([made.write_analysis(tmp_path / "odd", odd)])
    assert (run.name, run.label) == ("cait (global)", "cait (global)")
    clash = [analysis("three", "global", "layer"), made.write_run(tmp_path / "cait (global)")]
    assert len({run.name for run in load_runs(clash)}) == 3


def test_half_a_row_is_left_out(tmp_path):
    folder = made.write_run(tmp_path / "r")
    whole = (folder / "metrics.csv").read_text()
    for text, rows in (
        (whole[:-9], 3),  # fewer cells
        (whole.rstrip()[:-1], 3),  # 79.0 lost its last digit and looks whole
        (whole + "4,20,,x,1,2\n", 4),
        (whole.replace("1.0,", "one,"), 3),
    ):
        (folder / "metrics.csv").write_text(text)
        run = load(folder)
        assert len(run.metrics) == rows, text
        assert "metrics.csv: 1 row cut short or damaged, left out." in run.warnings


def test_damaged_and_foreign_profiles_cost_a_sentence_a_reason(tmp_path):
    folder = made.write_run(tmp_path / "r", **made.all_profiles())
    dynamics = folder / "dynamics"
    (dynamics / "student_epoch_0001.npz").write_bytes(
        (dynamics / "student_epoch_0003.npz").read_bytes()[:900]
    )
    for name in ("student_epoch_0000", "teacher"):
        with np.load(dynamics / f"{name}.npz") as archive:
            content = dict(archive)
        meta = json.loads(str(content["meta"]))
        content["meta"] = np.array(json.dumps({**meta, "schema": 1}))
        np.savez(dynamics / f"{name}.npz", **content)
    made.profile(4, made.TEACHER).save(dynamics / "student_epoch_0004.npz")
    made.profile(3, made.U).save(dynamics / "student_epoch_0007.npz")
    run = load(folder)
    assert [profile.epoch for profile in run.profiles.students] == [3]
    assert run.profiles.teacher is None
    text = "\n".join(run.warnings)
    assert "Left out: student_epoch_0001.npz: not a readable Profile" in text
    assert "Left out: student_epoch_0000.npz and teacher.npz: Profile schema 1 is unknown" in text
    assert "A Profile of epoch 4 with 6 layers is left out" in text
    assert "A Profile of epoch 3 with 4 layers is left out" in text
    assert "there is no" not in text  # they are there


def test_a_run_that_has_not_begun(tmp_path):
    (tmp_path / "run.json").write_text('{"id": "a", "starts": []}')
    run = load(tmp_path)
    assert run.warnings == [
        "Training has not begun: run.json records no start.",
        "No configuration: there is no config.yaml.",
        "No completed epoch: metrics.csv has no training loss.",
        "No accuracy of the student: metrics.csv has no val/acc1.",
        "No accuracy of a teacher: metrics.csv has no teacher/acc1.",
        "No Profile of a teacher: there is no dynamics/teacher.npz.",
        "No Profile of the student in training: dynamics/ has no student_epoch_*.npz.",
        "No Profile of the best student: there is no dynamics/student_best.npz, written when fit ends.",
    ]
    assert not run.finished
    assert (run.named(), run.latest, run.range) == ([], None, "")


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", '{"starts": [{', '{"starts": [3]}', '{"starts": null}'),
        *('{"starts": [{"data": "d1"}]}', '{"starts": [{"ended": 3}]}'),
    ],
)
def test_a_damaged_record_and_configuration_cost_a_warning_each(tmp_path, content):
    folder = made.write_run(tmp_path / "r", **made.all_profiles())
    (folder / "run.json").write_text(content)
    (folder / "config.yaml").write_text("a: [")
    run = load(folder)
    assert run.warnings[0].startswith("run.json cannot be read")
    assert run.warnings[1:] == ["No configuration: config.yaml is not the configuration of a run."]
    assert len(run.profiles.students) == 2


@pytest.mark.parametrize(
    ("ended", "finished", "told"),
    [
        (None, False, "Not ended: the run is still going, or was killed; 2 of 3 epochs so far."),
        (
            {"epoch": 2, "error": "ValueError: bad"},
            False,
            "The run stopped on an error after 2 of 3 epochs: ValueError: bad",
        ),
        ({"epoch": 2, "error": None}, True, "The run has 2 of 3 epochs."),
        ("absent", False, "The run has 2 of 3 epochs."),
    ],
)
def test_how_a_run_ended(tmp_path, ended, finished, told):
    first = made.start(ended=ended)
    if ended == "absent":
        del first["ended"]
    rows = made.metrics(70.0, 80.0)
    run = load(made.write_run(tmp_path / "r", rows, starts=[first], **made.all_profiles()))
    assert run.finished is finished
    assert told in run.warnings


def test_a_run_recorded_before_ends_were_is_finished_with_its_last_epoch(tmp_path):
    first = made.start()
    del first["ended"]
    run = load(made.write_run(tmp_path / "r", starts=[first], **made.all_profiles()))
    assert run.finished
    assert run.warnings == []


def test_a_run_continued_with_other_versions(tmp_path):
    after = made.start(from_epoch=2, versions={**made.VERSIONS, "torch": "2.15.0"}, images_a_step=32)
    run = load(made.write_run(tmp_path / "r", starts=[made.start(ended=None), after], **made.all_profiles()))
    assert run.finished
    assert run.warnings == [
        "Continued at epoch 2 with changes: images_a_step 16, then 32; torch 2.14.1, then 2.15.0."
    ]


def test_a_continued_run_that_has_not_ended_again(tmp_path):
    profiles = {**made.all_profiles(), "student_epoch_0009": made.profile(9, made.U)}
    rows = made.metrics(70.0, 80.0, 79.0, 85.0)
    text = " ".join(load(made.write_run(tmp_path / "r", rows, **profiles)).warnings)
    assert "The Profile of the best student is of epoch 2, the best now is epoch 4" in text
    assert "Profiles go on to epoch 9, metrics.csv ends at 4" in text


def test_a_diverged_loss_probing_off_and_no_teacher(tmp_path):
    rows = made.metrics(70.0, 80.0, 79.0, teacher=None)
    rows[2]["train/loss"] = "nan"
    conf = made.config(teacher=None)
    conf["probe"]["every_n_epochs"] = 0
    assert load(made.write_run(tmp_path / "r", rows, conf)).warnings == [
        "The training loss is not a finite number at epoch 2: training diverged.",
        "No Profiles: probing was off (probe.every_n_epochs is 0).",
    ]


def test_profiles_that_do_not_compare_within_a_run(tmp_path):
    profiles = made.all_profiles()
    profiles["student_best"] = made.profile(2, made.U, probe_id="p2", bins=50)
    text = " ".join(load(made.write_run(tmp_path / "r", **profiles)).warnings)
    assert "different probe images" in text
    assert "different bins" in text


@pytest.mark.parametrize("edges", [(0.0, 1.5), (-1e6, 1e6), (0.1, 1234567.25)])
def test_an_explicit_range_is_named_by_its_numbers_as_analyze_names_it(tmp_path, edges):
    student = made.profile(0, made.U, range_mode="explicit", value_range=np.tile(edges, (4, 1)))
    name = load(made.write_run(tmp_path / "r", student_epoch_0000=student)).range
    assert name == range_name(edges)
    assert tuple(map(float, name.split(","))) == edges


def test_runs_alike_need_no_warning(tmp_path):
    runs = load_runs(made.write_run(tmp_path / name, **made.all_profiles()) for name in "ab")
    assert comparison_warnings(runs) == []


def test_a_record_without_data_and_sections_that_are_none(tmp_path):
    folder = made.write_run(tmp_path / "r", starts=[made.start(data=None)], **made.all_profiles())
    (folder / "config.yaml").write_text("trainer: often\nmodel: {}\n")
    run = load(folder)
    assert (run.data, run.validation_images, run.config) == (None, None, {})
    assert "No configuration: config.yaml is not the configuration of a run." in run.warnings


def test_models_of_one_analysis_saw_the_same_images_whatever_their_crop(tmp_path):
    curves = [
        (name, "global", None, False, made.profile(None, made.U, model=name, probe_id=name))
        for name in ("vit", "resnet")
    ]
    first = made.write_analysis(tmp_path / "out", curves)
    said = "The models of an analysis saw the same images, each in a size and crop of its own."
    assert comparison_warnings(load_runs([first])) == [said]

    # So did those of another analysis of the same files, in either order; one of other files did not.
    again = made.write_analysis(
        tmp_path / "again", [(*curves[0][:4], made.profile(None, made.U, model="vit"))]
    )
    for order in ([first, again], [again, first]):
        assert comparison_warnings(load_runs(order)) == [said]
    files = {"source": "sample", "n": 4, "seed": 1, "files": ["b"] * 4}
    other = [(*curves[0][:4], made.profile(None, made.U, model="vit", probe_id="p9"))]
    other = made.write_analysis(tmp_path / "other", other, images=files)
    for order in ([again, other], [other, again]):
        assert comparison_warnings(load_runs(order))[0].startswith("Different probe images: ")


def test_students_and_teachers_of_one_name_that_are_not_one_are_told_apart(tmp_path):
    def warned(name, *, kwargs=None, **changed):
        conf = made.config()
        conf["model"]["student"]["init_args"]["timm_kwargs"] = kwargs or {}
        other = made.write_run(tmp_path / name, conf=conf, **{**made.all_profiles(), **changed})
        return comparison_warnings(load_runs([first, other]))

    first = made.write_run(tmp_path / "first", **made.all_profiles())
    assert warned("same") == []
    assert warned("narrow", kwargs={"embed_dim": 64}) == [
        'Different timm_kwargs of the student: {} in first; {"embed_dim": 64} in narrow; not only the method '
        "differs."
    ]
    wide = {"spectrum": [np.full(32, 0.1)] * 4, "spectrum_se": [np.full(32, 0.1)] * 4}
    students = {
        name: made.profile(p.epoch, p.entropy, **wide)
        for name, p in made.all_profiles().items()
        if name != "teacher"
    }
    assert warned("wide", **students) == [
        "Different widths of the student: 16 channels in first; 32 channels in wide; not only the method "
        "differs."
    ]
    for name, teacher in (
        ("turned", made.profile(None, made.TEACHER[::-1], model="cait")),
        ("louder", made.profile(None, made.TEACHER, model="cait", magnitude=np.arange(2.0, 8.0))),
    ):
        assert warned(name, teacher=teacher) == [
            f"Different weights of the teacher: weights 1 in first; weights 2 in {name}; not only the method "
            "differs."
        ]
    # Another device changes the last digits; other images say nothing of the weights.
    assert warned("device", teacher=made.profile(None, made.TEACHER + 1e-5, model="cait")) == []
    elsewhere = made.profile(None, made.TEACHER + 1, model="cait", probe_id="p2")
    assert not any("teacher" in sentence for sentence in warned("elsewhere", teacher=elsewhere))


def test_what_differs_between_runs_is_said(tmp_path):
    def other(**changed):
        return {name: made.profile(p.epoch, p.entropy, **changed) for name, p in made.all_profiles().items()}

    first = made.write_run(tmp_path / "a", **made.all_profiles())
    second = made.start(versions={**made.VERSIONS, "timm": "1.1"}, data={"fingerprint": "d2"})
    layers = {"probe_id": "p2", "range_mode": "layer", "bins": 50, "model": "vit"}
    paths = [first, made.write_run(tmp_path / "b", starts=[second], **other(**layers))]
    paths.append(made.write_published(tmp_path / "Soft.csv", {"model_best": [1, 2, 3]}, layers=3))
    said = comparison_warnings(load_runs(paths))
    assert said == [
        "Different probe images: a; others in b. The curves differ by the images, too.",
        "The images behind Soft are not known, and may differ.",
        "Different value ranges: global in a and Soft; layer in b; entropies compare only within one range.",
        "Different numbers of bins: 100 in a and Soft; 50 in b; entropies do not compare.",
        "Different depths: 4 layers in a and b; 3 layers in Soft; blocks compare only by their relative "
        "depth.",
        "Different students: deit in a; vit in b; not only the method differs.",
        "Different teachers: cait in a; vit in b; not only the method differs.",
        "Different data: a; others in b. Their accuracies are not on the same images.",
        "Different versions of timm: 1.0.31 in a; 1.1 in b.",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"terms": {"spectral": 3}}},
        {"model": {"terms": {"spectral": made.term(weight=None)}}},
        {"model": {"terms": {"spectral": {**made.term(), "loss": None}}}},
        {"model": {"terms": {"spectral": made.term(pairs=[3])}}},
        {"model": {"terms": ["spectral"]}},
        {"model": {"alpha": "0.9 or so"}},
        {"model": "deit"},
        {"trainer": [1]},
        {"probe": "often"},
    ],
)
def test_a_configuration_edited_by_hand_costs_one_warning(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(page, "gallery", lambda _: [])
    folder = made.write_run(tmp_path / "r", conf=wrong, **made.all_profiles())
    assert load(folder).warnings == ["No configuration: config.yaml is not the configuration of a run."]
    text = page.write_report([folder, made.write_run(tmp_path / "s")], tmp_path / "out.html").read_text()
    assert text.count("r: No configuration: config.yaml is not the configuration of a run.") == 1


@pytest.mark.parametrize("data", [None, {"fingerprint": ["d1"], "val_images": "many"}, {"val_images": 0}])
def test_a_record_of_strange_data_says_nothing_of_them(tmp_path, monkeypatch, data):
    monkeypatch.setattr(page, "gallery", lambda _: [])
    paths = [made.write_run(tmp_path / name, starts=[made.start(data=data)]) for name in "ab"]
    paths.append(made.write_run(tmp_path / "c", conf=made.config(epochs=2), starts=[made.start(data=data)]))
    text = page.write_report(paths, tmp_path / "out.html").read_text()
    assert "Highest top-1" in text
    assert "sampling error" not in text


def test_a_preempted_run_is_not_finished(tmp_path):
    first = made.start(ended={"epoch": 2, "error": None, "preempted": True})
    run = load(made.write_run(tmp_path / "r", made.metrics(70.0, 80.0), starts=[first]))
    assert not run.finished
    assert run.warnings[:1] == [
        "The run was asked to make room, and is to be continued; 2 of 3 epochs so far."
    ]


def test_a_run_without_profiles_compares_with_any(tmp_path):
    empty = Run("x", "x", tmp_path, "fit", RunProfiles([], None, None))
    full = load(made.write_run(tmp_path / "a", **made.all_profiles()))
    assert comparison_warnings([empty, full]) == []


def test_lists_of_names():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert listed([f"n{i}" for i in range(70)]) == "n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 and 60 more"


class Stop(Callback):
    def __init__(self, error: str, epoch: int) -> None:
        self.error, self.epoch = error, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise {"KeyboardInterrupt": KeyboardInterrupt, "RuntimeError": RuntimeError}[self.error](
                "first line\nsecond"
            )


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError"])
def test_fit_records_how_it_ended(experiment, tmp_path, no_report, error):
    stop = {"class_path": f"{__name__}.Stop", "init_args": {"error": error, "epoch": 1}}
    with pytest.raises((SystemExit, RuntimeError)):
        main(["fit", "--config", str(experiment("r", trainer__callbacks=[stop]))])
    run_dir = tmp_path / "runs" / "r-1"

    def ends():
        return [entry["ended"] for entry in json.loads((run_dir / "run.json").read_text())["starts"]]

    stopped = {"epoch": 1, "error": f"{error}: first line"}
    assert ends() == [stopped]
    assert not load(run_dir).finished

    again = ["fit", "--config", str(run_dir / "config.yaml"), "--trainer.callbacks", "null", "--ckpt_path"]
    with pytest.raises((SystemExit, UserError, FileNotFoundError, ValueError)):
        main([*again, str(tmp_path / "none.ckpt")])
    assert ends() == [stopped]  # what fails before it starts is no end of the start before

    main([*again, "last"])
    assert ends() == [stopped, {"epoch": 2, "error": None}]
    run = load(run_dir)
    assert run.finished
    chance, floors = run.warnings  # its teacher is drawn at random, 8 images have four tokens each
    assert "near chance" in chance
    assert "floors at the student's 16 channels are not known" in floors
    assert run.validation_images is None  # limit_val_batches: not all of them were validated
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"x": [[1, 2, 0.5], [0, 1, 1.0], [1, 10**9, 1.0]]}, {"x": [(1, 2, 0.5)]}),
        ({"x": [[1, 2]], "y": 3, "v": [], "z": [["a", 1, 1]], "w": [[1, 1, 10**400]]}, {}),
        ([1], {}),
    ],
)
def test_gates_of_a_record_are_read_as_far_as_they_are_some(given, known):
    run = Run("r", "r", Path(), "fit", RunProfiles([], None, None), starts=[{"gates": given}])
    assert run.gates == known
