"""`quantlab pack --emit-decoder`: the decoder is counted before it is written, and decodes what was packed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantlab.artifact.emit import emit_decoder
from quantlab.cli.main import run

FAST = ["--calib-tokens", "1024", "--calib-seq-len", "64", "--no-tune"]


def pack(toy_checkpoint, tmp_path, *options, budget="60000"):
    arguments = ["pack", toy_checkpoint, "--budget", budget, "-o", tmp_path / "m.qlab", *FAST, *options]
    return run([str(a) for a in arguments])


def refused(capsys, *parts):
    """One error line that holds every part, and nothing on stdout."""
    out, err = capsys.readouterr()
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert out == "" and all(part in line for part in parts), line


def test_the_decoder_is_counted_in_the_same_command_and_decodes_what_unpack_does(toy_checkpoint, tmp_path, capsys):
    decoder, artifact, state = tmp_path / "d.py", tmp_path / "m.qlab", tmp_path / "state.safetensors"
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder, "--code", decoder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["code_bytes"] == decoder.stat().st_size < 4000
    assert report["total_bytes"] == artifact.stat().st_size + decoder.stat().st_size <= 60000

    assert run(["unpack", str(artifact), "-o", str(state)]) == 0
    program = (
        "import sys; sys.modules['quantlab'] = None\n"
        "import numpy, d\n"
        "numpy.savez('own.npz', **{name: tensor.numpy() for name, tensor in d.load('m.qlab').items()})\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    expected = load_file(state)
    with np.load(tmp_path / "own.npz") as own:
        assert set(own.files) == expected.keys()
        for name, array in expected.items():
            assert own[name].dtype == array.dtype and own[name].shape == array.shape
            assert own[name].tobytes() == array.tobytes(), name


def test_another_file_is_replaced_only_by_force_and_only_with_success(toy_checkpoint, tmp_path, capsys):
    decoder = tmp_path / "d.py"
    decoder.write_text("mine")
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder) == 2
    refused(capsys, f"{decoder} exists")
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder, "--force", budget="9000") == 3
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder, "--force", budget="junk") == 2
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder, "--force", "--code", tmp_path / "absent.py") == 2
    assert decoder.read_text() == "mine" and os.listdir(tmp_path) == ["d.py"]
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", decoder, "--force") == 0
    assert decoder.read_bytes() == emit_decoder()


def test_a_decoder_that_is_there_already_does_not_stop_a_run(toy_checkpoint, tmp_path, capsys):
    (tmp_path / "d.py").write_bytes(emit_decoder())
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", tmp_path / "d.py", budget="9000") == 3
    refused(capsys, "budget 9000 bytes")


def test_the_decoder_never_replaces_the_checkpoint_or_counted_code(toy_checkpoint, tmp_path, capsys):
    checkpoint, code = tmp_path / "c.pt", tmp_path / "train.py"
    checkpoint.write_bytes(toy_checkpoint.read_bytes())
    code.write_text("print('a record')")
    assert pack(checkpoint, tmp_path, "--emit-decoder", checkpoint, "--force") == 2
    refused(capsys, f"output {checkpoint} is an input of the same command")
    assert pack(checkpoint, tmp_path, "--emit-decoder", code, "--code", code, "--force") == 2
    refused(capsys, f"the decoder would replace the code file {code}")
    assert checkpoint.read_bytes() == toy_checkpoint.read_bytes() and code.read_text() == "print('a record')"
    code.write_bytes(emit_decoder().replace(b"exec(", b"exec(  "))  # of another version
    assert pack(checkpoint, tmp_path, "--emit-decoder", code, "--code", code, "--force") == 0
    assert code.read_bytes() == emit_decoder()


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_other_methods_have_no_decoder(method, toy_checkpoint, tmp_path, capsys):
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", tmp_path / "d.py", "--method", method) == 2
    refused(capsys, "the decoder is for artifacts of method trellis", method)
    assert list(tmp_path.iterdir()) == []


def test_the_decoder_may_not_be_another_output(toy_checkpoint, tmp_path, capsys):
    assert pack(toy_checkpoint, tmp_path, "--emit-decoder", tmp_path / "m.qlab") == 2
    refused(capsys, "another output", "m.qlab")
