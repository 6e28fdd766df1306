import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill_dynamics.losses import ProjectorKD, projector_kd


def published_loss(student_map, teacher_map, weight, bias):
    grid = [min(a, b) for a, b in zip(student_map.shape[2:], teacher_map.shape[2:], strict=True)]
    student_map = nn.AdaptiveAvgPool2d(grid)(student_map)
    teacher_map = nn.AdaptiveAvgPool2d(grid)(teacher_map)
    projected = F.linear(student_map.movedim(1, -1), weight, bias).movedim(-1, 1)
    return F.mse_loss(
        F.batch_norm(projected, None, None, training=True),
        F.batch_norm(teacher_map, None, None, training=True),
    )


def numpy_loss(student_map, teacher_map, weight, bias):
    student, teacher, weight, bias = (
        x.detach().double().numpy() for x in (student_map, teacher_map, weight, bias)
    )
    projected = np.einsum("tc,bchw->bthw", weight, student) + bias[:, None, None]
    standard = [
        (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        for x in (projected, teacher)
    ]
    return np.square(standard[0] - standard[1]).mean()


SHAPES = [
    ((2, 6, 7, 7), (2, 6, 7, 7)),
    ((3, 4, 7, 7), (3, 9, 7, 7)),
    ((3, 9, 7, 7), (3, 4, 7, 7)),
    ((1, 4, 7, 7), (1, 9, 7, 7)),
    ((4, 4, 1, 1), (4, 9, 1, 1)),
    ((2, 6, 14, 14), (2, 8, 7, 7)),
    ((2, 6, 5, 12), (2, 8, 9, 8)),
]


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
@pytest.mark.parametrize("trainable", [True, False])
def test_at_the_start_it_is_the_published_form(student_shape, teacher_shape, trainable):
    torch.manual_seed(0)
    student, teacher = torch.randn(student_shape), 2 + 3 * torch.randn(teacher_shape)
    loss = ProjectorKD(student_shape[1], teacher_shape[1], trainable=trainable)
    weight, bias = loss.projector.weight, loss.projector.bias
    expected = published_loss(student, teacher, weight, bias)
    for _ in range(2):
        torch.testing.assert_close(loss.train()(student, teacher), expected)
        torch.testing.assert_close(loss.eval()(student, teacher), expected)


def test_against_numpy():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 7, 7), 2 + 3 * torch.randn(3, 9, 7, 7)
    weight, bias = torch.randn(9, 4), torch.randn(9)
    expected = numpy_loss(student, teacher, weight, bias)
    assert projector_kd(student, teacher, weight, bias).item() == pytest.approx(expected, rel=1e-5)
    in_double = projector_kd(student.double(), teacher.double(), weight.double(), bias.double())
    assert in_double.item() == pytest.approx(expected, rel=1e-12)


def test_the_projector_is_a_linear_layer_made_at_once():
    torch.manual_seed(0)
    linear = nn.Linear(4, 9)
    torch.manual_seed(0)
    parameters = dict(ProjectorKD(4, 9).named_parameters())
    torch.testing.assert_close(list(parameters.values()), [linear.weight, linear.bias], rtol=0, atol=0)
    assert all(p.requires_grad for p in parameters.values())
    assert set(ProjectorKD(4, 9).state_dict()) == set(parameters)


def test_the_published_projector_stays_as_it_is():
    loss = ProjectorKD(4, 9, trainable=False)
    student = torch.randn(2, 4, 7, 7, requires_grad=True)
    loss(student, torch.randn(2, 9, 7, 7)).backward()
    assert student.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())
    assert set(loss.state_dict()) == set(ProjectorKD(4, 9).state_dict())


def test_gradient_and_none_to_the_teacher():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(4, 3), (4,)])
    assert torch.autograd.gradcheck(lambda *x: projector_kd(x[0], teacher, *x[1:]), (student, weight, bias))
    projector_kd(student, teacher, weight, bias).backward()
    assert teacher.grad is None
    assert bias.grad.abs().max() < 1e-14


def test_training_reaches_least_squares_and_does_not_collapse():
    # Per teacher channel the standardised error of a linear map is 2 (1 - R) at best, with R the multiple
    # correlation that least squares gives. Trainable batch-norm scales go to 0 instead.
    torch.manual_seed(0)
    student = torch.randn(4, 5, 6, 6)
    teacher = torch.randn(4, 8, 6, 6) + torch.einsum("tc,bchw->bthw", torch.randn(8, 5), student)
    x = student.movedim(1, -1).flatten(0, 2).double().numpy()
    y = teacher.movedim(1, -1).flatten(0, 2).double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    correlation = np.sqrt(np.square(fitted).sum(0) / np.square(y).sum(0))

    loss = ProjectorKD(5, 8)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def value():
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        return value

    assert value().item() > 1
    optimizer.step(value)
    assert value().item() == pytest.approx(2 * (1 - correlation).mean(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast(dtype):
    torch.manual_seed(0)
    loss = ProjectorKD(16, 24)
    student = torch.randn(4, 16, 7, 7).to(dtype).requires_grad_()
    teacher = (10 + torch.randn(4, 24, 7, 7)).to(dtype)
    expected = numpy_loss(student, teacher, loss.projector.weight, loss.projector.bias)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-2)
    assert student.grad.dtype == dtype
    assert loss.projector.weight.grad.abs().sum() > 0


def test_a_model_in_bfloat16():
    loss = ProjectorKD(16, 24).bfloat16()
    value = loss(torch.randn(4, 16, 7, 7).bfloat16(), torch.randn(4, 24, 7, 7).bfloat16())
    assert value.dtype == torch.float32


def test_non_contiguous_maps():
    loss = ProjectorKD(6, 9)
    student = torch.randn(2, 7, 7, 6).permute(0, 3, 1, 2)
    teacher = torch.randn(4, 7, 7, 9)[::2].permute(0, 3, 1, 2)
    expected = numpy_loss(student, teacher, loss.projector.weight, loss.projector.bias)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("channels", "whose"), [((7, 9), "student"), ((6, 8), "teacher")])
def test_other_channels_than_declared(channels, whose):
    with pytest.raises(ValueError, match=f"the {whose}'s map"):
        ProjectorKD(*channels)(torch.randn(2, 6, 7, 7), torch.randn(2, 9, 7, 7))


def test_maps_of_other_images_are_refused():
    with pytest.raises(ValueError, match="of the same images"):
        ProjectorKD(6, 9)(torch.randn(2, 6, 7, 7), torch.randn(1, 9, 7, 7))


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
def test_the_teachers_part_is_all_the_loss_sees(student_shape, teacher_shape):
    torch.manual_seed(0)
    student, teacher = torch.randn(student_shape), torch.randn(teacher_shape)
    loss = ProjectorKD(student_shape[1], teacher_shape[1])
    part = loss.cacheable(torch.zeros_like(student), teacher)
    assert list(part.shape[2:]) == np.minimum(student_shape[2:], teacher_shape[2:]).tolist()
    expected = published_loss(student, teacher, loss.projector.weight, loss.projector.bias)
    torch.testing.assert_close(loss(student, part), expected)
