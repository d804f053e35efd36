"""Networks: the published parameter counts, the shape of the Earth, and what a missing value may not do."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slams.autoencoder import ReconstructionTask
from slams.contracts.bundle import open_bundle, write_bundle
from slams.denoise import NetworkDenoiser
from slams.layers import Conv, pad_circular, pad_sphere
from slams.model import ModelConfig, build, build_task, describe, open_autoencoder, open_score
from slams.sde import CosineSDE
from slams.spec import OLR, PRECIPITATION, TEMPERATURE, Grid, StateSpec
from slams.statistics import Statistics

GRID = Grid(16, 32)
MODALITIES = (TEMPERATURE, PRECIPITATION, OLR)


def spec_of(n_modalities):
    return StateSpec(GRID, MODALITIES[:n_modalities])


def statistics_of(spec):
    channels, land = spec.n_channels, np.zeros(GRID.shape, np.float32)
    land[:8] = 1
    return Statistics(
        np.zeros((5, channels, *GRID.shape), np.float32),
        np.ones((channels, 1, 1), np.float32),
        np.zeros(channels, bool),
        np.ones((channels, *GRID.shape), bool),
        {"land_fraction": land},
    )


def built(config, n_modalities=3, shape=None):
    spec = spec_of(n_modalities)
    return build(config, spec, shape or (spec.n_channels, *GRID.shape), statistics_of(spec))


@pytest.mark.parametrize(("n_modalities", "parameters"), [(1, 14_695), (2, 14_920), (3, 15_145)])
def test_paper_autoencoder_has_the_published_number_of_parameters(n_modalities, parameters):
    network = built(ModelConfig("autoencoder", "paper"), n_modalities)
    assert describe(network)["parameters"] == parameters


@pytest.mark.parametrize(
    ("hidden", "channels", "parameters"), [([32, 64, 128], 5, 2_636_441), ([64, 128, 256], 10, 10_290_290)]
)
def test_paper_score_networks_have_the_published_number_of_parameters(hidden, channels, parameters):
    network = built(ModelConfig("score", "paper", 5, hidden, [3, 3, 3]), shape=(channels, *GRID.shape))
    assert describe(network)["parameters"] == parameters


def test_sphere_padding_is_the_neighbour_on_the_sphere():
    """Each padded cell is looked up by its own latitude and longitude, carried over the pole by hand."""
    height, width, pad = 4, 8, 2
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    padded = pad_sphere(x, pad)[0, 0]
    for row in range(-pad, height + pad):
        for column in range(-pad, width + pad):
            over = row < 0 or row >= height
            source = -1 - row if row < 0 else 2 * height - 1 - row if row >= height else row
            expected = x[0, 0, source, (column + (width // 2 if over else 0)) % width]
            assert padded[row + pad, column + pad] == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [1, 2])
def test_padding_has_its_derivatives_and_keeps_the_layout(layout, width):
    """By finite differences, the first and the second; the plain one beside torch's own."""
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=layout).requires_grad_()
    for pad in (pad_sphere, pad_circular):
        assert pad(x, width).is_contiguous(memory_format=layout)
        assert torch.autograd.gradcheck(partial(pad, width=width), x)
        assert torch.autograd.gradgradcheck(partial(pad, width=width), x)
    torch.testing.assert_close(pad_circular(x, width), F.pad(x, (width,) * 4, mode="circular"), rtol=0, atol=0)


def test_a_field_is_padded_as_it_is_convolved():
    """In bf16 under autocast: half the bytes, and the same numbers as of one that is cast afterwards."""
    conv, x = Conv(4, 5, 3, "sphere"), torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = conv(x), F.conv2d(pad_sphere(x, 1), conv.weight, conv.bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["autoencoder", "score"])
