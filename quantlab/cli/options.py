"""Options that several commands share, and where the commands record their runs.

Runs are recorded where an option says, else where an environment variable says, else in the folder runs.
"""

import os
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.runs.recording import Recorder

# what goes in
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CKPT", help=".pt, .pth, .safetensors, .ptz, .npz, or a folder of shards or of transformers.")
]
Artifact = Annotated[Path, typer.Argument(metavar="M.qlab", help="A packed model.")]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="A checkpoint or a packed model.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="path/to/file.py:factory, a function from the state dict to an nn.Module that maps ids [B, T] to logits "
        "[B, T, V]. This runs your code; it is the only option that does. Default: the challenge's baseline architecture, "
        "its shape read from the tensors. A preset or FILE.toml has what they do not tell.",
    ),
]
TOKENIZER_HELP = "SentencePiece .model, tokenizer.json (byte-level BPE) or a folder with one of them; or byte260."
WithTokenizer = Annotated[
    bool | None,
    typer.Option(
        "--with-tokenizer/--no-tokenizer",
        help="Whether the artifact carries the tokenizer, counted in its bytes.  [default: that of a folder of transformers]",
    ),
]
TokenizerFile = Annotated[Path | None, typer.Option("--tokenizer", metavar="FILE", help=TOKENIZER_HELP)]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="F", help="Plain text, or .jsonl with a text field; also .zst of either.")
]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="GLOB", help="Token shards, quoted.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
Calib = Annotated[
    str, typer.Option("--calib", metavar="SOURCE", help="self (the model's own text), random, text:FILE or tokens:GLOB.")
]
CalibTokens = Annotated[int, typer.Option("--calib-tokens", metavar="N", help="Number of calibration tokens.")]
CalibSeqLen = Annotated[int, typer.Option("--calib-seq-len", metavar="T", help="Tokens in one calibration sequence.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda", help="Where the model runs. Default: a GPU where there is one.")
]
Budget = Annotated[str, typer.Option("--budget", metavar="BYTES", help="16000000, 16MB (10^6) or 16MiB (2^20).")]
Stats = Annotated[
    Path | None, typer.Option("--stats", metavar="S", help="Statistics from quantlab calibrate, instead of --calib.")
]

# methods
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="trellis (row and column scales, two-sided feedback, entropy-coded trellis), gptq (the GPTQ baseline), rtn (round "
        "to nearest), or another folder of quantlab/methods.",
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        metavar="LEVEL",
        help="Of the trellis. fast: 4 states, no tuning. default: 8 states, tuning. best: 64 states, four times the tuning, "
        "progressive rounding. --states and --tune override it.  [default: default]",
    ),
]
States = Annotated[
    int | None,
    typer.Option("--states", help="States of the trellis: 1 (none), 4, 8, 16, 32, 64 or 256; more are slower."),
]
Tune = Annotated[
    bool | None,
    typer.Option(
        "--tune/--no-tune",
        help="Whether norms, gains and scales are tuned by KL to the float model after rounding; overrides the effort.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        help="For the whole command, with the trellis: less effort where its forecast is longer, exit code 3 if the least is.",
    ),
]
Widths = Annotated[
    str | None,
    typer.Option("--widths", help="Code widths in bits that a tensor may take. Default: 5,6,8, trellis also 16."),
]
MethodOption = Annotated[
    list[str], typer.Option("--option", metavar="KEY=VALUE", help="Set any option of the method; repeatable.")
]

Keep = Annotated[
    list[str],
    typer.Option(
        "--keep",
        metavar="PATTERN",
        help="Store the tensors whose names match unquantized, as '*.mlp.gate.weight'; repeatable.",
    ),
]
Bits = Annotated[
    list[str],
    typer.Option(
        "--bits",
        metavar="PATTERN=N",
        help="Codes of matching tensors have at most N bits: they lie within ±(2^(N-1) - 1), by larger steps where the weights "
        "need it; the entropy coder takes fewer bits still. 2 to 8, trellis 4 to 8; repeatable, the last match counts.",
    ),
]

# what comes out
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
ArtifactOut = Annotated[Path, typer.Option("-o", "--output", metavar="M.qlab", help="The file to write.")]
Code = Annotated[list[Path] | None, typer.Option("--code", metavar="FILE", help="A code file that counts towards the budget.")]
EmitDecoder = Annotated[
    Path | None,
    typer.Option(
        "--emit-decoder",
        metavar="D.py",
        help="Also write a self-contained decoder of trellis artifacts, under 4,000 bytes; --code D.py counts it.",
    ),
]
ReportOut = Annotated[Path | None, typer.Option("--report", metavar="R.json", help="Default: M.report.json beside M.qlab.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed or failed packing with the same options stopped.")]

