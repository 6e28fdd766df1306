"""The rows of the study's table: which runs there are, and what each row is compared with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed alone."""

    label: str
    seeds: int = 3
    """Five where the paper makes a claim, three for 60 epochs and elsewhere; see `extended`."""
    config: str | None = None
    """Its YAML in configs/fashion_mnist, where that has not the row's name."""
    teacher: str | None = "cait24"
    cached: bool = True
    """Whether the teacher's answers, if it has one, come from a cache."""
    baseline: str | None = "softkd"
    """The row that it is compared with, of the same teacher and as many epochs."""
    paper: float | None = None
    """Top-1 on ImageNet, percent: the paper's Table 1, whose second "F 1" is L 1 by its text (Section 4.1).

    None for ProjectorKD but for the frozen row: the paper's projectors were never trained.
    """
    watched: bool = False
    """Whether its checkpoints are analysed once more, under other ranges of the entropy's bins."""
    extended: bool = False
    """Whether it was planned with three seeds, and got two more after these had been seen."""


ROWS = {
    "none": Row("no distillation", 5, teacher=None, watched=True),
    "none_std01": Row("no distillation, larger input", teacher=None, baseline="none", watched=True),
    "softkd": Row("SoftKD", 5, baseline=None, paper=76.99, watched=True),
    "softkd_online": Row("SoftKD, teacher online", config="softkd", cached=False),
    "softkd_long": Row("SoftKD, longer", 5, baseline=None, paper=78.07),
    "softkd_60": Row("SoftKD, 60 epochs", baseline=None),
    "spectralkd_f2_l6": Row("SpectralKD F 2, L 6", paper=77.07),
    "spectralkd_f2_l1": Row("SpectralKD F 2, L 1", paper=77.06),
    "spectralkd_f1_l1": Row("SpectralKD F 1, L 1", 5, paper=77.08, watched=True),
    "spectralkd_f1": Row("SpectralKD F 1", 5, paper=77.00, watched=True),
    "spectralkd_l1": Row("SpectralKD L 1", 5, paper=76.83, watched=True),
    "spectralkd_l1_long": Row("SpectralKD L 1, longer", 5, baseline="softkd_long", paper=77.59),
    "spectralkd_l1_60": Row("SpectralKD L 1, 60 epochs", baseline="softkd_60"),
    "spectralkd_l1_beta01": Row("SpectralKD L 1, half β", 5, paper=76.48),
    "spectralkd_l8": Row("SpectralKD L 8", paper=76.69),
    "projectorkd_f1": Row("ProjectorKD F 1", 5, extended=True),
    "projectorkd_l1": Row("ProjectorKD L 1", 5),
    "projectorkd_l1_frozen": Row("ProjectorKD L 1, frozen", 5, paper=76.72),
    "projectorkd_f1_l1": Row("ProjectorKD F 1, L 1"),
    "softkd_resnet": Row("SoftKD, ResNet teacher", 5, teacher="resnet", extended=True),
    "spectralkd_l1_resnet": Row(
        "SpectralKD L 1, ResNet teacher", 5, teacher="resnet", baseline="softkd_resnet", extended=True
    ),
}
"""In the order of the table of accuracies."""

TEACHERS = {"teacher_cait24": "teacher, CaiT", "teacher_resnet": "teacher, ResNet"}
"""Runs of one seed; theirs are the names of their YAMLs, too."""
CONTROLS = {"teacher_cait24_std035": "CaiT, smaller input"}
"""Likewise, and each is trained as the teacher whose name it begins with, but for what its own YAML says."""
