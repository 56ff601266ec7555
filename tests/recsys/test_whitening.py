"""Whitening against its definition: covariance, reconstruction, an independent way by singular values."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recsys.errors import DataError
from recsys.whitening import Whitening

TEXTS, WIDTH, COMPONENTS = 50, 9, 4


def vectors() -> torch.Tensor:
    """In a narrow cone, as encoders have them: a long mean, directions of very different spread."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(TEXTS, WIDTH)) * np.geomspace(1, 0.05, WIDTH)
    return torch.from_numpy(3 + spread @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]).float()


def fitted(components: int = COMPONENTS) -> Whitening:
    """To those vectors."""
    whitening = Whitening(WIDTH, components)
    assert not whitening.fitted
    whitening.fit(vectors())
    assert whitening.fitted
    return whitening


def test_components_are_uncorrelated_and_texts_have_length_one_on_average() -> None:
    z = fitted()(vectors())
    assert z.shape == (TEXTS, COMPONENTS)
    assert_close(z.mean(dim=0), torch.zeros(COMPONENTS), atol=1e-5, rtol=0)
    assert_close(z.T @ z / TEXTS, torch.eye(COMPONENTS) / COMPONENTS, atol=1e-3, rtol=0)
    assert_close(z.square().sum(dim=1).mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_the_cone_opens() -> None:
    """Mean cosine of two texts: near 1 before, near 0 after."""

    def mean_cosine(x: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(x, dim=1)
        return ((unit @ unit.T).sum() - TEXTS).item() / (TEXTS * (TEXTS - 1))

    assert mean_cosine(vectors()) > 0.9
    assert abs(mean_cosine(fitted()(vectors()))) < 0.05


def test_components_are_those_of_singular_values() -> None:
    x = vectors().double().numpy()
    left, _, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = left[:, :COMPONENTS] * np.sqrt(TEXTS / COMPONENTS)
    found = fitted()(vectors()).double().numpy()
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=2e-4)


def test_what_is_left_out_is_the_smallest_variance() -> None:
    """The error of going back equals the sum of the discarded eigenvalues."""
    whitening, x = fitted(), vectors()
    back = whitening.mean + whitening(x) @ torch.linalg.pinv(whitening.matrix)
    variances = np.linalg.eigvalsh(np.cov(x.double().numpy().T, bias=True))
    assert (x - back).square().sum(dim=1).mean().item() == pytest.approx(variances[:-COMPONENTS].sum(), rel=1e-3)


def test_signs_are_no_accident() -> None:
    directions = fitted().matrix
    assert (directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_no_text_stays_none() -> None:
    x = vectors()
    x[7] = 0
    z = fitted()(x)
    assert not z[7].any()
    assert z[6].any()


def test_more_components_than_texts_span_are_refused() -> None:
    whitening = Whitening(WIDTH, COMPONENTS)
    with pytest.raises(DataError, match=r"4 components are wanted of 3 texts .* which span 2; set model\.text_comp"):
        whitening.fit(vectors()[:3])
    with pytest.raises(DataError, match=r"4 components are wanted of 50 texts .* which span 2; set"):
        whitening.fit(vectors()[:3].repeat(17, 1)[:50])
    with pytest.raises(DataError, match="components are wanted of 0 texts"):
        whitening.fit(vectors()[:0])
