"""quantlab eval"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json


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
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens of context; sequences do not overlap.")] = 1024,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Score a model in bits per byte, the way the challenge counts them.

    Without --tokenizer the file tokenizer.model beside TARGET is used; a line on stderr says so.

    Example: quantlab eval model.qlab --tokens 'fineweb_val_*.bin' --tokenizer fineweb_1024_bpe.model
    """
    from quantlab.errors import ConfigError
    from quantlab.pipeline.evaluate import compare_targets, evaluate_target, evaluation_tokens
    from quantlab.pipeline.models import load_target, load_tokenizer

    if (text is None) == (tokens is None):
        raise ConfigError("eval needs exactly one of --text and --tokens")
    loaded = load_target(target, model)
    if tokenizer is None:
        tokenizer = target.parent / "tokenizer.model"
        if not tokenizer.is_file():
            raise ConfigError(f"no tokenizer: --tokenizer was not given and {tokenizer} does not exist")
        note(f"tokenizer {tokenizer}")
    known = load_tokenizer(tokenizer, loaded)
    ids = evaluation_tokens(text, tokens, known)
    with ProgressDisplay() as progress:
        score = evaluate_target(loaded, ids, known, seq_len=seq_len, progress=progress)
        compared = None
        if against is not None:
            compared = compare_targets(load_target(against, model), loaded, ids, seq_len=seq_len, progress=progress)
    if as_json:
        print_json(score.to_dict() | ({"against": compared.to_dict()} if compared else {}))
    else:
        print(
            f"val_bpb {score.val_bpb:.6f}  val_loss {score.val_loss:.6f}  tokens {score.tokens:,}  bytes {score.bytes:,}  "
            f"({score.bytes / score.tokens:.4f} bytes per token, sequences of {score.seq_len})"
        )
        if compared:
            print(
                f"against {against}: KL {compared.kl_mean:.6f} nats (99 % of tokens below {compared.kl_q99:.4f}), "
                f"top token differs at {100 * compared.top1_flips:.2f} %, loss {compared.loss_difference:+.6f} nats "
                f"(95 %: {compared.loss_difference_low:+.6f} to {compared.loss_difference_high:+.6f})"
            )
