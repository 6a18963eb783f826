"""Writers of the challenge's file kinds and their toy configs; each returns the tensors that a reader must return."""

import dataclasses
import io
import zipfile
import zlib

import brotli
import numpy as np
import torch

from quantlab.models.ptz import SHUFFLED
from quantlab.trainer.model_config import GPTConfig

BASELINE = GPTConfig(vocab_size=400, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=2, mlp_hidden=128)
H1394 = dataclasses.replace(
    GPTConfig(vocab_size=400, num_layers=6, model_dim=64, num_heads=4, num_kv_heads=2, mlp_hidden=128),
    **{"mlp_slope": 0.5, "rope_dims": 16, "qk_gain_init": 4.0, "xsa_last_n": 6, "ln_scale": True, "skip_gates": True},
    **{"num_loops": 2, "loop_start": 4, "loop_end": 5, "init": "orthogonal", "rope_train_len": 2048},
)


def torch_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def per_row(w):
    """int8 codes and fp16 scales of a matrix, and their exact product."""
    scale = (w.abs().amax(1) / 127).half()
    q = (w / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q, scale, q.float() * scale.float()[:, None]


def int8_content(state):
    """The baseline's format and the tensors that a reader must return."""
    parts = {key: {} for key in ("quantized", "scales", "dtypes", "passthrough", "qmeta", "passthrough_orig_dtypes")}
    expected = {}
    for name, t in state.items():
        if name == "skip_weights":  # one scale for all, as tensors have that are no matrices
            scale = t.abs().max() / 127
            parts["quantized"][name], parts["scales"][name] = (t / scale).round().to(torch.int8), scale
            expected[name] = parts["quantized"][name].float() * scale
            parts["dtypes"][name] = "float32"
        elif t.ndim == 2 and t.numel() >= 4096:
            parts["quantized"][name], parts["scales"][name], exact = per_row(t.float())
            parts["qmeta"][name] = {"scheme": "per_row", "axis": 0}
            parts["dtypes"][name] = "bfloat16" if name == "tok_emb.weight" else "float32"
            expected[name] = exact.to(getattr(torch, parts["dtypes"][name]))
        elif name.endswith("q_gain"):
            parts["passthrough"][name] = expected[name] = t
        else:
            parts["passthrough"][name], parts["passthrough_orig_dtypes"][name] = t.half(), "float32"
            expected[name] = t.half().float()
    return {"__quant_format__": "int8_clean_per_row_v1", **parts}, expected


def mixed_content(state):
    """The int6 records' format, one matrix with a low-rank correction, and the tensors that a reader must return."""
    w, m, expected = {}, {}, {}
    for name, t in state.items():
        if t.numel() < 4096 or t.ndim != 2:
            w[name] = expected[name] = t.half()
            m[name] = "passthrough (float16)"
            continue
        w[f"{name}.q"], w[f"{name}.scale"], expected[name] = per_row(t)
        m[name] = "gptq (int6)"
    name, (rows, columns) = "tok_emb.weight", state["tok_emb.weight"].shape
    m[name] += "+lqer_asym"
    a, b = torch.randint(-2, 2, (rows, 2)).to(torch.int8), torch.randint(-8, 8, (2, columns)).to(torch.int8)
    a_scale, b_scale = torch.tensor(0.01).half(), torch.rand(4).half()
    w |= {f"{name}.lqA_a": a, f"{name}.lqAs_a": a_scale, f"{name}.lqB_a": b, f"{name}.lqBs_a": b_scale}
    factor = (b.reshape(4, -1).float() * b_scale.float()[:, None]).reshape(2, columns)
    expected[name] = expected[name] + (a.float() * a_scale.float()) @ factor
    return {"w": w, "m": m}, expected


def shuffle(raw, stride):
    """The slow reference: every byte is put where its residue and its turn say."""
    order = [i for residue in range(stride) for i in range(residue, len(raw), stride)]
    return SHUFFLED + bytes([stride]) + bytes(raw[i] for i in order)


def fast_shuffle(raw):
    data = np.frombuffer(raw, np.uint8)
    return SHUFFLED + b"\x02" + data[::2].tobytes() + data[1::2].tobytes()


def write_int8(path, state):
    content, expected = int8_content(state)
    path.write_bytes(zlib.compress(torch_bytes(content), 9))
    return expected


def write_int6(path, state):
    content, expected = mixed_content(state)
    path.write_bytes(brotli.compress(fast_shuffle(torch_bytes(content)), quality=3))
    return expected


def npy(descr, shape, data):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({''.join(f'{n}, ' for n in shape)})}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def write_npz(path, state):
    """As MLX does: bfloat16 as two bytes of no type, entries not compressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, t in state.items():
            values = t.bfloat16().view(torch.int16) if name == "tok_emb.weight" else t
            descr = "<V2" if name == "tok_emb.weight" else "<f4"
            archive.writestr(f"{name}.npy", npy(descr, t.shape, values.contiguous().numpy().tobytes()))
    return {**state, "tok_emb.weight": state["tok_emb.weight"].bfloat16()}


def write_pt(path, state):
    torch.save(state, path)
    return state


def banked(state, layers):
    """The names of the records since pull request 1855."""

    def stack(*names):
        return torch.stack([state[f"blocks.{i}.{name}.weight"] for name in names for i in range(layers)])

    banks = {
        "qo_bank": stack("attn.c_q", "attn.proj"),
        "kv_bank": stack("attn.c_k", "attn.c_v"),
        "mlp_up_bank": stack("mlp.fc"),
        "mlp_down_bank": stack("mlp.proj"),
    }
    ends = tuple(f".{name}.weight" for name in ("c_q", "attn.proj", "c_k", "c_v", "mlp.fc", "mlp.proj"))
    return {n: t for n, t in state.items() if not (n.startswith("blocks.") and n.endswith(ends))} | banks


def write_banked(path, state):
    write_pt(path, banked(state, 6))
    return state


KINDS = {
    "h1394": ("final_model.pt", H1394, write_pt),
    "banked": ("final_model.pt", H1394, write_banked),
    "int8": ("final_model.int8.ptz", BASELINE, write_int8),
    "int6": ("final_model.int6.ptz", H1394, write_int6),
    "mlx": ("run_mlx_model.npz", BASELINE, write_npz),
}
