"""What is decoded of a part of the globe equals that part of the whole, and costs what the part costs."""

import numpy as np
import pytest
import torch

from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.decoder import Decoder, crop
from slams.rng import normal

Z, HEIGHT, WIDTH, DAYS = 3, 24, 48, 4


def flagship(reduction):
    torch.manual_seed(1)
    static = torch.from_numpy(normal(0, "init", shape=(2, HEIGHT // reduction, WIDTH // reduction)))
    network = Autoencoder(4, Z, 8, 1, reduction, static)
    for parameter in network.parameters():  # the branches start at zero, where nothing would be seen of them
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def paper(reduction):
    torch.manual_seed(1)
    return PaperAutoencoder(4, 4).eval()


NETWORKS = {"flagship": flagship, "paper": paper}
PLACES = {
    "a box inside": (slice(10, 13), slice(20, 24)),
    "across the date line": (slice(9, 12), [46, 47, 0, 1]),
    "near the north pole": (slice(1, 3), slice(30, 31)),
    "at the south pole": (slice(23, 24), slice(5, 9)),
    "two far columns": (slice(11, 12), [3, 27]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "reduction"), [("flagship", 1), ("flagship", 2), ("paper", 1)])
def test_a_part_decodes_as_in_the_whole(kind, reduction, place):
    network = NETWORKS[kind](reduction).requires_grad_(False)
    latents = 5 if kind == "paper" else Z
    decoder = Decoder(network, torch.full((latents,), 0.3), torch.full((latents,), 2.0))
    z = torch.from_numpy(normal(2, "init", shape=(2, DAYS, latents, HEIGHT // reduction, WIDTH // reduction)))
    needed = np.zeros((DAYS, HEIGHT, WIDTH), bool)
    rows, columns = PLACES[place]
    needed[[0, 2], rows] = np.isin(np.arange(WIDTH), np.arange(WIDTH)[columns])
    whole, part = decoder(z), decoder.within(z, needed)
    where = torch.from_numpy(needed)[None, :, None].expand(whole.shape)
    torch.testing.assert_close(part[where], whole[where], rtol=1e-4, atol=1e-4)
    assert (part[:, [1, 3]] == 0).all()


def test_a_small_region_is_a_small_part_of_the_work():
    needed = np.zeros((60, 120), bool)
    needed[30:34, 110:114] = True
    part = crop(needed, reach=4, wraps=True)
    assert (len(part.rows), len(part.columns)) == (12, 12)


def test_the_reach_is_what_a_decoded_cell_depends_on():
    """No more and no less, by the derivative of one decoded cell."""
    for network, latents in ((flagship(1), Z), (paper(1), 5)):
        z = torch.from_numpy(normal(3, "init", shape=(1, latents, HEIGHT, WIDTH))).requires_grad_()
        (gradient,) = torch.autograd.grad(network.decode(z)[0, :, 12, 24].sum(), z)
        rows = np.flatnonzero(gradient[0].abs().sum(dim=(0, 2)).numpy())
        assert (rows[0], rows[-1]) == (12 - network.reach, 12 + network.reach)


def test_derivatives_pass_through_a_part():
    network = flagship(2).requires_grad_(False)
    decoder = Decoder(network, torch.zeros(Z), torch.ones(Z))
    needed = np.zeros((DAYS, HEIGHT, WIDTH), bool)
    needed[1, 8:10, 45:] = True
    z = torch.from_numpy(normal(4, "init", shape=(1, DAYS, Z, HEIGHT // 2, WIDTH // 2))).requires_grad_()
    where = torch.from_numpy(needed)[None, :, None].expand(1, DAYS, 4, HEIGHT, WIDTH)
    gradients = [torch.autograd.grad(x[where].square().sum(), z)[0] for x in (decoder(z), decoder.within(z, needed))]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
