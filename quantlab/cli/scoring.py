"""quantlab eval

quantlab probe

quantlab compare"""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, show_whole
from quantlab.cli.options import recorder_of


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A checkpoint or a packed model.")],
    text: Annotated[
        Path | None, typer.Option("--text", metavar="F", help="Plain text, or .jsonl with a text field; also .zst of either.")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", metavar="GLOB", help="Token shards, quoted.")] = None,
    tokenizer: options.TokenizerFile = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="CKPT", help="Also compare with this model: KL, flips, paired loss difference."),
    ] = None,
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens of context at most.")] = 1024,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="chunked: sequences that do not overlap, as the challenge's baseline. sliding: windows a stride apart, every "
            "token but the first. document: sliding within each document alone, every token but BOS.",
        ),
    ] = "chunked",
    stride: Annotated[
        int | None, typer.Option("--stride", metavar="N", help="Of sliding and document, 1 to seq-len.  [default: 64]")
    ] = None,
    packed: Annotated[
        bool | None,
        typer.Option(
            "--packed/--decoded",
            help="Whether the weights of a packed model stay packed in memory.  [default: packed on a GPU, decoded on a CPU]",
        ),
    ] = None,
    model: options.Model = None,
    save: Annotated[
        bool, typer.Option("--save", help="Also write the result to TARGET's stem.eval.json beside it, for quantlab compare.")
    ] = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Score a model in bits per byte, the way the challenge counts them; on several GPUs under torchrun.

    Without --tokenizer the file tokenizer.model beside TARGET is used; a line on stderr says so.

    Example: quantlab eval model.qlab --tokens 'fineweb_val_*.bin' --tokenizer fineweb_1024_bpe.model

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab eval model.qlab --mode sliding --text val.txt
    """
    from contextlib import ExitStack

    from quantlab.errors import ConfigError
    from quantlab.evaluation.evaluation_record import Reference, record_of, record_path, refuse_record
    from quantlab.evaluation.windows import as_mode, stride_of
    from quantlab.files import write_whole
    from quantlab.jobs.evaluate import compare_targets, evaluate_target, evaluation_tokens, memory_of
    from quantlab.models.loading import load_packed, load_target, load_tokenizer, stays_packed
    from quantlab.trainer.world import close_world, open_world

    if (text is None) == (tokens is None):
        raise ConfigError("eval needs exactly one of --text and --tokens")
    windows = as_mode(mode)
    asked = {"target": target, "text": text, "tokens": tokens, "tokenizer": tokenizer, "against": against, "seq_len": seq_len}
    asked |= {"mode": windows, "stride": stride_of(windows, seq_len, stride), "packed": packed, "model": model}
    recorder = recorder_of(runs, no_run, mirror)
    if save:
        refuse_record(target, force=force)
    with recorder.run("eval", asked) as run, ExitStack() as stack:
        world = open_world()
        stack.callback(close_world, world)
        if target.exists():
            run.result(artifact=target)
        is_packed = stays_packed(target, model, world.device) if packed is None else packed
        loaded = load_packed(target, model, world.device) if is_packed else load_target(target, model)
        known = load_tokenizer(tokenizer or tokenizer_beside(target, say=world.is_main), loaded)
        ids = evaluation_tokens(text, tokens, known)
        with ProgressDisplay() as progress:
            score = evaluate_target(
                loaded, ids, known, seq_len=seq_len, mode=windows, stride=stride, world=world, progress=progress
            )
            memory = memory_of(loaded, world.device)
            before = held = None
            if save and against is not None and windows != "chunked":  # the comparison runs on chunks alone
                whole = load_target(against, model)
                before = evaluate_target(
                    whole, ids, known, seq_len=seq_len, mode=windows, stride=stride, world=world, progress=progress
                )
            if against is not None and world.is_main:
                reference = load_target(against, model)
                compared = compare_targets(reference, loaded, ids, seq_len=seq_len, progress=progress)
                held = Reference(against, reference, compared, before)
        record = None
        if world.is_main and (save or run.is_recorded):
            same_mode = held if before or windows == "chunked" else None
            record = record_of(target, score, ids, known, device=memory["device"], reference=same_mode)
            run.result(evaluation=record, metrics=memory)
    if not world.is_main:
        return
    if save and record:
        write_whole(record_path(target), record.to_json())
        note(f"wrote {record_path(target)}")
    if as_json:
        print_json(score.to_dict() | {"memory": memory} | ({"against": held.compared.to_dict()} if held else {}))
        return
    _print_score(score.to_dict())
    print(
        f"weights {memory['weights']}: {memory['weight_bytes']:,} bytes in memory, peak {memory['peak_bytes']:,} bytes "
        f"({memory['device']})"
    )
    if held:
        _print_comparison(against, held.compared.to_dict())


def tokenizer_beside(target: Path, *, say: bool = True) -> Path:
    """The file tokenizer.model in the target's folder. ConfigError if there is none."""
    from quantlab.errors import ConfigError

    path = target.parent / "tokenizer.model"
    if not path.is_file():
        raise ConfigError(f"no tokenizer: --tokenizer was not given and {path} does not exist")
    if say:
        note(f"tokenizer {path}")
    return path