def test_flagship_networks_turn_with_the_planet(kind):
    """Without what is fixed to the ground, a field turned by some longitudes gives the output turned by as many."""
    turn = 8
    if kind == "autoencoder":
        network = built(ModelConfig(kind, hidden=[8], blocks=[1], latent_channels=3, reduction=2))
        x = torch.randn(1, 12, *GRID.shape, generator=torch.Generator().manual_seed(1))
        run, static = lambda x: network.decode(network.encode(x)), network.static
    else:
        network = built(ModelConfig(kind, frames=3, hidden=[8, 16], blocks=[1, 1]), shape=(2, *GRID.shape))
        x = torch.randn(1, 3, 2, *GRID.shape, generator=torch.Generator().manual_seed(1))
        run, static = lambda x: network(x, torch.tensor([0.3]), torch.zeros(1, 3, 5)), network.correction.static
        windows = [np.random.default_rng(2).standard_normal((8, 3, 2, *GRID.shape))]
        network.prior.climatological.zonal.fit(lambda: windows)  # patterns are fixed to the ground, and stay zero
    static.zero_()
    for parameter in network.parameters():  # no zero start: every layer must take part
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    with torch.no_grad():
        torch.testing.assert_close(run(x.roll(turn, -1)), run(x).roll(turn, -1), rtol=1e-4, atol=1e-4)
        assert (run(x.roll(turn, -1)) - run(x)).abs().max() > 1e-2


def reconstruction(x):
    torch.manual_seed(0)
    spec = spec_of(2)
    config = ModelConfig("autoencoder", hidden=[8], blocks=[1], latent_channels=3)
    statistics = statistics_of(spec)
    statistics.observed[10, 8:] = False  # the ocean
    task = build_task(config, spec, (spec.n_channels, *GRID.shape), statistics)
    return task, task({"x": x})["loss"]


def test_reconstruction_loss_counts_only_what_was_observed():
    x = torch.randn(2, 1, 11, *GRID.shape, generator=torch.Generator().manual_seed(2))
    x[:, :, 10, 8:] = torch.nan  # the ocean
    task, loss = reconstruction(x)
    assert isinstance(task, ReconstructionTask)
    with torch.no_grad():
        decoded = task.network.decode(task.network.encode(x.flatten(0, 1)))
    area = torch.tensor(GRID.area_weights, dtype=torch.float32)
    seen = torch.isfinite(x[:, 0])
    squares = torch.where(seen, (decoded - x[:, 0]) ** 2, 0.0)
    expected = (squares * area).sum() / (seen * area).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_v_and_eps_are_the_same_denoiser_in_other_words():
    """A network that knows the answer gives it back, whatever it is asked to predict."""
    sde, z = CosineSDE(), torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    for t in torch.tensor([0.05, 0.5, 0.9]):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        answers = {"eps": noise, "v": alpha * noise - sigma * z}
        for prediction, answer in answers.items():
            denoise = NetworkDenoiser(lambda z_t, t, day, answer=answer: answer, sde, prediction)
            found = denoise(alpha * z + sigma * noise, t, torch.zeros(3, 1, 5))
            torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["autoencoder", "score"])
def test_a_bundle_gives_back_the_network_that_went_in(kind, tmp_path):
    spec = spec_of(3)
    shape = (12, *GRID.shape)
    config = ModelConfig(kind, frames=1 if kind == "autoencoder" else 3, hidden=[8], blocks=[1])
    network = build(config, spec, shape, statistics_of(spec)).eval()
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    document = {"config": {}, "model": vars(config), "input": list(shape)}
    write_bundle(tmp_path, {"ema": arrays, "raw": arrays}, spec, statistics_of(spec), document)
    bundle = open_bundle(tmp_path)
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        if kind == "autoencoder":
            torch.testing.assert_close(open_autoencoder(bundle).encode(x[:, 0]), network.encode(x[:, 0]))
        else:
            t, day = torch.tensor([0.2, 0.7]), torch.zeros(2, 3, 5)
            torch.testing.assert_close(open_score(bundle)[0].network(x, t, day), network(x, t, day))
    wrong = open_score if kind == "autoencoder" else open_autoencoder
    with pytest.raises(ValueError, match="holds"):
        wrong(bundle)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "score", "frames": 4}, "frames: 4"),
        ({"kind": "autoencoder", "frames": 3}, "frames: 3"),
        ({"kind": "score", "hidden": [8, 8], "blocks": [1]}, "hidden, blocks"),
        ({"kind": "score", "eta": 0.7}, "eta: 0.7"),
        ({"kind": "autoencoder", "reduction": 0}, "reduction"),
    ],
)
def test_what_no_network_can_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def test_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6 x 32"):
        built(ModelConfig("score", "paper", 3, [8, 8, 8], [1, 1, 1]), shape=(2, 6, 32))
