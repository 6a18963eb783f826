"""quantlab probe"""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import print_json

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

    from quantlab.cli.evaluate import tokenizer_beside
    from quantlab.errors import ConfigError
    from quantlab.pipeline.evaluate import evaluation_tokens, probe_target
    from quantlab.pipeline.models import load_target, load_tokenizer
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
