"""The peers of the benchmark: what is stored can be read back, and quantlab's KL is interpolated at their bytes."""

import importlib.util
import math
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peer_methods import by_matrix, hqq, nncodec, row_int8, torchao
from peers import with_ratios

STATE = {"a.weight": torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) / 20, "gain": torch.linspace(-1, 1, 64)}


def test_int8_by_row_errs_by_half_a_step_and_stores_codes_and_scales():
    w_OI = STATE["a.weight"]
    found_OI, parts = row_int8("a", w_OI)
    step_O = w_OI.abs().amax(1) / 127
    assert ((found_OI - w_OI).abs() <= 0.51 * step_O[:, None] + 1e-6).all()
    assert [len(part) for part in parts] == [64 * 128, 2 * 64]


def test_tensors_that_are_no_matrices_are_stored_in_half_precision():
    found, stored = by_matrix(row_int8, STATE)
    assert torch.equal(found["gain"], STATE["gain"].half().float()) and len(stored) == 64 * 128 + 2 * 64 + 2 * 64


@pytest.mark.parametrize(("package", "make"), [("hqq", hqq), ("torchao", torchao)])
def test_grids_by_group_take_their_bits_and_two_numbers_a_group(package, make):
    pytest.importorskip(package)
    found, stored = by_matrix(make(4), {"a.weight": STATE["a.weight"]})
    numbers = {"hqq": 2, "torchao": 1}[package]
    assert len(stored) == 64 * 128 // 2 + numbers * 2 * 64 * 128 // 64
    assert float((found["a.weight"] - STATE["a.weight"]).norm() / STATE["a.weight"].norm()) < 0.15


def test_nncodec_is_imported_with_stand_ins_that_do_not_stay():
    if importlib.util.find_spec("nncodec") is None:
        pytest.skip("nncodec is not installed")
    found, stored = nncodec(-38)(STATE)
    assert not isinstance(sys.modules.get("pandas"), MagicMock)
    assert len(stored) < 64 * 128 and (found["a.weight"] - STATE["a.weight"]).abs().max() < 0.01


def test_kl_is_compared_at_equal_bytes_on_a_logarithmic_scale_and_not_beyond_the_curve():
    ours = [{"bytes": 1000, "kl": math.exp(-2)}, {"bytes": 2000, "kl": math.exp(-4)}]
    rows = with_ratios([{"bytes": size, "kl": 1.0} for size in (500, 1500, 2000, 2500)], ours)
    assert [row.get("kl_ratio") for row in rows] == [None, pytest.approx(math.exp(3)), pytest.approx(math.exp(4)), None]
    assert "kl_ratio" not in with_ratios([{"bytes": 1500, "kl": 1.0}], [])[0]
