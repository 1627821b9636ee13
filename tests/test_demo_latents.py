"""The demo's latent space: linear, the same in every frame of a still scene, and keeping what matters."""

from __future__ import annotations

import pytest
import torch

from demo.latents import Basis, blocks, principal_components, project
from demo.scenes import SceneSampler
from demo.training import clips


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    sampler = SceneSampler(3)
    return clips([sampler.sample() for _ in range(24)])


@pytest.fixture(scope="module")
def basis(video) -> Basis:
    return principal_components(video)


def test_latents_have_the_vaes_shape_and_are_linear_in_the_pixels(video, basis) -> None:
    latents = project(video, basis)
    assert latents.shape == (24, 16, 6, 16, 16)
    half = project((video[:1] + video[1:2]) / 2, basis)
    torch.testing.assert_close(half, (latents[:1] + latents[1:2]) / 2, atol=1e-4, rtol=1e-4)


def test_a_still_clip_says_the_same_in_every_latent_frame_and_so_does_its_picture(video, basis) -> None:
    still = video[:, :, :1].expand(-1, -1, 21, -1, -1)
    latents = project(still, basis)
    torch.testing.assert_close(latents, latents[:, :, :1].expand_as(latents))
    torch.testing.assert_close(project(video[:, :, :1], basis), latents[:, :, :1])


def test_sixteen_components_of_a_block_keep_most_of_it(video, basis) -> None:
    """Undone by least squares, the basis loses less than sixteen random directions do."""
    rows = blocks(video).flatten(0, 3) - basis.mean

    def lost(analysis: torch.Tensor) -> float:
        codes = rows @ analysis
        back = torch.linalg.lstsq(codes.T @ codes, codes.T @ rows).solution
        return float((rows - codes @ back).square().mean() / rows.square().mean())

    random = torch.linalg.qr(torch.randn(192, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert lost(basis.analysis) < 0.03
    assert lost(basis.analysis) < lost(random) / 2
