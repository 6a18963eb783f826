"""quantlab eval, probe and compare: what a model scores, whether honestly, and beside which other."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say, show_whole
from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.evaluation.evaluation_record import EvaluationRecord, Gain

_PROBE_WORDS = {True: "pass", False: "FAIL", None: "info"}


def evaluate(
    target: options.Target,
    text: options.Text = None,
    tokens: options.Tokens = None,
    tokenizer: options.TokenizerFile = None,
    against: options.Against = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", help="Largest number of tokens of context.  [default: of the model's training, else 1024]"),
    ] = None,
    mode: options.Mode = None,
    stride: options.Stride = None,
    packed: options.Packed = None,
    model: options.Model = None,
    ttt: options.Ttt = None,
    ttt_option: options.TttOption = [],  # noqa: B006
    trained_on: options.TrainedOn = None,
    max_seconds: options.MaxSeconds = None,
    sandbox: options.Sandbox = False,
    save: options.Save = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Score a model in bits per byte, the way the challenge counts them; on several GPUs under torchrun.

    Without --tokenizer the one that TARGET carries is used, or tokenizer.model or tokenizer.json beside it; a line on stderr
    says so. With --tokens and --against, KL and flips need none; then there are no bits per byte.
    The predictions are probed on some of the scored windows, as quantlab probe does; a score that fails is not valid.

    Example: quantlab eval model.qlab --tokens 'fineweb_val_*.bin' --tokenizer fineweb_1024_bpe.model

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab eval model.qlab --mode sliding --text val.txt

    Example: quantlab eval model.qlab --text val.txt --ttt lora --ttt-option rank=4
    """
    import os

    from quantlab.jobs.evaluate import adaptation_of, check_options, refuse_record, save_record
    from quantlab.jobs.evaluate import evaluate as score
    from quantlab.jobs.sandbox import evaluate_in_sandbox
    from quantlab.toml_file import apply_changes_

    check_options(text, tokens, mode, seq_len, stride, max_seconds)
    ttt_options: dict[str, Any] = {}
    apply_changes_(ttt_options, ttt_option, option="--ttt-option")
    adaptation_of(ttt, ttt_options)
    asked: dict[str, Any] = {"text": text, "tokens": tokens, "tokenizer": tokenizer, "against": against}
    asked |= {"seq_len": seq_len, "mode": mode, "packed": packed, "model": model}
    asked |= {"trained_on": trained_on, "max_seconds": max_seconds}
    asked |= {"ttt": ttt, "ttt_options": ttt_options} if ttt else {}
    recorder = options.recorder_of(runs, no_run, mirror)
    if save:
        refuse_record(target, text, force=force)
    with (
        recorder.run("eval", {"target": target, **asked, "stride": stride, "sandbox": sandbox}) as run,
        ProgressDisplay() as progress,
    ):
        if target.exists():
            run.result(artifact=target)
        watched = run.watched(progress)
        if sandbox:
            record = evaluate_in_sandbox(target, {**asked, "stride": stride}, progress=watched)
            if save:
                save_record(target, record)
        else:
            record = score(target, **asked, stride=stride, save=save, force=force, progress=watched)
        run.result(evaluation=record, metrics=asdict(record.memory) if record.memory else {})
    if os.environ.get("RANK", "0") == "0":
        _print_evaluation(record, target, against, save, as_json)


def _print_evaluation(record: "EvaluationRecord", target: Path, against: Path | None, save: bool, as_json: bool) -> None:
    from quantlab.evaluation.evaluation_record import record_path

    if save:
        note(f"wrote {record_path(target)}")
    if as_json:
        facts = {key: value for key, value in record.to_dict().items() if key != "data"}
        facts |= {"problems": list(record.problems), "unchecked": list(record.unchecked)}
        print_json(asdict(record.data) | {key: value for key, value in facts.items() if key != "against" or value})
        return
    _print_score(record)
    if memory := record.memory:
        say(
            f"weights {memory.weights}: {memory.weight_bytes:,} bytes in memory, peak {memory.peak_bytes:,} bytes "
            f"({memory.device})"
        )
    _print_comparison(record, against)


