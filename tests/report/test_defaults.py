"""Defaults as a page takes them from a file's text, against those of the class itself."""

import inspect
import subprocess
import sys

import pytest

from distill_dynamics import losses, schedule
from distill_dynamics.report.defaults import defaults_of
from distill_dynamics.report.methods import describe

PLAIN = int | float | str | bool | None


@pytest.mark.parametrize("home", [losses, schedule], ids=lambda home: home.__name__)
def test_they_are_those_of_the_signature(home):
    seen = 0
    for name in dir(home):
        thing = getattr(home, name)
        if not inspect.isclass(thing) or not thing.__module__.startswith(home.__name__):
            continue
        parameters = inspect.signature(thing).parameters.values()
        wanted = {p.name: p.default for p in parameters if isinstance(p.default, PLAIN)}
        assert defaults_of(f"{home.__name__}.{name}") == wanted, name
        seen += bool(wanted)
    assert seen >= 3


def test_another_ones_class_has_none_and_torch_is_not_loaded():
    assert defaults_of("mine.losses.SpectralKD") == defaults_of("distill_dynamics.losses.Nothing") == {}
    code = (
        "import sys; from distill_dynamics.report.defaults import defaults_of; "
        "assert defaults_of('distill_dynamics.losses.PCATarget')['rotate']; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_path_of_a_stranger_reads_no_file_and_raises_nothing(tmp_path):
    (tmp_path / "broken.py").write_text("class X(:\n")
    (tmp_path / "mine.py").write_text("class X:\n    def __init__(self, secret=1): ...\n")
    for module in (f"{tmp_path}/broken", f"{tmp_path}/mine", "a" * 5000, "\0", "", ".."):
        assert defaults_of(f"distill_dynamics.{module}.X") == {}


def test_a_method_names_what_is_not_the_default():
    given = {"rank": None, "whiten": False, "components": "random", "rotate": True}
    loss = {"class_path": "distill_dynamics.losses.PCATarget", "init_args": given}
    model = {"teacher": {}, "terms": {"pca": {"loss": loss, "last": 1}}}
    assert describe({"model": model})[:2] == ("PCATarget", "components: random")
    given["components"] = "principal"
    assert describe({"model": model})[:2] == ("PCATarget", "")
