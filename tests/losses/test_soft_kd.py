import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from distill_dynamics.errors import UserError
from distill_dynamics.losses import SoftKD, soft_kd
from distill_dynamics.losses.logits import soft_kd_top, top_classes


def scipy_soft_kd(student_logits, teacher_logits, temperature):
    student = scipy.special.softmax(student_logits.double().numpy() / temperature, axis=1)
    teacher = scipy.special.softmax(teacher_logits.double().numpy() / temperature, axis=1)
    return scipy.stats.entropy(teacher, student, axis=1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (32, 1000)])
def test_against_scipy(shape, temperature):
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(shape), 5 * torch.randn(shape)
    expected = scipy_soft_kd(student, teacher, temperature)
    assert SoftKD(temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert soft_kd(student.double(), teacher.double(), temperature).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_the_papers_temperature_is_the_default():
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    assert SoftKD()(student, teacher).item() == pytest.approx(scipy_soft_kd(student, teacher, 1.0), rel=1e-5)


def test_zero_where_equal_up_to_a_shift():
    logits = torch.randn(4, 10, dtype=torch.float64)
    assert soft_kd(logits + 3, logits).item() == pytest.approx(0, abs=1e-14)


def test_gradient():
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_kd(s, teacher, 2.0), student)

    soft_kd(student, teacher, 2.0).backward()
    softened_difference = torch.softmax(student / 2, 1) - torch.softmax(teacher / 2, 1)
    torch.testing.assert_close(student.grad, 2.0 * softened_difference / 3)
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_lose_nothing_more(dtype):
    student, teacher = torch.randn(8, 1000).to(dtype), torch.randn(8, 1000).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_kd(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(scipy_soft_kd(student, teacher, 1.0), rel=1e-5)


def test_sure_teacher_and_huge_logits_stay_finite():
    student = torch.tensor([[0.0, 1000.0]], requires_grad=True)
    loss = soft_kd(student, torch.tensor([[1000.0, -1000.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert student.grad.isfinite().all()


def test_non_contiguous_logits():
    student, teacher = torch.randn(10, 6).T, torch.randn(12, 10)[::2]
    assert soft_kd(student, teacher).item() == pytest.approx(scipy_soft_kd(student, teacher, 1.0), rel=1e-5)


@pytest.mark.parametrize("teacher_shape", [(8, 1000), (1, 10), (7, 10), (8, 10, 1)])
def test_other_classes_or_images_are_refused(teacher_shape):
    with pytest.raises(ValueError, match=r"\[8, 10\] \(student\)"):
        soft_kd(torch.randn(8, 10), torch.randn(teacher_shape))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_is_positive(temperature):
    with pytest.raises(UserError, match="temperature"):
        SoftKD(temperature)


# --- the likeliest classes ----------------------------------------------------------------------------


def scipy_soft_kd_top(student_logits, teacher_logits, k, temperature):
    """What is stored, filled up evenly, and the divergence from that."""
    teacher = scipy.special.softmax(teacher_logits.double().numpy() / temperature, axis=1)
    student = scipy.special.softmax(student_logits.double().numpy() / temperature, axis=1)
    filled = teacher.copy()
    for row in filled:
        others = row.argsort()[:-k]
        row[others] = row[others].sum() / len(others)
    return scipy.stats.entropy(filled, student, axis=1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("classes", "k"), [(10, 3), (1000, 100), (5, 1)])
def test_top_classes_against_scipy(classes, k, temperature):
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(16, classes), 5 * torch.randn(16, classes)
    loss = soft_kd_top(student, top_classes(teacher, k, temperature), temperature)
    assert loss.item() == pytest.approx(scipy_soft_kd_top(student, teacher, k, temperature), rel=1e-5)


@pytest.mark.parametrize("k", [10, 100])
def test_with_all_classes_it_is_soft_kd(k):
    student, teacher = torch.randn(8, 10).double(), 4 * torch.randn(8, 10).double()
    loss = soft_kd_top(student, top_classes(teacher, k, 2.0), 2.0)
    assert loss.item() == pytest.approx(scipy_soft_kd(student, teacher, 2.0), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_the_distance_from_the_whole_loss_is_the_documented_one(scale, temperature):
    torch.manual_seed(1)
    classes, k, images = 50, 5, 16
    others = classes - k
    logits, teacher = torch.randn(images, classes).double(), scale * torch.randn(images, classes).double()
    top = top_classes(teacher, k, temperature)
    whole, cut = (logits.clone().requires_grad_() for _ in range(2))
    full, short = soft_kd(whole, teacher, temperature), soft_kd_top(cut, top, temperature)
    full.backward()
    short.backward()

    p, log_q = (teacher / temperature).softmax(1), (logits / temperature).log_softmax(1)
    left = torch.ones_like(p, dtype=torch.bool).scatter(1, top.classes, False)
    p, log_q = p[left].view(images, others), log_q[left].view(images, others)
    m = p.sum(1, keepdim=True)
    entropy = torch.special.entr(p / m).sum(1)
    more = m[:, 0] * (np.log(others) - entropy) - ((p - m / others) * log_q).sum(1)
    assert (full - short).item() == pytest.approx(more.mean().item() * temperature**2, rel=1e-9, abs=1e-12)
    bound = m[:, 0] * (np.log(others) + log_q.amax(1) - log_q.amin(1))
    assert (more.abs() <= bound).all()

    wrong = (whole.grad - cut.grad).abs()
    assert wrong[~left].max().item() == pytest.approx(0, abs=1e-15)
    in_all = wrong.sum(1) / (temperature / images)
    torch.testing.assert_close(in_all, (p - m / others).abs().sum(1))
    assert (in_all <= 2 * m[:, 0] * (1 - 1 / others)).all()


@pytest.mark.parametrize(
    ("deviation", "m", "full", "cut", "near_full", "near_cut"),
    [
        (2, 0.24, 3.88, 3.70, 0.48, 0.74),
        (3, 0.06, 5.48, 5.41, 0.43, 0.55),
        (5, 0.002, 7.20, 7.20, 0.30, 0.31),
        (8, 2e-5, 8.01, 8.01, 0.20, 0.20),
    ],
)
def test_the_table_of_distances(deviation, m, full, cut, near_full, near_cut):
    torch.manual_seed(0)
    teacher = deviation * torch.randn(2048, 1000)
    top = top_classes(teacher, 100)
    assert top.rest.mean().item() == pytest.approx(m, rel=0.3)
    other, near = 2 * torch.randn(2048, 1000), teacher + torch.randn(2048, 1000)
    for student, *expected in ((other, full, cut), (near, near_full, near_cut)):
        found = [soft_kd(student, teacher).item(), soft_kd_top(student, top).item()]
        assert found == pytest.approx(expected, rel=0.12)
        assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], abs=0.03)


def test_a_sure_teachers_rest_is_not_lost():
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    rest = top_classes(logits, 1).rest.item()
    assert rest == pytest.approx(3 * np.exp(-30), rel=1e-4)
    assert soft_kd_top(torch.zeros(1, 4), top_classes(torch.tensor([[300.0, 0, 0, 0]]), 1)).item() == (
        pytest.approx(np.log(4))
    )


def test_half_precision_answers_cost_no_more_than_their_rounding():
    torch.manual_seed(2)
    student, teacher = 3 * torch.randn(32, 1000), 5 * torch.randn(32, 1000)
    top = top_classes(teacher, 100)
    stored = top._replace(log_probs=top.log_probs.half(), rest=top.rest.half())
    exact, rounded = soft_kd_top(student, top), soft_kd_top(student, stored)
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)


def test_answers_of_other_images_are_refused():
    with pytest.raises(ValueError, match="of 4 images"):
        soft_kd_top(torch.randn(3, 10), top_classes(torch.randn(4, 10), 2))
