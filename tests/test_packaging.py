"""What is released: the wheel that an sdist gives, its metadata, and what goes with a version."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from datetime import date
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import distill_dynamics

README = (ROOT / "README.md").read_text()
HERE = re.compile(r"\]\((?!https?:)([^)#]+)")
"""A link, or a picture, in the repository."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and with the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def site(built) -> Path:
    """The wheel, unpacked as pip does it."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(built / "site")
    return built / "site"


@pytest.fixture(scope="module")
def metadata(site) -> Message:
    (file,) = site.glob("*.dist-info/METADATA")
    return message_from_bytes(file.read_bytes())


def in_git(*folders: str) -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    paths = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {path for path in paths if (ROOT / path).exists()}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_has_the_package_and_the_configs_and_nothing_else(site):
    """So no tests and none of their scripts; py.typed, the packaged teacher and the sample are in it."""
    expected = {path: path for path in in_git("distill_dynamics")}
    expected |= {f"distill_dynamics/{path}": path for path in in_git("configs")}
    assert {"distill_dynamics/py.typed", "distill_dynamics/configs/quickstart.yaml"} <= expected.keys()
    assert {path for path in files(site) if ".dist-info/" not in path} == expected.keys()
    for inside, path in expected.items():
        assert (site / inside).read_bytes() == (ROOT / path).read_bytes()


def test_the_sdist_has_what_makes_the_wheel_and_nothing_else(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    beside = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"}
    beside |= {"pyproject.toml", ".gitignore", "PKG-INFO"}  # which every sdist of hatchling has
    assert names == in_git("distill_dynamics", "configs") | beside


FROM_A_WHEEL = """
import sys
from distill_dynamics.cli.packaged import with_packaged
print(with_packaged(sys.argv[1:])[1])
"""


def test_packaged_configs_are_read_from_the_wheel(site, tmp_path):
    command = [sys.executable, "-c", FROM_A_WHEEL, "--config", "packaged:imagenet/softkd"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).samefile(site / "distill_dynamics/configs/imagenet/softkd.yaml")


def test_the_readme_of_the_metadata_has_no_link_that_a_package_index_cannot_follow(metadata):
    shown = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert HERE.findall(README)
    assert HERE.findall(shown) == []
    for path in HERE.findall(re.sub(r"!\[[^\]]*\]\([^)]*\)", "", README)):
        assert f" (`{path}`)" in shown
    links = re.findall(r"\]\((https?:[^)]+)\)", README)
    assert links
    assert re.findall(r"\]\((https?:[^)]+)\)", shown) == links


@pytest.mark.parametrize("page", sorted(path for path in in_git("*.md") if "fixtures" not in path))
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in HERE.findall(text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_one_version_everywhere(metadata):
    version = distill_dynamics.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert metadata["Version"] == version == citation["version"]
    days = [date.fromisoformat(day) for _, day in heading if day]
    assert days == sorted(days, reverse=True)
    if ".dev" in version:
        assert heading[0] == ("Unreleased", "")
        assert "date-released" not in citation
    else:
        assert (version, str(citation["date-released"])) in heading[:2]
