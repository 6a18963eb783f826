"""The smallest pipeline that trains, packs and scores: seconds on one core."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = """
[data]
train = "text:train.txt"
val = "text:val.txt"
tokenizer = "tiny.model"
[train]
seq_len = 32
batch_tokens = 128
micro_batch_tokens = 128
steps = 6
max_seconds = 0.0
checkpoint_every_seconds = 0.0
log_every = 1
seed = 5
[train.model]
vocab_size = 400
num_layers = 1
model_dim = 64
num_heads = 2
num_kv_heads = 1
mlp_hidden = 96
[calibrate]
tokens = 512
seq_len = 32
[pack]
budget = "40kB"
tune = false
states = 4
[report]
html = false
"""


def write_pipeline(folder: Path, tokenizer_file: Path, text: str = PIPELINE) -> Path:
    """Write p.toml with its texts and tokenizer; return it."""
    (folder / "train.txt").write_bytes((ROOT / "quantlab/cli/main.py").read_bytes())
    (folder / "val.txt").write_bytes((ROOT / "quantlab/cli/options.py").read_bytes()[:600])
    (folder / "tiny.model").write_bytes(tokenizer_file.read_bytes())
    (folder / "p.toml").write_text(text)
    return folder / "p.toml"
