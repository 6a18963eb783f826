"""quantlab data: token shards of the challenge, made and checked"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, print_json

app = typer.Typer(
    help="Make token shards from text, and check shards before a score on them is believed.",
    rich_markup_mode=None,
)


@app.command()
def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Plain text, or .jsonl with a text field; also .zst of either."),
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", metavar="FILE", help="SentencePiece .model file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make; it appears when all is done.")],
    val_docs: Annotated[
        int, typer.Option("--val-docs", metavar="N", help="The first N documents are the validation split, the rest training.")
    ] = 50_000,
    shard_tokens: Annotated[int, typer.Option("--shard-tokens", metavar="N", help="Tokens in one shard.")] = 10**8,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", help="Processes. Default: one a core.")] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Start of the file names.")] = "fineweb",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Turn text into NAME_train_000000.bin, NAME_val_000000.bin and so on, and a manifest.json.

    Each document is BOS and its tokens. The number of processes does not change a byte.

    Example: quantlab data prepare docs.jsonl --tokenizer fineweb_1024_bpe.model --out shards --val-docs 1000
    """
    import os

    from quantlab.pipeline.prepare import PrepareConfig
    from quantlab.pipeline.prepare import prepare as write_shards
    from quantlab.text.tokenizer import Tokenizer

    workers = (os.cpu_count() or 1) if workers is None else workers
    config = PrepareConfig(name=name, val_docs=val_docs, shard_tokens=shard_tokens, workers=workers)
    with ProgressDisplay() as progress:
        manifest = write_shards(sources, Tokenizer.load(tokenizer), out, config, force=force, progress=progress)
    if as_json:
        print_json(manifest)
        return
    stats = manifest["datasets"][0]["stats"]
    for split in ("train", "val"):
        docs, tokens, text_bytes, files = (stats[f"{kind}_{split}"] for kind in ("docs", "tokens", "bytes", "files"))
        print(f"{split:<5} {docs:,} documents, {text_bytes:,} bytes of text, {tokens:,} tokens, {files:,} shards")
    print(f"wrote {out}")


@app.command()
def check(
    train: Annotated[str, typer.Option("--train", metavar="GLOB", help="Training shards, quoted.")],
    val: Annotated[str, typer.Option("--val", metavar="GLOB", help="Validation shards, quoted.")],
    tokenizer: options.TokenizerFile = None,
    max_overlap: Annotated[
        float,
        typer.Option("--max-overlap", metavar="SHARE", help="Share of validation documents, 0 to 1, that may be in training."),
    ] = 0.01,
    as_json: options.Json = False,
) -> None:
    """Check headers, documents, ids and bytes, and look for validation documents in training. Exit code 1: a check failed.

    Example: quantlab data check --train 'fineweb_train_*.bin' --val 'fineweb_val_*.bin' --tokenizer fineweb_1024_bpe.model
    """
    from quantlab.pipeline.check_data import check_data

    with ProgressDisplay() as progress:
        result = check_data(train, val, tokenizer, max_overlap=max_overlap, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        for finding in result.findings:
            print(f"{'ok  ' if finding.is_ok else 'FAIL'} {finding.check}: {finding.text}")
    if not result.is_ok:
        raise typer.Exit(1)
