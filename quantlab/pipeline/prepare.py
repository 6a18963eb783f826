"""Text to token shards of the challenge: a training and a validation split that never overlap."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.errors import ConfigError, DataError
from quantlab.files import write_whole
from quantlab.pipeline.progress import Progress, silent
from quantlab.pipeline.whole_folder import whole_folder
from quantlab.text.documents import read_documents
from quantlab.text.parallel_encode import batches, encode_batches
from quantlab.text.shard_writer import ShardWriter
from quantlab.text.shards import SIDECAR_MARK
from quantlab.text.tokenizer import Tokenizer

MANIFEST = "manifest.json"
SPLITS = ("val", "train")
"""In the order of the corpus: the first documents are the validation split."""
OUTPUTS = re.compile(r"manifest\.json|[\w.-]+_(train|val)_\d{6}\.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How a corpus is cut into shards."""

    name: str = "fineweb"
    """Start of the file names: NAME_train_000000.bin."""
    val_docs: int = 50_000
    """The first documents, 0 or more, are the validation split; the challenge's has 50,000."""
    shard_tokens: int = 10**8
    """Tokens in each shard but the last of a split."""
    workers: int = 1
    """Processes that tokenize; the result does not depend on it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) or SIDECAR_MARK in f"{self.name}_":
            rule = f"must be letters, digits, '_', '-' and '.', without {SIDECAR_MARK!r}"
            raise ConfigError(f"name {self.name!r} {rule}")
        if self.val_docs < 0:
            raise ConfigError(f"val docs must be 0 or more, got {self.val_docs}")
        if not 1 <= self.shard_tokens < 2**31:
            raise ConfigError(f"shard tokens must be 1 to 2**31 - 1, got {self.shard_tokens}")
        if not 1 <= self.workers <= 1024:
            raise ConfigError(f"workers must be 1 to 1024, got {self.workers}")


def prepare(
    sources: Sequence[Path],
    tokenizer: Tokenizer,
    out: Path,
    config: PrepareConfig,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the shards of both splits and `manifest.json` into the folder `out`, which appears whole or not at all.

    Each document is BOS and its tokens, no EOS; documents keep their order. The same sources give the same bytes for any
    number of workers. A document with U+2581 in its text gets byte pieces for it, where the challenge's exporter gives a
    space; all others are tokenized equally.

    Returns:
        The manifest.
    Raises:
        ConfigError: `out` may not be written.
        DataError: a source is missing or damaged, or there are fewer documents than `config.val_docs`.
        QuantlabError: the disk is full, or a process was killed.
    Source: openai/parameter-golf data/download_hf_docs_and_tokenize.py, export_shards.
    """
    for source in sources:
        if not source.is_file():
            raise DataError(f"source {source} is not a file")
    with whole_folder(out, replaceable=OUTPUTS, force=force) as folder:
        stats = _write_splits(sources, tokenizer, folder, config, progress)
        if stats["docs_val"] < config.val_docs:
            problem = f"{stats['docs_val']:,} documents, fewer than the {config.val_docs:,} of the validation split"
            raise DataError(problem, hint="pass a smaller --val-docs")
        manifest = _manifest(sources, tokenizer, config, stats)
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    return manifest


def _write_splits(
    sources: Sequence[Path], tokenizer: Tokenizer, folder: Path, config: PrepareConfig, progress: Progress
) -> Counter[str]:
    """Tokenize everything; returns docs, bytes (of text), tokens and files of each split, as `docs_val` and so on."""
    stats: Counter[str] = Counter()
    finished: list[Path] = []
    work = batches(_documents(sources, finished), config.val_docs)
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(folder / f"{config.name}_{s}", config.shard_tokens)) for s in SPLITS}
        for batch, tokens in stack.enter_context(closing(encode_batches(work, tokenizer, workers=config.workers))):
            split = "val" if batch.first < config.val_docs else "train"
            writers[split].write(tokens)
            stats[f"docs_{split}"] += len(batch.documents)
            stats[f"bytes_{split}"] += sum(map(len, batch.documents))
            written = sum(writer.tokens for writer in writers.values())
            progress("tokenize files", min(len(finished), len(sources) - 1), len(sources), f"{written:,} tokens")
    for split, writer in writers.items():
        stats[f"tokens_{split}"], stats[f"files_{split}"] = writer.tokens, writer.files
    progress("tokenize files", len(sources), len(sources), f"{stats['tokens_val'] + stats['tokens_train']:,} tokens")
    return stats


def _documents(sources: Iterable[Path], finished: list[Path]) -> Iterator[bytes]:
    for source in sources:
        yield from read_documents(source)
        finished.append(source)


def _manifest(sources: Sequence[Path], tokenizer: Tokenizer, config: PrepareConfig, stats: Counter[str]) -> dict[str, Any]:
    """The fields that the challenge's downloader reads, and what is needed to make the shards again; no machine's paths."""
    ids = {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id}
    model_path = Path(tokenizer.name).name
    name = Path(model_path).stem
    totals = {f"{kind}_total": stats[f"{kind}_train"] + stats[f"{kind}_val"] for kind in ("docs", "files", "tokens", "bytes")}
    splits = {f"{kind}_{split}": stats[f"{kind}_{split}"] for kind in ("docs", "files", "tokens", "bytes") for split in SPLITS}
    dataset = {
        "name": f"{config.name}_sp{tokenizer.vocab_size}",
        "tokenizer_name": name,
        "path": ".",
        **{f"{split}_glob": f"{config.name}_{split}_*.bin" for split in SPLITS},
        **ids,
        "stats": totals | splits,
    }
    return {
        "producer": f"quantlab {__version__}",
        "sources": [source.name for source in sources],
        "num_docs": totals["docs_total"],
        "num_val_docs": config.val_docs,
        "shard_size": config.shard_tokens,
        "append_eos": False,
        "tokenizers": [{"name": name, "kind": "sentencepiece", **ids, "model_path": model_path, "sha256": tokenizer.sha256}],
        "datasets": [dataset],
    }
