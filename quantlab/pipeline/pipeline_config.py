"""The tables of a pipeline file: what each stage is told. Paths in them are resolved already."""

from dataclasses import asdict, dataclass, field

from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.errors import ConfigError
from quantlab.evaluation.windows import as_mode
from quantlab.jobs.pack import TUNE_STEPS, PackConfig
from quantlab.jobs.train import DataConfig
from quantlab.methods.trellis.rounder import RoundingOptions
from quantlab.text.prepare import PrepareConfig
from quantlab.trainer.train_config import TrainConfig

STAGES = ("data", "train", "calibrate", "pack", "evaluate", "report")
"""In the order in which they run."""
TRAINING_TOKENS = "train"
"""Of [calibrate]: the training tokens of the stage data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """[data]: where the training text, the validation text and the tokenizer come from."""

    train: str = ""
    """`stdlib`, `text:FILE` or `tokens:GLOB`."""
    val: str = ""
    """`text:FILE` or `tokens:GLOB`; empty for none, or with `stdlib` for its own held-out documents."""
    tokenizer: str = ""
    """SentencePiece .model file; empty with `stdlib` to train one."""
    sources: tuple[str, ...] = ()
    """Instead of `train` and `val`: text files that `quantlab data prepare` cuts into both splits."""
    val_docs: int = 50_000
    """Of `sources`: the first documents are the validation split."""
    workers: int = 1
    """Of `sources`: processes that tokenize; the result does not depend on it."""

    def __post_init__(self) -> None:
        if self.sources and (self.train or self.val):
            raise ConfigError(f"give data.sources or data.train and data.val, not both: {self.train or self.val}")
        if self.sources and not self.tokenizer:
            raise ConfigError("data.sources needs data.tokenizer, a SentencePiece .model file")
        if self.sources:
            self.preparation()
        else:
            self.config()

    def config(self) -> DataConfig:
        """What `quantlab train` would be told."""
        return DataConfig(train=self.train or "stdlib", val=self.val, tokenizer=self.tokenizer)

    def preparation(self) -> PrepareConfig:
        """What `quantlab data prepare` would be told."""
        return PrepareConfig(name="text", val_docs=self.val_docs, workers=self.workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """[train]: every key of a training file, on top of a preset or a file."""

    config: TrainConfig
    """All that decides the run."""
    processes: int = 1
    """Above 1: that many, started as torchrun does, one on each GPU."""

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 1024:
            raise ConfigError(f"train.processes must be 1 to 1024, got {self.processes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateOptions(CalibrationConfig):
    """[calibrate]: which tokens statistics are measured on; also `train`, the training tokens of the stage data."""

    def __post_init__(self) -> None:
        self.config("random" if self.source == TRAINING_TOKENS else self.source)

    def config(self, source: str) -> CalibrationConfig:
        """What `quantlab calibrate` would be told, with the source filled in."""
        return CalibrationConfig(**asdict(self) | {"source": source})


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """[pack]: the budget, and how to meet it."""

    budget: str
    """16000000, "16MB" (10^6) or "16MiB" (2^20)."""
    checkpoint: str = ""
    """Where there is no [train]: what to pack."""
    model: str = ""
    """Of `checkpoint`: path/to/file.py:factory for an architecture of its own. This runs that file."""
    tokenizer: str = ""
    """Of `checkpoint`: SentencePiece .model file."""
    stats: str = ""
    """Of `checkpoint`: statistics of an earlier `quantlab calibrate`, instead of the stage calibrate."""
    method: str = "trellis"
    """trellis, gptq or rtn."""
    states: int = 8
    """Of the trellis: 1, 4, 8, 16 or 32."""
    tune: bool = True
    """After rounding, tune norms, gains and scales by KL to the float model."""
    time_limit: float | None = None
    """Seconds for rounding and tuning; what fits depends on the machine, and so do the bytes."""
    widths: tuple[int, ...] | None = None
    """Code widths in bits that a tensor may take."""
    code: tuple[str, ...] = ()
    """Code files that count towards the budget."""
    emit_decoder: bool = False
    """Write decoder.py beside the artifact and count it towards the budget."""

    def __post_init__(self) -> None:
        if self.emit_decoder and self.method != "trellis":
            raise ConfigError(f"pack.emit_decoder is for method trellis, got {self.method}")
        if not self.checkpoint:
            for name in ("model", "tokenizer", "stats"):
                if getattr(self, name):
                    raise ConfigError(f"pack.{name} belongs to pack.checkpoint, which is not given")
        self.config({}, CalibrationConfig())

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.budget)

    def config(self, code: dict[str, int], calibration: CalibrationConfig) -> PackConfig:
        """What `quantlab pack` would be told; `code`: bytes of each counted file."""
        return PackConfig(
            budget_bytes=self.budget_bytes,
            method=self.method,  # type: ignore[arg-type]  # PackConfig checks it
            widths=None if self.widths is None else tuple(sorted(set(self.widths))),
            rounding=RoundingOptions(states=self.states),
            tune_steps=TUNE_STEPS if self.tune else 0,
            time_limit_s=self.time_limit,
            code=code,
            calibration=calibration,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """[evaluate]: the text that scores the artifact against the float checkpoint."""

    text: str = ""
    """Plain text, or .jsonl with a text field; also .zst of either."""
    tokens: str = ""
    """Token shards. Without this and `text`: the validation split of the stage data."""
    tokenizer: str = ""
    """SentencePiece .model file, where it is not that of data or pack."""
    seq_len: int | None = None
    """Tokens of context at most; that of training, or 1024 where there is none."""
    mode: str = "chunked"
    """chunked, sliding or document."""
    stride: int | None = None
    """Of sliding and document, 1 to seq_len; 64 if not given."""
    packed: bool | None = None
    """Whether weights stay packed in memory; if not given, on a GPU."""
    processes: int = 1
    """Above 1: that many, started as torchrun does, one on each GPU."""

    def __post_init__(self) -> None:
        if self.text and self.tokens:
            raise ConfigError(f"give evaluate.text or evaluate.tokens, not both: {self.text} and {self.tokens}")
        if not 1 <= self.processes <= 1024:
            raise ConfigError(f"evaluate.processes must be 1 to 1024, got {self.processes}")
        as_mode(self.mode)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """[report]: what is written for people."""

    html: bool = True
    """A page of one file: where the bytes lie, what they cost, what the model scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockOptions:
    """[clock]: wall-clock seconds that the stages may take."""

    max_seconds: float = 0.0
    """At most so many inside; 0 sets no limit."""
    inside: tuple[str, ...] = ("train", "calibrate", "pack")
    """Stages that count. Of training, compiling, validation and checkpoints are outside."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_seconds < float("inf"):
            raise ConfigError(f"clock.max_seconds must be at least 0 and finite, got {self.max_seconds}")
        for name in self.inside:
            if name not in STAGES:
                raise ConfigError(f"clock.inside must be among {', '.join(STAGES)}, got {name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """One pipeline, or one cell of a matrix."""

    pack: PackOptions
    """The main job; the only table that must be there."""
    train: TrainOptions | None = None
    """None: pack.checkpoint is given."""
    data: DataOptions | None = None
    """Of training; None without it."""
    calibrate: CalibrateOptions = field(default_factory=CalibrateOptions)
    """Not used with pack.stats."""
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """Not used where there is no text to score."""
    report: ReportOptions = field(default_factory=ReportOptions)
    """What is written for people."""
    clock: ClockOptions = field(default_factory=ClockOptions)
    """Seconds that the stages may take."""

    def __post_init__(self) -> None:
        if self.train is not None and self.pack.checkpoint:
            raise ConfigError(f"give [train] or pack.checkpoint, not both: {self.pack.checkpoint}")
        if self.train is None and not self.pack.checkpoint:
            raise ConfigError("nothing to pack: give [train], or pack.checkpoint")
        if self.train is None and self.calibrate.source == TRAINING_TOKENS:
            raise ConfigError("calibrate.source train needs [train]")
        if self.is_scored and self.train is None and not (self.evaluate.tokenizer or self.pack.tokenizer):
            raise ConfigError("evaluate needs evaluate.tokenizer or pack.tokenizer, a SentencePiece .model file")

    @property
    def is_scored(self) -> bool:
        """Whether there is text to score."""
        return bool(self.evaluate.text or self.evaluate.tokens or self._has_validation)

    @property
    def _has_validation(self) -> bool:
        data = self.data
        if data is None:
            return False
        return bool(data.val) or (data.val_docs > 0 if data.sources else data.train in ("", "stdlib"))