def _print_score(score: dict[str, Any]) -> None:
    stride = "" if score["mode"] == "chunked" else f", stride {score['stride']}"
    print(
        f"val_bpb {score['val_bpb']:.6f}  val_loss {score['val_loss']:.6f}  tokens {score['tokens']:,}  "
        f"bytes {score['bytes']:,}  documents {score['documents']:,}  ({score['bytes'] / score['tokens']:.4f} bytes per token, "
        f"{score['mode']}, sequences of {score['seq_len']}{stride})"
    )
    if score["bytes_match"]:
        print(f"tokens and bytes are those of the public validation split {score['split']}")
    elif score["split"]:
        note(f"warning: as many tokens as the public validation split {score['split']}, but not its bytes: do not compare this")


def _print_comparison(against: Path | None, compared: dict[str, Any]) -> None:
    print(
        f"against {against}: KL {compared['kl_mean']:.6f} nats (99 % of tokens below {compared['kl_q99']:.4f}), "
        f"top token differs at {100 * compared['top1_flips']:.2f} %, loss {compared['loss_difference']:+.6f} nats "
        f"(95 %: {compared['loss_difference_low']:+.6f} to {compared['loss_difference_high']:+.6f})"
    )


_WORDS = {True: "pass", False: "FAIL", None: "info"}


def probe(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A checkpoint or a packed model.")],
    text: Annotated[
        Path | None, typer.Option("--text", metavar="F", help="Plain text, or .jsonl with a text field; also .zst of either.")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", metavar="GLOB", help="Token shards, quoted.")] = None,
    tokenizer: options.TokenizerFile = None,
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens in each of the four sequences.")] = 128,
    seed: options.Seed = 0,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Check that a model scores honestly: it sees no later token, no other row, and gives probabilities that sum to 1.

    Random ids are used without --text and --tokens. For --text without --tokenizer the file tokenizer.model beside TARGET
    is used. The exit code is 1 when a probe fails.

    Example: quantlab probe model.qlab --tokens 'fineweb_val_*.bin'
    """
    import torch

    from quantlab.cli.scoring import tokenizer_beside
    from quantlab.errors import ConfigError
    from quantlab.jobs.evaluate import evaluation_tokens, probe_target
    from quantlab.models.loading import load_target, load_tokenizer
    from quantlab.text.shards import read_shards

    if text is not None and tokens is not None:
        raise ConfigError("probe takes --text or --tokens or neither, got both")
    loaded = load_target(target, model)
    if text is not None and tokenizer is None:
        tokenizer = tokenizer_beside(target)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    ids: Any = None
    if tokens is not None:
        ids = read_shards(tokens)
    elif text is not None and known is not None:
        ids = evaluation_tokens(text, None, known)
    bos_id = known.bos_id if known else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probes = probe_target(loaded, ids, seq_len=seq_len, bos_id=bos_id, seed=seed, device=device)
    failed = [p.name for p in probes if p.passed is False]
    if as_json:
        print_json({"failed": failed, "probes": [p.to_dict() for p in probes]})
    else:
        for p in probes:
            print(f"{_WORDS[p.passed]}  {p.name:<13}  {p.detail}")
    if failed:
        raise typer.Exit(1)


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="A [B ...]", help="Artifacts (.qlab) or reports (.report.json).")],
    sort: Annotated[
        str,
        typer.Option("--sort", help="Tensors by what differs most from the first file: bytes, predicted_kl, bpw; or name."),
    ] = "bytes",
    top: Annotated[int, typer.Option("--top", metavar="N", help="Show the first N tensors; 0: none.", min=0)] = 20,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="F", help="Write a report of one self-contained page, for a browser.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compare packed models: sizes, scores, and what every tensor got. One alone goes with --html or --json.

    What lies beside x.qlab belongs to it: x.report.json of quantlab pack, x.eval.json of quantlab eval --save.

    Example: quantlab compare a.qlab b.qlab --sort predicted_kl --html compare.html
    """
    from quantlab.errors import ConfigError
    from quantlab.files import refuse_existing, write_whole
    from quantlab.jobs.compare import read_code_counts, read_entry
    from quantlab.report.comparison import compare_entries as side_by_side
    from quantlab.report.tables import render_comparison

    if len(files) < 2 and html is None and not as_json:
        raise ConfigError(f"compare needs two files or more, got {files[0]}", hint="one alone goes with --html or --json")
    if html is not None:
        from quantlab.report.page import check_packages, render_page

        check_packages()
        refuse_existing([html], force=force)
    entries = [read_entry(path) for path in files]
    comparison = side_by_side(entries, sort=sort)  # type: ignore[arg-type]  # checked there
    if html is not None:
        counts = [read_code_counts(Path(entry.path)) if entry.file else {} for entry in entries]
        write_whole(html, render_page(comparison, entries, counts).encode())
    if as_json:
        print_json(comparison.to_dict())
    elif len(files) > 1:
        show_whole(render_comparison(comparison, top=top))
    if html is not None:
        note(f"wrote {html}")
