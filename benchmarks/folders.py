"""From a folder of transformers to a folder of transformers, for eleven kinds of models, by three commands without options.

    .venv/bin/python benchmarks/folders.py --families llama mamba     # prints a line each, saves JSON

Each model is random, with 0.2 to 2 million weights, saved by `save_pretrained` with a byte-level tokenizer.json. Then run

    quantlab pack FOLDER --budget N -o m.qlab
    quantlab eval m.qlab --text text.txt --against FOLDER
    quantlab unpack m.qlab -o OUT --like FOLDER

at 4 bits a weight; --tokens N gives pack a smaller calibration than its default, and the result says so. What is checked:
transformers loads OUT with no key missing or left over, its logits are those of the artifact, and at least 98 % of the
weights are coded.
"""

import argparse
import contextlib
import io
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from machine import ROOT, machine

import quantlab
from quantlab.cli.main import run

BITS = 4
COMMON = {"vocab_size": 288, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024}
GATED = COMMON | SIZES | {"intermediate_size": 256, "num_key_value_heads": 2}
WIDE = {"hidden_size": 512, "num_hidden_layers": 1, "state_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GATED),
    "llama_tied": ("LlamaConfig", GATED | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", GATED),
    "qwen3": ("Qwen3Config", GATED | {"head_dim": 32}),
    "gemma2": ("Gemma2Config", GATED | {"head_dim": 32, "sliding_window": 128}),
    "gpt2": ("GPT2Config", COMMON | {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
    "mixtral": ("MixtralConfig", GATED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_neox": ("GPTNeoXConfig", COMMON | SIZES | {"intermediate_size": 512}),
    "opt": ("OPTConfig", COMMON | SIZES | {"ffn_dim": 512, "word_embed_proj_dim": 128}),
    "phi3": ("Phi3Config", GATED),
    "mamba": ("MambaConfig", COMMON | WIDE),  # its A_log, never quantized, has 32 values for each of 6 times the width
}
"""Name of the config's class, and its values."""
LEAST_CODED = 0.98
TEXT = b"".join(b"def f_%d(x):\n    return x + %d\n" % (n, n * n) for n in range(300))
SAME_LOGITS = {"atol": 2e-5, "rtol": 2e-5}
"""GPT-2's Conv1D adds in another order than a linear layer."""


def save(family: str, folder: Path) -> None:
    """Save a random model whose every weight matters, and its tokenizer."""
    name, values = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**values), dtype=torch.float32)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "A_log" in key:  # layers begin with equal ones, which would be stored once
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif parameter.ndim > 1 and min(parameter.shape[-2:]) > 16:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """Save a byte-level tokenizer with one id for each byte, and BOS after them."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    engine = tokenizers.Tokenizer(tokenizers.models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.add_special_tokens(["<s>"])
    engine.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def round_trip(family: str, place: Path, tokens: int | None = None) -> dict[str, Any]:
    """Run the three commands in a folder, check what they leave, and return what was measured.

    Args:
        tokens: calibration tokens; None for those of pack without options.
    """
    os.environ["QUANTLAB_RUNS"] = ""  # no record of these runs is kept
    save(family, place / "model")
    (place / "text.txt").write_bytes(TEXT)
    weights = sum(tensor.numel() for tensor in quantlab.load(place / "model").state.values())
    budget = weights * BITS // 8 + 12_000
    start = time.perf_counter()
    fewer = [] if tokens is None else ["--calib-tokens", str(tokens)]
    command("pack", "model", "--budget", str(budget), "-o", "m.qlab", *fewer, place=place)
    pack_s = time.perf_counter() - start
    record = json.loads(command("eval", "m.qlab", "--text", "text.txt", "--against", "model", "--json", place=place))
    command("unpack", "m.qlab", "-o", "out", "--like", "model", place=place)
    check_logits(place)
    report = json.loads((place / "m.report.json").read_text())
    coded = sum(math.prod(tensor["shape"]) for tensor in report["tensors"]) / report["n_params"]
    assert coded >= LEAST_CODED, f"{family}: {coded:.4f} of the weights are coded, not {LEAST_CODED}"
    size = (place / "m.qlab").stat().st_size
    assert size <= budget, f"{family}: {size} bytes for {budget}"
    return {
        "family": family,
        "weights": report["n_params"],
        "calibration_tokens": report["calibration"]["tokens"],
        "coded_share": round(coded, 5),
        "budget_bytes": budget,
        "file_bytes": size,
        "kl": record["against"]["kl_mean"],
        "val_bpb": record["val_bpb"],
        "pack_s": round(pack_s, 1),
    }


def check_logits(place: Path) -> None:
    """Raise AssertionError unless transformers loads the folder as it was saved, with the artifact's logits rounded to it."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(place / "out", output_loading_info=True, dtype="auto")
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    assert model.dtype == torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "out", dtype=torch.float32)  # scales are computed in it
    ids = torch.arange(60).view(2, 30)
    artifact = quantlab.load(place / "m.qlab")
    for name, tensor in quantlab.load(place / "out").state.items():
        assert torch.equal(tensor, artifact.state[name].bfloat16().float()), name
    with torch.no_grad():
        for tensor in artifact.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.bfloat16())
        torch.testing.assert_close(model.eval()(ids).logits, artifact.model(ids), **SAME_LOGITS)


def command(*arguments: str, place: Path) -> str:
    """Run a command of quantlab in a folder and return its standard output. AssertionError, with its last line, if it fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    assert code == 0, f"quantlab {' '.join(arguments)} ended with {code}: {err.getvalue()[-500:]}"
    return out.getvalue()


def main() -> None:
    """Run all families, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tokens", type=int, help="calibration tokens in place of the default")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "folders.json")
    arguments = parser.parse_args()
    rows = []
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as place:
            rows.append(round_trip(family, Path(place), arguments.tokens))
        print(rows[-1], flush=True)
    about = machine() | {"transformers": transformers.__version__}
    arguments.output.write_text(json.dumps({"machine": about, "bits": BITS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
