"""Sums of x xᵀ and packed triangles against full matrices."""

import pytest
import torch

from quantlab.calib.triangle import BLOCK, GramSum, gram_blocks, gram_ref, pack_triangle, triangle_size, unpack_triangle
from quantlab.errors import QuantlabError, StatisticsError

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 63, BLOCK, BLOCK + 1, 500])
@pytest.mark.parametrize("on_disk", [False, True])
def test_sums_of_triangles_equal_the_full_products(tmp_path, size, on_disk):
    total, expected = GramSum(size, CPU, tmp_path if on_disk else None), torch.zeros(size, size, dtype=torch.float64)
    assert not any(tmp_path.iterdir())  # the file has no name, so a killed process leaves none
    for seed, tokens in enumerate((1, 70, 2100)):
        x_TN = torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))
        if seed == 1:
            total.add_blocks(list(gram_blocks(x_TN)), tokens)
        else:
            total.add(x_TN)
        expected += gram_ref(x_TN)
    full = total.full(0.5)
    torch.testing.assert_close(
        full.double(), expected / 2, rtol=1e-4, atol=1e-2
    )  # float32 products of about 2,000 terms of size 1
    assert torch.equal(full, full.T)
    assert total.trace == pytest.approx(float(expected.trace()), rel=1e-5)
    assert total.flat.numel() <= triangle_size(size) + size * BLOCK // 2


@pytest.mark.parametrize("size", [1, 2, 63, 200])
def test_packing_a_triangle_round_trips(size):
    x_TN = torch.randn(5, size)
    full_NN = x_TN.T @ x_TN
    full_NN = full_NN.triu() + full_NN.triu(1).T
    packed = pack_triangle(full_NN)
    assert packed.shape == (triangle_size(size),)
    assert torch.equal(unpack_triangle(packed, size), full_NN)


def test_a_triangle_of_another_size_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(StatisticsError, match=r"a triangle of 3 rows has 6 values, got \[5\]"):
        unpack_triangle(torch.zeros(5), 3)
    with pytest.raises(StatisticsError, match="a triangle of -1 rows has 0 values"):
        unpack_triangle(torch.zeros(0), -1)
    with pytest.raises(QuantlabError, match="cannot keep 8 bytes of matrices in .*absent"):
        GramSum(1, CPU, tmp_path / "absent")