# scoring
Against = Annotated[
    Path | None,
    typer.Option("--against", metavar="CKPT", help="Also compare with this model: KL, flips, paired loss difference."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="chunked: sequences that do not overlap, as the challenge's baseline. sliding: windows a stride apart, every "
        "token but the first. document: sliding within each document alone, every token but BOS.  [default: of the model's "
        "own validation, else chunked]",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option("--stride", metavar="N", help="Stride of sliding and document, 1 to seq-len.  [default: 64]"),
]
Packed = Annotated[
    bool | None,
    typer.Option(
        "--packed/--decoded",
        help="Whether the weights of a packed model stay packed in memory.  [default: packed on a GPU, decoded on a CPU]",
    ),
]
TrainedOn = Annotated[
    str | None,
    typer.Option(
        "--trained-on",
        metavar="GLOB",
        help="Token shards that training read: none of the scored documents may be among them, but for 1 %.",
    ),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-seconds",
        metavar="S",
        help="Seconds that loading and scoring may take; a slower score is not valid.  [default: 600 with --ttt, else none]",
    ),
]
Ttt = Annotated[
    str | None,
    typer.Option(
        "--ttt",
        metavar="KIND",
        help="Test-time training: adapt to each token after its score. lora: adapters for each document. sgd: all weights, "
        "after each chunk. phased: adapters, and all weights after some documents. The score without it is printed too.",
    ),
]
TttOption = Annotated[
    list[str], typer.Option("--ttt-option", metavar="KEY=VALUE", help="Set an option of the adaptation; repeatable.")
]
Sandbox = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        help="Score in a process without network that can read TARGET, tokenizer, tokens and your --model file alone (Linux).",
    ),
]
Save = Annotated[
    bool, typer.Option("--save", help="Also write the result to TARGET's stem.eval.json beside it, for quantlab compare.")
]

# training and pipelines
Changes = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")]

# recorded runs
Runs = Annotated[
    str | None,
    typer.Option("--runs", metavar="DIR", help="Folder of recorded runs. Default: the variable QUANTLAB_RUNS, or else runs."),
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Do not record this run; an empty QUANTLAB_RUNS does the same.")]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="TRACKER",
        help="Also send config and results to trackio or wandb at the end, as NAME or NAME:PROJECT. Default: QUANTLAB_MIRROR.",
    ),
]

RUNS_VARIABLE = "QUANTLAB_RUNS"
MIRROR_VARIABLE = "QUANTLAB_MIRROR"
DEFAULT = "runs"

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("command", default=())
"""The arguments of the command line that is run now."""


def recorder_of(runs: str | None, no_run: bool, mirror: str | None) -> "Recorder":
    """Return the recorder that --runs, --no-run and --mirror ask for, or the environment where they are not given.

    Only the main process of several records.

    Raises:
        ConfigError: the options contradict each other, or the mirror is unknown or not installed.
    """
    from quantlab.runs.recording import Recorder, open_mirror

    if no_run and runs:
        raise ConfigError(f"--no-run turns recording off, --runs {runs} asks for it")
    wanted = "" if no_run else _wanted(runs)
    if mirror and not wanted:
        raise ConfigError(f"--mirror {mirror} sends what a recorded run says, and recording is off")
    if not wanted or os.environ.get("RANK", "0") != "0":
        return Recorder()
    tracker = mirror or os.environ.get(MIRROR_VARIABLE)
    return Recorder(
        folder=Path(wanted),
        is_required=runs is not None or RUNS_VARIABLE in os.environ,
        command=("quantlab", *(COMMAND.get() or sys.argv[1:])),
        environment=os.environ,
        mirror=open_mirror(tracker) if tracker else None,
    )


def folder_of_runs(runs: str | None) -> Path:
    """Return the folder that `quantlab runs` reads. ConfigError if the environment turned recording off and none is named."""
    wanted = _wanted(runs)
    if not wanted:
        raise ConfigError(f"{RUNS_VARIABLE} is empty: recording is off", hint="name a folder with --runs")
    return Path(wanted)


def _wanted(runs: str | None) -> str:
    return runs if runs is not None else os.environ.get(RUNS_VARIABLE, DEFAULT)
