"""Triangular factors of both sides of the Fisher information."""

import numpy as np
import pytest
import torch

from quantlab.array_file import ArrayFile
from quantlab.calib.fisher import Use
from quantlab.errors import StatisticsError
from quantlab.methods.trellis.factors import COLUMN_DAMPING, ROW_DAMPING, Panels, factors, row_sensitivity, stored


def spd(n, seed=0):
    x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.T @ x / len(x) + 0.5).float()


def rebuilt(upper, d):
    """(1 + U)ᵀ-shaped factor times its diagonal, squared: the matrix that was factorised."""
    lower = (torch.eye(len(d), dtype=torch.float64) + torch.from_numpy(upper).double().T) * d
    return lower @ lower.T


def test_factors_multiply_to_the_damped_matrices():
    H, G = spd(7), spd(5, seed=1)
    parts = factors("w", (Use(H, G),))
    eye = torch.eye
    H_damped = H.double() + COLUMN_DAMPING * H.double().diagonal().mean() * eye(7)
    G_damped = (1 - ROW_DAMPING) * G.double() + ROW_DAMPING * G.double().diagonal().mean() * eye(5)
    # the factors are stored in float32
    assert torch.allclose(rebuilt(parts.columns.triangle(), parts.d_I), H_damped, rtol=1e-6, atol=1e-6)
    assert torch.allclose(rebuilt(parts.rows.triangle(), parts.d_O), G_damped, rtol=1e-6, atol=1e-6)
    assert float(G_damped.trace()) == pytest.approx(float(G.double().trace()))  # shrinking keeps the scale


def test_only_later_rows_and_columns_feed_back():
    parts = factors("w", (Use(spd(6), spd(4)),))
    for upper in (parts.columns.triangle(), parts.rows.triangle()):
        assert upper.dtype == np.float32 and not np.tril(upper).any() and np.triu(upper, 1).any()


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 100])
def test_panels_hold_a_triangle_and_nothing_else(n):
    full = np.random.default_rng(n).standard_normal((n, n)).astype(np.float32)
    panels = Panels.of(full)
    assert np.array_equal(panels.triangle(), np.triu(full, 1))
    assert np.count_nonzero(panels.far) + np.count_nonzero(panels.near_DN) == n * (n - 1) // 2


@pytest.mark.parametrize("has_rows", [True, False])
def test_factors_in_a_file_are_read_as_they_were(has_rows, tmp_path):
    parts, file = factors("w", (Use(spd(70), spd(40)),), row_feedback=has_rows), ArrayFile(tmp_path)
    other = stored(factors("v", (Use(spd(33), spd(5)),)), file)
    read = stored(parts, file)
    for _ in range(2):
        found = read()
        assert np.array_equal(found.columns.triangle(), parts.columns.triangle()) and found.columns.n == 70
        assert (found.rows is None) == (parts.rows is None) == (not has_rows)
        assert found.rows is None or np.array_equal(found.rows.triangle(), parts.rows.triangle())
        assert torch.equal(found.d_I, parts.d_I) and torch.equal(found.d_O, parts.d_O)
    assert other().columns.n == 33 and found.columns.far is not read().columns.far  # nothing is kept in memory


def test_without_correlation_there_is_no_feedback():
    parts = factors("w", (Use(torch.eye(3) * 4, torch.diag(torch.tensor([1.0, 9.0]))),))
    assert not parts.columns.triangle().any() and not parts.rows.triangle().any()
    assert torch.allclose(parts.d_I, torch.full((3,), 2 * 1.01**0.5, dtype=torch.float64))
    assert torch.allclose(parts.d_O.square(), torch.tensor([0.95 * 1 + 0.25, 0.95 * 9 + 0.25], dtype=torch.float64))


@pytest.mark.parametrize(
    ("uses", "row_feedback"),
    [
        ((Use(spd(4), spd(3)),), False),
        ((Use(spd(4), spd(3).diagonal()),), True),
        ((Use(spd(4), spd(3)), Use(spd(4).diagonal(), torch.ones(3))), True),
    ],
)
def test_rows_without_feedback_keep_their_own_sensitivity(uses, row_feedback):
    parts = factors("w", uses, row_feedback=row_feedback)
    assert parts.rows is None
    assert torch.equal(parts.d_O, row_sensitivity(uses).sqrt())


def test_rows_that_the_sample_never_saw_stay_bounded():
    uses = (Use(torch.eye(4), torch.tensor([1.0, 0.0, 1.0, 2.0])),)
    assert row_sensitivity(uses).tolist() == pytest.approx([1.0, 1e-3, 1.0, 2.0])


def test_a_table_and_a_head_add_up_by_row():
    head, table = Use(torch.eye(2) * 3, torch.tensor([1.0, 2.0])), Use(torch.tensor([5.0, 7.0]), torch.tensor([0.5, 0.0]))
    rho = row_sensitivity((head, table))
    # row costs are 6·g + 12·f; shared by the trace of the mixed column Hessian, (1.5·6 + 0.25·12) / 1.75
    assert rho.tolist() == pytest.approx([(6 + 6) * 1.75 / 12, 12 * 1.75 / 12])
    full = Use(torch.eye(2) * 3, torch.tensor([[1.0, 0.3], [0.3, 2.0]]))  # off-diagonals do not count here
    assert row_sensitivity((full, table)).tolist() == pytest.approx(rho.tolist())


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4), torch.full((4, 4), float("nan")), -torch.eye(4), spd(4) - 9 * torch.ones(4, 4)]
)
@pytest.mark.parametrize("side", ["Hessian", "output gradient"])
def test_a_side_that_is_no_fisher_information_is_named(bad, side):
    use = Use(bad, torch.eye(4)) if side == "Hessian" else Use(torch.eye(4), bad)
    with pytest.raises(StatisticsError, match=rf"tensor blocks\.0\.w: its (damped )?{side}"):
        factors("blocks.0.w", (use,))


def test_arguments_are_left_alone():
    use = Use(spd(4), spd(3))
    before = use.H_II.clone(), use.g_O.clone()
    factors("w", (use,))
    assert torch.equal(use.H_II, before[0]) and torch.equal(use.g_O, before[1])
