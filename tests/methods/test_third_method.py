"""A third method is one new folder: it is found, has options of its own, and packs from Python and from the command line."""

import json

import pytest

import quantlab
from quantlab import methods
from quantlab.cli.main import run
from quantlab.errors import BudgetError, ConfigError
from quantlab.methods import method

SOURCE = '''
"""Rounds every matrix to one number of bits, whatever the budget."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from quantlab.artifact.manifest import GridTensor
from quantlab.artifact.writer import GridPayload, smallest_section
from quantlab.coding.codecs import codes_to_bytes
from quantlab.errors import ConfigError
from quantlab.methods.method import MethodOptions, Point, Solution


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainOptions(MethodOptions):
    widths: tuple[int, ...] = (4,)
    loudness: float = 4.0

    def __post_init__(self):
        if self.loudness <= 0:
            raise ConfigError(f"loudness must be above 0, got {self.loudness:g}")


class PlainSolver:
    def __init__(self, problem, options):
        self.problem, (self.bits,), self.loudness = problem, options.widths, options.loudness
        self.payloads = [self._payload(name, w_OI) for name, w_OI in problem.matrices.items()]
        self.file = problem.encode([*self.payloads, *problem.passthrough.values()])

    def _payload(self, name, w_OI):
        limit = 2 ** (self.bits - 1) - 1
        scale_O = (self.loudness * w_OI.square().mean(1).sqrt() / limit).half().numpy()
        codes_OI = np.clip(np.rint(w_OI.numpy() / scale_O[:, None].astype(np.float32)), -limit, limit).astype(np.int8)
        entry = GridTensor(name=name, shape=tuple(w_OI.shape), bits=self.bits, exponent=0)
        return GridPayload(entry, scale_O, smallest_section(codes_to_bytes(codes_OI)))

    def smallest_bytes(self):
        return 0 if self.loudness == 1.5 else len(self.file)

    def solve(self, budget_bytes):
        from quantlab.artifact.decode import decode_artifact, parse_artifact

        tensors = decode_artifact(*parse_artifact(self.file.data))
        return Solution(
            data=self.file.data,
            layout=self.file.layout,
            points={t.name: Point(t.width_bits, self.loudness, t.code_bytes, 0.0) for t in self.file.layout.tensors},
            tensors={name: torch.from_numpy(array) for name, array in tensors.items()},
        )


class Plain:
    options, predictor, needs_products, has_decoder = PlainOptions, "none", False, False
    solver = staticmethod(PlainSolver)


METHODS = {"plain": Plain()}
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The new folder, beside the methods that there are."""
    (tmp_path / "methods" / "plain").mkdir(parents=True)
    (tmp_path / "methods" / "plain" / "__init__.py").write_text(SOURCE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    method.methods.cache_clear()
    yield
    method.methods.cache_clear()


def test_a_new_folder_is_a_new_method(toy_checkpoint, tmp_path):
    assert list(method.methods()) == ["gptq", "rtn", "plain", "trellis"]
    sample = {"calib": "random", "calib_tokens": 1024, "calib_seq_len": 64, "method": "plain"}
    sizes = []
    for loudness in (2.0, 8.0):
        report = quantlab.pack(toy_checkpoint, budget="80KB", output=tmp_path / f"{loudness}.qlab", loudness=loudness, **sample)
        assert report.options["loudness"] == loudness and {t.setting for t in report.tensors} == {loudness}
        assert quantlab.load(tmp_path / f"{loudness}.qlab").vocab_size == 400
        sizes.append(report.total_bytes)
    assert sizes[0] > sizes[1]
    with pytest.raises(BudgetError, match="below the smallest reachable size"):
        quantlab.pack(toy_checkpoint, budget="20KB", output=tmp_path / "s.qlab", **sample)
    with pytest.raises(BudgetError, match="method plain made a file of .* it exceeds the budget"):
        quantlab.pack(toy_checkpoint, budget="20KB", output=tmp_path / "s.qlab", loudness=1.5, **sample)
    assert not (tmp_path / "s.qlab").exists()
    with pytest.raises(ConfigError, match="loudness is not an option of method gptq"):
        quantlab.pack(toy_checkpoint, budget="80KB", output=tmp_path / "s.qlab", method="gptq", loudness=1.0)


def test_the_command_line_takes_its_options(toy_checkpoint, tmp_path, capsys):
    command = ["pack", str(toy_checkpoint), "--budget", "80KB", "-o", str(tmp_path / "m.qlab"), "--method", "plain", "--json"]
    sample = ["--calib", "random", "--calib-tokens", "1024", "--calib-seq-len", "64"]
    assert run([*command, *sample, "--option", "loudness=3.5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "plain" and report["options"] == {"widths": [4], "tune": False, "loudness": 3.5}
    assert run([*command, "--force", "--option", "loudness=0"]) == 2
    assert "loudness must be above 0, got 0" in capsys.readouterr().err
    assert run([*command, "--force", "--states", "4"]) == 2
    assert "states is not an option of method plain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values", "message", "hint"),
    [
        ("gptq", {"widths": [16]}, "widths of method gptq must be among 2,3,4,5,6,7,8, got 16", None),
        ("plain", {"tune": True}, "tune: method plain does not tune unquantized tensors", "leave it out"),
        ("trellis", {"seed": 1}, "method trellis has no option seed", "known options: widths, tune, effort"),
        ("trellis", {"stetes": 4}, "method trellis has no option stetes", "did you mean states?"),
        ("rtn", {"states": 4, "seed": 1}, "states is not an option of method rtn", "choose method trellis"),
        ("rtn", {"seed": 1, "states": 4}, "method rtn has no option seed", "known options: widths, tune"),
    ],
)
def test_errors_of_options_name_the_method_and_come_in_the_order_of_the_options(name, values, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        method.method_options(name, values)
    assert caught.value.hint == hint or hint in caught.value.hint


@pytest.mark.parametrize("name", ["gptq", "rtn", "plain", "trellis"])
def test_every_method_can_leave_out_tuning(name):
    assert method.method_options(name, {"tune": False}).tune is False
