"""Newton-Schulz against the singular value decomposition, and the update rule by hand."""

import pytest
import torch

from quantlab.trainer.muon import POLAR_EXPRESS, Muon, orthogonalize

# The quintic does not converge: it holds singular values in a band around 1. Ends found by iterating it on 0.002 ... 1.
BAND = (0.68, 1.21)


def well_conditioned(rows, columns, seed=0):
    """A random matrix with singular values from 0.1 to 1, and its polar factor U Vᵀ."""
    g = torch.Generator().manual_seed(seed)
    k = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64))
    return (u * torch.linspace(0.1, 1, k)) @ v.T, u @ v.T


def test_band_is_where_the_quintic_takes_scalars():
    x = torch.linspace(0.002, 1, 100_000, dtype=torch.float64)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert x.min() > BAND[0] and x.max() < BAND[1]


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 16), (16, 64), (1, 8), (8, 1)])
def test_singular_values_end_in_the_band(rows, columns):
    G, _ = well_conditioned(rows, columns)
    s = torch.linalg.svdvals(orthogonalize(G))
    assert BAND[0] < s.min() and s.max() < BAND[1]


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 16), (16, 64)])
def test_update_is_near_the_polar_factor(rows, columns):
    G, UV = well_conditioned(rows, columns)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    torch.testing.assert_close(U @ Vh, UV)
    O = orthogonalize(G).double()
    # Same singular vectors: in G's own basis the result is diagonal, up to float32 rounding of five iterations.
    in_basis = U.T @ O @ Vh.T
    assert (in_basis - in_basis.diag().diag()).abs().max() < 1e-4
    # The band's half width is at most 0.32, so the distance to U Vᵀ is below 0.32 of its norm.
    assert (O - UV).norm() < 0.32 * UV.norm()
    assert (O * UV).sum() / (O.norm() * UV.norm()) > 0.95


def test_a_stack_equals_its_matrices_and_scale_does_not_matter():
    G = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(1))
    stacked = orthogonalize(G)
    assert stacked.shape == G.shape
    for one, g in zip(stacked, G, strict=True):
        # other matrix kernels for a stack: float32 rounding, amplified by at most 3.4445^5 = 485
        torch.testing.assert_close(one, orthogonalize(g), atol=1e-4, rtol=0)
        torch.testing.assert_close(orthogonalize(1e-3 * g), orthogonalize(g), atol=2e-3, rtol=0)  # the 1e-7 beside the norm


def test_zero_gradient_gives_zero():
    assert not orthogonalize(torch.zeros(4, 6)).any()


def test_two_steps_by_hand():
    g = torch.Generator().manual_seed(2)
    start = torch.randn(24, 6, generator=g)
    grads = [torch.randn(24, 6, generator=g) for _ in range(2)]
    p, other = (torch.nn.Parameter(start.clone()) for _ in range(2))
    idle = torch.nn.Parameter(torch.ones(24, 6))
    optimizer = Muon([p, other, idle], lr=0.1, momentum=0.9, weight_decay=0.5)
    buffer, expected = torch.zeros(24, 6), start.clone()
    for grad in grads:
        p.grad, other.grad = grad.clone(), grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, grad)
        buffer = 0.9 * buffer + grad
        expected = 0.95 * expected - 0.1 * (24 / 6) ** 0.5 * orthogonalize(grad + 0.9 * buffer)
    torch.testing.assert_close(p.data, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.data, expected, atol=1e-5, rtol=0)
    assert (idle == 1).all()


def test_wide_matrices_are_not_scaled():
    p = torch.nn.Parameter(torch.zeros(4, 16))
    p.grad = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    Muon([p], lr=1.0).step()
    torch.testing.assert_close(-p.data, orthogonalize(p.grad), atol=1e-4, rtol=0)


POLAR_BAND = (0.858, 1.142)
"""Where singular values above 0.001 of the Frobenius norm end with Polar Express."""


def test_polar_express_takes_each_singular_value_through_its_own_polynomials():
    """By hand: singular vectors stay, and each value goes through five odd polynomials in float64."""
    G, _ = well_conditioned(24, 40)
    U, s, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    x = s / s.square().sum().sqrt()
    for a, b, c in POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
    torch.testing.assert_close(orthogonalize(G, coefficients=POLAR_EXPRESS).double(), U @ x.diag() @ Vh, atol=1e-4, rtol=0)


def test_polar_express_ends_nearer_to_1():
    x = torch.linspace(0.001, 1, 100_000, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
    assert x.min() > POLAR_BAND[0] and x.max() < POLAR_BAND[1]


def test_muon_uses_the_coefficients_that_are_asked_for():
    grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(5))
    for is_asked, wanted in ((True, orthogonalize(grad, coefficients=POLAR_EXPRESS)), (False, orthogonalize(grad))):
        p = torch.nn.Parameter(torch.zeros(12, 20))
        p.grad = grad.clone()
        Muon([p], lr=1.0, momentum=0.0, polar_express=is_asked).step()
        torch.testing.assert_close(-p.data, wanted, atol=1e-4, rtol=0)
