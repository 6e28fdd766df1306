"""What `fit --baselines` trains beside its config: each arm is a few options after the words of the user."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from distill_dynamics import yaml_text
from distill_dynamics.cli.checks import check_name, check_trainer, refuse_functions, stem_of
from distill_dynamics.cli.datamodule import set_num_classes
from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.save_config import config_text
from distill_dynamics.errors import UserError, at
from distill_dynamics.models.create import classes_of
from distill_dynamics.report.methods import PLAIN, SOFTKD, describe
from distill_dynamics.teacher_cache.cache import TeacherCache

SUFFIXES = OWN, OF_SOFTKD, OF_ALONE = "", "-softkd", "-alone"
"""Of the names of runs: of the config as it is given, and of its baselines."""


class Arm(NamedTuple):
    """One way to train the student. Its runs differ by their seed alone."""

    suffix: str
    """Of its runs' names; "" for the config as it is given."""
    method: str
    """As the report calls it."""
    change: str
    """How it differs from the config, in words."""
    options: list[str]
    """The same, after the words of the user."""
    config: dict[str, Any]
    """As config.yaml would have it; name and seed are the user's."""


class Settings(DistillCLI):
    """The configuration that a command line of `fit` gives. Nothing is made of it."""

    def _set_seed(self) -> None:
        """Nothing: this process draws nothing."""

    def before_instantiate_classes(self) -> None:
        """Refuse what `fit` would, but for checkpoints."""
        config = self.config.fit
        check_name(config.name)
        check_trainer(config.trainer)
        refuse_functions(config)
        set_num_classes(config)

    def instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """What other words give, as config.yaml would have it."""
        config = self.parser.parse_args(words).fit
        set_num_classes(config)
        return self.saved(config)

    def saved(self, config: Any) -> dict[str, Any]:
        """As config.yaml would have it."""
        return yaml_text.load(config_text(self._parser("fit"), config))


def arms_of(settings: Settings, words: Sequence[str], baselines: bool) -> tuple[list[Arm], list[str]]:
    """The config's own arm and its baselines; and why there is not one of these, if so.

    UserError where no baseline makes sense.
    """
    config = settings.config.fit
    own = settings.saved(config)
    method = describe(own)[0]
    arms, left_out = [Arm(OWN, method, "the config as it is", [], own)], list[str]()
    if not baselines:
        return arms, left_out
    classes = _classes(config.model.student)
    if classes == 0:
        raise UserError(
            "--baselines: the student has no classes, so it can be trained neither by SoftKD nor alone"
        )
    stem = config.wandb.group or stem_of(config)
    for suffix, name, reason, change, options in (
        (OF_SOFTKD, SOFTKD, _no_softkd(config, method, classes), *_softkd(config)),
        (OF_ALONE, PLAIN, "", "without teacher and terms", _alone(config)),
    ):
        if method == name:
            reason = "the config is that itself"
        if reason:
            left_out.append(f"{name} is left out: {reason}")
            continue
        options += ["--wandb.group", f"{stem}{suffix}"]
        arms.append(Arm(suffix, name, change, options, settings.given([*words, *options])))
    if len(arms) == 1:
        raise UserError(f"--baselines: there is none to compare with: {'; '.join(left_out)}")
    return arms, left_out


def _softkd(config: Any) -> tuple[str, list[str]]:
    """In words and as options. The share of the teacher's logits is the config's, if it has one."""
    if config.model.alpha == 0:
        return "its terms removed, alpha at its default", ["--model.terms", "null", "--model.alpha", "null"]
    return "its terms removed", ["--model.terms", "null"]


def _alone(config: Any) -> list[str]:
    options = ["--model.teacher", "null", "--model.terms", "null", "--model.alpha", "null"]
    options += ["--model.teachers", "null"] if config.model.teachers else []
    for key, nothing in (("teacher_cache", None), ("teacher_precision", None), ("shard_teacher", False)):
        if config.model[key] != nothing:
            options += [f"--model.{key}", "null" if nothing is None else "false"]
    return options


def _no_softkd(config: Any, method: str, classes: int | None) -> str:
    """Why SoftKD cannot be trained; "" if it can."""
    model = config.model
    if model.teachers:
        return "of which of model.teachers it would be is for a config to say"
    if model.teacher is None:
        return "the config has no teacher"
    if method == SOFTKD or (model.alpha != 0 and "kd" not in (model.terms or {})):
        return ""  # it reads the teacher's logits itself
    if model.teacher_cache:
        with at("model.teacher_cache"):
            cache = TeacherCache.read(model.teacher_cache)
        if not cache.logit_fields() or (cache.is_cut and cache.temperature != model.temperature):
            return f"{cache.folder} holds no logits for it: build the cache with alpha above 0"
    made = pkgutil.resolve_name(model.teacher.class_path)(**model.teacher.init_args.as_dict())
    if made.num_classes != (classes or made.num_classes) or not made.num_classes:
        return f"the teacher has {made.num_classes} classes, and the student {classes}"
    return "the teacher's head is made anew, and answers at random" if made.new_head else ""


def _classes(student: Any) -> int | None:
    """How many it has; None where that is not known before it is made."""
    given = student.init_args
    known = (given.get("timm_kwargs") or {}).get("num_classes")
    return classes_of(given.get("name")) if known is None else known
