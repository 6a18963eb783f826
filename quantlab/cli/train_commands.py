"""quantlab train, and quantlab data: token shards of the challenge, made and checked."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say

if TYPE_CHECKING:
    from quantlab.runs.recording import RunWriter
    from quantlab.trainer.training import TrainResult


def train(
    config: Annotated[
        str, typer.Argument(metavar="C.toml", help="Keys of TrainConfig, tables [model] and [data]; or a preset.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model, tokenizer, logs and checkpoint.")],
    changes: options.Changes = [],  # noqa: B006
    from_env: Annotated[bool, typer.Option("--from-env", help="Read the variables of the challenge's train_gpt.py.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard scalars.")] = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Train the challenge's architectures on a CPU, one GPU, or several under torchrun.

    Presets: baseline, h1394, record_1855, one_gpu_proxy, laptop, demo.

    Example: quantlab train laptop --out runs/laptop --set max_seconds=300

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab train baseline --out runs/baseline
    """
    from quantlab.jobs.train import train_to_folder
    from quantlab.jobs.train_file import ignored_variables, read_train_config
    from quantlab.outputs import check_outputs
    from quantlab.trainer.training_loop import CHECKPOINT_NAME, MODEL_NAME

    environment = dict(os.environ) if from_env else None
    configs = read_train_config(config, changes=changes, environment=environment)
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main and environment is not None and (ignored := ignored_variables(environment, configs)):
        note(f"these variables have no effect here: {', '.join(ignored)}")
    if is_main and not resume:
        check_outputs([out / MODEL_NAME, out / CHECKPOINT_NAME] if out.exists() else [], force=force)
    settings, data = configs
    asked = {"config": config, "out": out, "resume": resume, **settings.to_dict(), "data": data}
    recorder = options.recorder_of(runs, no_run, mirror)
    with recorder.run("train", asked, seeds={"seed": settings.seed}) as run, ProgressDisplay() as progress:
        watched = run.watched(progress)
        result = train_to_folder(settings, data, out, resume=resume, tensorboard=tensorboard, progress=watched)
        if run.is_recorded:
            _record(run, result, out)
    if not is_main:
        return
    summary = {
        "model": str(result.model_path),
        "steps": result.steps,
        "seconds": round(result.elapsed_seconds, 1),
        "timeline": result.timeline.to_dict(),
    }
    if as_json:
        print_json(summary)
    else:
        say(f"wrote {result.model_path}: {result.steps} steps in {result.elapsed_seconds:.0f} s")


def _record(run: "RunWriter", result: "TrainResult", out: Path) -> None:
    """Record the model by hash and fingerprint, its last validation, and the logs."""
    from quantlab.models.loading import load
    from quantlab.runs.run_record import Checkpoint
    from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME, last_validation

    fingerprint = load(result.model_path).fingerprint
    metrics = {"steps": result.steps, "train_seconds": round(result.elapsed_seconds, 3), **last_validation(out)}
    run.result(
        checkpoint=Checkpoint(path=str(result.model_path), fingerprint=fingerprint),
        artifact=result.model_path,
        metrics=metrics | {"timeline": result.timeline.to_dict()},
        files=[out / METRICS_NAME, out / LOG_NAME],
    )


app = typer.Typer(
    help="Fetch or make token shards, train tokenizers, and check shards before a score on them is believed.",
    rich_markup_mode=None,
)


@app.command()
def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Plain text, or .jsonl with a text field; also .zst of either."),
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", metavar="FILE", help=options.TOKENIZER_HELP)],
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
    from quantlab.text.prepare import PrepareConfig
    from quantlab.text.prepare import prepare as write_shards
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
        say(f"{split:<5} {docs:,} documents, {text_bytes:,} bytes of text, {tokens:,} tokens, {files:,} shards")
    say(f"wrote {out}")


@app.command()
def fetch(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="sp1024, sp4096, sp8192, or another name of --repo.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for datasets/ and tokenizers/.")] = Path("data"),
    train_shards: Annotated[
        int, typer.Option("--train-shards", metavar="N", help="Training shards, of 100 million tokens each.")
    ] = 80,
    repo: Annotated[
        str | None,
        typer.Option("--repo", metavar="OWNER/NAME", help="Data set on the hub.  [default: of the challenge's records]"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the data set.")] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch the challenge's shards and their tokenizer from the Hugging Face Hub; run it again to go on after an error.

    Every file is checked by size and header before it appears under its name.

    Example: quantlab data fetch sp1024 --train-shards 1
    """
    from quantlab.jobs.fetch_data import fetch_data

    with ProgressDisplay() as progress:
        found = fetch_data(variant, out, repository=repo, revision=revision, train_shards=train_shards, progress=progress)
    if as_json:
        names = {"folder": str(found.folder), "tokenizer": str(found.tokenizer)}
        print_json({**names, "files": found.files, "new": found.new})
    else:
        say(f"{found.folder}: {found.files} files, {found.new} new; tokenizer {found.tokenizer}")


@app.command("train-tokenizer")
def train_tokenizer(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Plain text, or .jsonl with a text field; also .zst of either."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="T.model", help="The SentencePiece model to write.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="N", help="Pieces, 261 to 65,536.")] = 1024,
    case_operators: Annotated[
        bool,
        typer.Option("--case-operators", help="Write capitals as operators before small letters (CaseOps); text comes back."),
    ] = False,
    max_bytes: Annotated[
        str, typer.Option("--max-bytes", metavar="BYTES", help="Text to train on; documents are drawn by --seed.")
    ] = "4MB",
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Train a SentencePiece tokenizer (BPE with byte pieces, no normalization) on documents.

    Example: quantlab data train-tokenizer docs.jsonl --vocab-size 8192 --case-operators -o case_8192.model
    """
    from quantlab.budget import parse_bytes
    from quantlab.jobs.train_tokenizer import train_to_file

    made = train_to_file(
        sources,
        out,
        vocab_size=vocab_size,
        max_bytes=parse_bytes(max_bytes),
        seed=seed,
        has_operators=case_operators,
        force=force,
    )
    about = {"tokenizer": str(out), "kind": made.kind, "vocab_size": made.vocab_size, "sha256": made.sha256}
    if as_json:
        print_json(about)
    else:
        say(f"wrote {out}: {made.vocab_size:,} pieces, {made.kind}, sha256 {made.sha256[:12]}")


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
    from quantlab.text.check_data import check_data

    with ProgressDisplay() as progress:
        result = check_data(train, val, tokenizer, max_overlap=max_overlap, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        for finding in result.findings:
            say(f"{'ok  ' if finding.is_ok else 'FAIL'} {finding.check}: {finding.text}")
    if not result.is_ok:
        raise typer.Exit(1)
