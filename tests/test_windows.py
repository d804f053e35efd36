"""Chunks of windows: the same numbers and derivatives, with memory that does not grow with their number."""

import pytest
import torch
from torch import nn

from slams.rng import normal
from slams.windows import in_chunks, saved_bytes, windowed

LENGTH, Z, H, W = 5, 2, 4, 8


def denoiser():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(LENGTH * Z, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, LENGTH * Z, 3, padding=1))
    inner.requires_grad_(False)

    def denoise(z, t, day, background=None):
        out = inner(z.flatten(1, 2)).unflatten(1, (LENGTH, Z)) * t + day.mean(dim=(1, 2))[:, None, None, None, None]
        if background is not None:
            out = out + background.known_B[:, None, None, None, None] * background.z_BZHW[:, None]
        return out

    return denoise


def trajectory(members, days, seed=1):
    return torch.from_numpy(normal(seed, "init", shape=(members, days, Z, H, W)))


def second_derivative(denoise, z):
    """d^2 / dz^2 of the sum of squares, along z: what an observation operator behind the denoiser asks for."""
    z = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(denoise(z, torch.tensor(0.5)).pow(2).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((first * z.detach()).sum(), z)
    return first.detach(), second


@pytest.mark.parametrize("at_once", [1, 4, 7, 100])
def test_chunks_change_neither_values_nor_derivatives(at_once):
    z, day = trajectory(2, 9), torch.linspace(0, 1, 45).reshape(9, 5)
    whole, parts = (windowed(denoiser(), LENGTH, day, n) for n in (0, at_once))
    torch.testing.assert_close(parts(z, torch.tensor(0.5)), whole(z, torch.tensor(0.5)))
    for one, other in zip(second_derivative(parts, z), second_derivative(whole, z), strict=True):
        torch.testing.assert_close(one, other)


def test_a_derivative_may_be_asked_for_repeatedly():
    """As conjugate gradients do: one forward pass, many backward passes."""
    z = trajectory(1, 9).requires_grad_()
    d = windowed(denoiser(), LENGTH, torch.zeros(9, 5), 2)(z, torch.tensor(0.5))
    first, again = (torch.autograd.grad(d, z, torch.ones_like(d), retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_memory_kept_for_the_backward_pass_does_not_grow_with_the_trajectory():
    """Beyond the windows themselves, which are the input."""

    def kept(days, at_once):
        denoise = windowed(denoiser(), LENGTH, torch.zeros(days, 5), at_once)
        z = trajectory(1, days)
        return saved_bytes(lambda z: denoise(z, torch.tensor(0.5)), z) / z.nbytes

    assert kept(40, 0) > 20  # what the network keeps of every window
    assert kept(40, 2) < 8  # five overlapping copies of a frame


def test_saved_bytes_counts_what_a_known_function_keeps():
    """sin keeps its argument, exp its value, exp(sin) both; a view of either nothing more."""
    x = torch.zeros(1000, dtype=torch.float64)
    assert saved_bytes(torch.sin, x) == 8000
    assert saved_bytes(lambda x: torch.sin(x).exp(), x) == 16000
    assert saved_bytes(lambda x: torch.sin(x.view(10, 100)).t(), x) == 8000


def test_saved_bytes_counts_no_weight():
    """A product keeps both factors for its backward pass; one of them is there however many evaluations there are."""
    x, weight = torch.zeros(1000, dtype=torch.float64), torch.ones(1000, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(lambda x: torch.sin(x) * weight, x) == 3 * 8000
    assert saved_bytes(lambda x: torch.sin(x) * weight, x, there=[weight]) == 2 * 8000


def test_chunks_take_several_inputs_and_a_remainder():
    a, b = torch.arange(7.0), torch.arange(7.0) * 10
    assert in_chunks(lambda a, b: a + b, 3, a, b).tolist() == (a + b).tolist()


def test_only_the_first_window_knows_the_background():
    z_b, z = torch.full((Z, H, W), 100.0), trajectory(2, 9)
    for at_once in (0, 1, 3):
        without, told = (windowed(denoiser(), LENGTH, torch.zeros(9, 5), at_once, b) for b in (None, z_b))
        moved = (told(z, torch.tensor(0.5)) - without(z, torch.tensor(0.5))).abs().amax(dim=(0, 2, 3, 4))
        # the first window gives the first two days and the third, its centre
        assert moved[:3].tolist() == pytest.approx([100.0] * 3)
        assert moved[3:].tolist() == [0.0] * 6