def _print_score(record: "EvaluationRecord") -> None:
    data = record.data
    stride = "" if data.mode == "chunked" else f", stride {data.stride}"
    way = f"{data.mode}, sequences of {data.seq_len}{stride}"
    if record.val_bpb is None:
        say(f"val_loss {record.val_loss:.6f}  tokens {data.tokens:,}  documents {data.documents:,}  ({way})")
        if record.gain:
            _print_gain(record, record.gain)
        return
    say(
        f"val_bpb {record.val_bpb:.6f}  val_loss {record.val_loss:.6f}  tokens {data.tokens:,}  "
        f"bytes {data.bytes:,}  documents {data.documents:,}  ({data.bytes / data.tokens:.4f} bytes per token, {way})"
    )
    if record.gain:
        _print_gain(record, record.gain)
    if record.bytes_match:
        say(f"tokens and bytes are those of the public validation split {record.split}")
    for deviation in record.deviations:
        note(f"warning: {deviation}")
    if record.problems:
        for problem in record.problems:
            note(f"not valid: {problem}")
    else:
        say(f"checks passed: {', '.join(probe.name for probe in record.probes if probe.passed)}")
    if record.unchecked:
        say(f"not checked: {', '.join(probe.name for probe in record.probes if probe.passed is None)}")


def _print_gain(record: "EvaluationRecord", gain: "Gain") -> None:
    say(f"test-time training: {record.data.adaptation}")
    in_nats = gain.loss_difference, gain.loss_difference_low, gain.loss_difference_high
    change, low, high = gain.in_bpb(record.data) or in_nats
    interval = "" if low is None else f" (95 % over {gain.documents:,} documents: {low:+.6f} to {high:+.6f})"
    before = f"val_loss {gain.plain_loss:.6f}" if gain.plain_bpb is None else f"val_bpb {gain.plain_bpb:.6f}"
    say(f"without it {before}, with it {change:+.6f}{interval}")


def _print_comparison(record: "EvaluationRecord", against: Path | None) -> None:
    if found := record.against:
        say(
            f"against {against}: KL {found.kl_mean:.6f} nats (99 % of tokens below {found.kl_q99:.4f}), "
            f"top token differs at {100 * found.top1_flips:.2f} %, loss {found.loss_difference:+.6f} nats "
            f"(95 %: {found.loss_difference_low:+.6f} to {found.loss_difference_high:+.6f})"
        )


def probe(
    target: options.Target,
    text: options.Text = None,
    tokens: options.Tokens = None,
    tokenizer: options.TokenizerFile = None,
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens in each of the four sequences.")] = 128,
    seed: options.Seed = 0,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Check that a model scores honestly: it sees no later token, no other row, and gives probabilities that sum to 1.

    Random ids are used without --text and --tokens. For --text without --tokenizer the one that TARGET carries is used, or
    the file tokenizer.model beside it. The exit code is 1 when a probe fails.

    Example: quantlab probe model.qlab --tokens 'fineweb_val_*.bin'
    """
    from quantlab.jobs.probe import probe as run_probes

    probes = run_probes(target, text=text, tokens=tokens, tokenizer=tokenizer, seq_len=seq_len, seed=seed, model=model)
    failed = [p.name for p in probes if p.passed is False]
    if as_json:
        print_json({"failed": failed, "probes": [p.to_dict() for p in probes]})
    else:
        for p in probes:
            say(f"{_PROBE_WORDS[p.passed]}  {p.name:<13}  {p.detail}")
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
    estimates: Annotated[
        Path | None,
        typer.Option(
            "--estimates",
            metavar="E.json",
            help="With --html: what quantlab estimate --json printed for the model, for a slider of other budgets.",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compare packed models: sizes, scores, and what every tensor got. One alone goes with --html or --json.

    What lies beside x.qlab belongs to it: x.report.json of quantlab pack, x.eval.json of quantlab eval --save.

    Example: quantlab compare a.qlab b.qlab --sort predicted_kl --html compare.html
    """
    from quantlab.files import write_whole
    from quantlab.jobs.compare import comparison_page, files_beside, read_entry
    from quantlab.outputs import check_outputs
    from quantlab.report.comparison import compare_entries
    from quantlab.report.estimates import read_estimates
    from quantlab.report.tables import render_comparison

    if len(files) < 2 and html is None and not as_json:
        raise ConfigError(f"compare needs two files or more, got {files[0]}", hint="one alone goes with --html or --json")
    if estimates is not None and html is None:
        raise ConfigError(f"--estimates {estimates} is for the page that --html names", hint="pass --html F, or leave it out")
    if html is not None:
        from quantlab.report.assets import check_packages

        check_packages()
        inputs = [beside for path in files for beside in files_beside(path)] + ([estimates] if estimates else [])
        check_outputs([html], inputs=inputs, force=force)
    entries = [read_entry(path) for path in files]
    known = read_estimates(estimates) if estimates else None
    comparison = compare_entries(entries, sort=sort)  # type: ignore[arg-type]  # checked there
    if html is not None:
        write_whole(html, comparison_page(comparison, entries, known).encode())
    if as_json:
        print_json(comparison.to_dict())
    elif len(files) > 1:
        show_whole(render_comparison(comparison, top=top))
    if html is not None:
        note(f"wrote {html}")
