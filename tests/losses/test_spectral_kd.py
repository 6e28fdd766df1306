import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill_dynamics.losses import SpectralKD, spectral_kd


def numpy_pool(x, axis, size):
    length = x.shape[axis]
    if length == size:
        return x
    bins = [slice(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    return np.stack([np.take(x, range(length)[b], axis).mean(axis) for b in bins], axis)


def numpy_spectral_kd(student_map, teacher_map):
    student, teacher = student_map.detach().double().numpy(), teacher_map.detach().double().numpy()
    stacked = []
    for x in (student, teacher):
        for axis in (2, 3, 1):
            x = numpy_pool(x, axis, min(student.shape[axis], teacher.shape[axis]))
        spectrum = np.fft.rfft2(x, norm="ortho")
        stacked.append(np.stack([spectrum.real, spectrum.imag]))
    return np.square(stacked[0] - stacked[1]).mean()


SHAPES = [
    ((2, 6, 7, 7), (2, 6, 7, 7)),
    ((2, 6, 8, 8), (2, 6, 8, 8)),
    ((2, 6, 4, 9), (2, 6, 4, 9)),
    ((2, 6, 9, 4), (2, 6, 9, 4)),
    ((1, 3, 1, 1), (1, 3, 1, 1)),
    ((1, 3, 5, 1), (1, 3, 5, 1)),
    ((1, 3, 1, 2), (1, 3, 1, 2)),
    ((2, 192, 14, 14), (2, 384, 14, 14)),
    ((2, 5, 7, 7), (2, 12, 7, 7)),
    ((2, 12, 7, 7), (2, 5, 7, 7)),
    ((2, 6, 14, 14), (2, 6, 7, 7)),
    ((2, 6, 7, 7), (2, 6, 16, 16)),
    ((2, 6, 5, 12), (2, 6, 9, 8)),
    ((1, 7, 14, 14), (1, 64, 8, 8)),
]


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
def test_against_numpys_transform(student_shape, teacher_shape):
    torch.manual_seed(0)
    student, teacher = torch.randn(student_shape), 3 + torch.randn(teacher_shape)
    expected = numpy_spectral_kd(student, teacher)
    loss = SpectralKD(student_shape[1], teacher_shape[1])(student, teacher)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    assert spectral_kd(student.double(), teacher.double()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_value_and_gradient_of_the_stacked_form(width):
    def stacked(x):
        spectrum = torch.fft.rfft2(x, norm="ortho")
        return torch.stack([spectrum.real, spectrum.imag])

    student = torch.randn(2, 3, 5, width, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 5, width, dtype=torch.float64)
    slow = F.mse_loss(stacked(student), stacked(teacher))
    fast = spectral_kd(student, teacher)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, student)[0], torch.autograd.grad(slow, student)[0])


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((2, 3, 4, 4), (2, 5, 4, 4)), ((1, 5, 4, 5), (1, 3, 4, 5)), ((1, 4, 6, 5), (1, 4, 4, 4))],
)
def test_gradient_through_the_pooling_and_none_to_the_teacher(student_shape, teacher_shape):
    student = torch.randn(student_shape, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(teacher_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: spectral_kd(s, teacher), student)
    spectral_kd(student, teacher).backward()
    assert teacher.grad is None


def test_zero_at_the_teacher():
    teacher = torch.randn(2, 6, 7, 7)
    assert spectral_kd(teacher.clone(), teacher).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_maps_are_compared_in_float32(dtype):
    student, teacher = (100 + torch.randn(2, 6, 7, 7)).to(dtype), (100 + torch.randn(2, 9, 14, 14)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = spectral_kd(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(numpy_spectral_kd(student, teacher), rel=1e-4)


def test_non_contiguous_maps():
    student = torch.randn(2, 7, 7, 6).permute(0, 3, 1, 2)
    teacher = torch.randn(4, 7, 7, 9)[::2].permute(0, 3, 1, 2)
    assert spectral_kd(student, teacher).item() == pytest.approx(
        numpy_spectral_kd(student, teacher), rel=2e-6
    )


def test_channels_need_not_be_declared():
    student, teacher = torch.randn(2, 6, 7, 7), torch.randn(2, 9, 7, 7)
    assert SpectralKD()(student, teacher).item() == pytest.approx(
        numpy_spectral_kd(student, teacher), rel=2e-6
    )


@pytest.mark.parametrize(
    ("channels", "whose"), [((7, 9), "student"), ((6, 8), "teacher"), ((None, 8), "teacher")]
)
def test_other_channels_than_declared(channels, whose):
    with pytest.raises(ValueError, match=f"the {whose}'s map"):
        SpectralKD(*channels)(torch.randn(2, 6, 7, 7), torch.randn(2, 9, 7, 7))


@pytest.mark.parametrize("teacher_shape", [(1, 6, 7, 7), (3, 6, 7, 7), (2, 49, 6)])
def test_maps_of_other_images_are_refused(teacher_shape):
    with pytest.raises(ValueError, match="of the same images"):
        spectral_kd(torch.randn(2, 6, 7, 7), torch.randn(teacher_shape))


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
def test_the_teachers_part_is_all_the_loss_sees(student_shape, teacher_shape):
    torch.manual_seed(0)
    student, teacher = torch.randn(student_shape), torch.randn(teacher_shape)
    loss = SpectralKD(student_shape[1], teacher_shape[1])
    part = loss.cacheable(torch.zeros_like(student), teacher)
    assert list(part.shape) == np.minimum(student_shape, teacher_shape).tolist()
    assert loss(student, part).item() == pytest.approx(numpy_spectral_kd(student, teacher), rel=1e-5)
