"""What docker/Dockerfile takes into the image, without building it (docker/build_locally.sh does that)."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[list[str]]:
    return [shlex.split(found) for found in re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)]


def test_what_is_copied_is_sent_to_the_builder():
    """.dockerignore leaves everything out but what it names."""
    sources = {source for words in instructions("COPY") for source in words[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert sources == {line[1:] for line in lines if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_lock_has_every_dependency_in_a_version_that_is_allowed():
    locked = dict(re.findall(r"^(\S+?)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["build"], *extras["streaming"]]:  # it reads s3:// too
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), line


def test_the_project_installs_from_what_is_copied_alone(tmp_path):
    """As the image does it: no build isolation, no index; the package's data (sample, teacher) come along."""
    here = tmp_path / "project"
    here.mkdir()
    for *sources, target in instructions("COPY"):
        for source in sources if target.startswith("/tmp/project") else []:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, here / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, here)
    (command,) = re.findall(r"pip (install .*) /tmp/project", DOCKERFILE)
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", *shlex.split(command), "--quiet", "--target", str(target), str(here)],
        check=True,
    )
    package = "distill_dynamics"
    files = {
        path.relative_to(ROOT)
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in files if not (target / path).is_file()} == set()


@pytest.mark.parametrize("word", ["USER", "WORKDIR", "ENTRYPOINT"])
def test_the_image_is_not_roots_and_starts_with_its_checks(word):
    (words,) = instructions(word)
    if word == "USER":
        # Numbers: Kubernetes could not judge a name. Those of a base's own users (ubuntu: 1000) are taken.
        assert all(int(number) >= 10_000 for number in words[0].split(":"))
        assert f"useradd --uid {words[0].split(':')[0]} " in DOCKERFILE
    elif word == "ENTRYPOINT":
        assert "/entrypoint.sh" in words[0]
        assert (ROOT / "docker" / "entrypoint.sh").stat().st_mode & 0o111 == 0o111
    else:
        # Where the configs' relative paths lead, and what anyone may write to.
        assert f"mkdir -p {words[0]}/runs" in DOCKERFILE
        assert f"configs {words[0]}/configs" in DOCKERFILE


def test_wherever_the_image_is_started_its_checks_run():
    """`apptainer exec` and --entrypoint would go around them."""
    lines = [
        line
        for path in (ROOT / "docker").rglob("*")
        if path.is_file()
        for line in path.read_text().splitlines()
        if "distill_dynamics.sif" in line or "docker run" in line
    ]
    assert len(lines) > 3
    assert [line for line in lines if re.search(r"apptainer (exec|shell)|--entrypoint", line)] == []


def test_the_base_is_of_one_python_and_one_debian_and_is_named_in_the_image():
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    after = DOCKERFILE.partition("\nFROM ${BASE}\n")[2]
    # A build argument from before FROM is empty after it, unless it is asked for again.
    assert after.index("\nARG BASE\n") < after.index('base.name="${BASE}"')
    assert base in (ROOT / "docker" / "README.md").read_text()
