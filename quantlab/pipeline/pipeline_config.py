"""The tables of a pipeline file as configs, one for each stage; the paths in them are resolved."""

from dataclasses import asdict, dataclass, field

from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.errors import ConfigError
from quantlab.evaluation.windows import as_mode
from quantlab.jobs.pack_config import PackConfig
from quantlab.jobs.train_file import DataConfig
from quantlab.methods.method import MethodOptions, find_method, method_options
from quantlab.text.prepare import PrepareConfig
from quantlab.trainer.train_config import TrainConfig

STAGES = ("data", "train", "calibrate", "pack", "evaluate", "report")
"""Names of all stages, in the order in which they run."""
TRAINING_TOKENS = "train"
"""Source of [calibrate] that stands for the training tokens of the stage data."""


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
    """Text files that `quantlab data prepare` would cut into both splits; they take the place of `train` and `val`."""
    val_docs: int = 50_000
    """With `sources`: number of documents, the first ones, that are the validation split."""
    workers: int = 1
    """With `sources`: number of processes that tokenize; the result does not depend on it."""

    def __post_init__(self) -> None:
        if self.sources and (self.train or self.val):
            raise ConfigError(f"give data.sources or data.train and data.val, not both: {self.train or self.val}")
        if self.sources and not self.tokenizer:
            raise ConfigError("data.sources needs data.tokenizer, a SentencePiece .model file")
        if self.sources:
            self.preparation()
        else:
            self.config()

    @property
    def has_validation(self) -> bool:
        """Whether there is text that is not trained on."""
        return self.val_docs > 0 if self.sources else bool(self.val) or self.config().train == "stdlib"

    def config(self) -> DataConfig:
        """Return the data config of `quantlab train`."""
        return DataConfig(train=self.train or "stdlib", val=self.val, tokenizer=self.tokenizer)

    def preparation(self) -> PrepareConfig:
        """Return the config of `quantlab data prepare`."""
        return PrepareConfig(name="text", val_docs=self.val_docs, workers=self.workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """[train]: every key of a training file, over those of a preset or a file."""

    config: TrainConfig
    """Everything that decides the training, apart from its data."""
    processes: int = 1
    """Number of processes, one on each GPU; above 1 torch.distributed.run starts them."""

    def __post_init__(self) -> None:
        _check_processes("train", self.processes)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateOptions(CalibrationConfig):
    """[calibrate]: the tokens that statistics are measured on; the source may also be `train`, the training tokens."""

    keep: tuple[str, ...] = ()
    """Patterns of names of tensors that are not measured; pack.keep needs the same where they cannot be."""

    def __post_init__(self) -> None:
        self.config("random" if self.source == TRAINING_TOKENS else self.source)

    def config(self, source: str) -> CalibrationConfig:
        """Return the config of `quantlab calibrate` with this source."""
        values = {key: value for key, value in asdict(self).items() if key != "keep"}
        return CalibrationConfig(**values | {"source": source})


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """[pack]: the budget, the model, and the method with its options."""

    budget: str
    """Bytes as a user writes them: 16000000, "16MB" (10^6) or "16MiB" (2^20)."""
    checkpoint: str = ""
    """Checkpoint to pack where there is no [train]."""
    model: str = ""
    """With `checkpoint`: path/to/file.py:factory of an architecture of its own. This runs that file."""
    tokenizer: str = ""
    """With `checkpoint`: its SentencePiece .model file."""
    stats: str = ""
    """With `checkpoint`: statistics of an earlier `quantlab calibrate`, in place of the stage calibrate."""
    method: str = "trellis"
    """Name of a method."""
    options: MethodOptions = field(default_factory=lambda: method_options("trellis", {}))
    """Options of the method; in the file they are keys of the table itself."""
    keep: tuple[str, ...] = ()
    """Patterns of names of tensors that are stored unquantized."""
    bits: dict[str, int] = field(default_factory=dict)
    """Most bits that the codes of tensors may have, by pattern of their names: a table, as {"*.mlp.*" = 4}."""
    code: tuple[str, ...] = ()
    """Code files that count towards the budget."""
    emit_decoder: bool = False
    """Whether decoder.py is written beside the artifact and counted towards the budget."""

    def __post_init__(self) -> None:
        method = find_method(self.method)
        if self.emit_decoder and not method.has_decoder:
            raise ConfigError(f"pack.emit_decoder is not for artifacts of method {self.method}")
        if not self.checkpoint:
            for name in ("model", "tokenizer", "stats"):
                if getattr(self, name):
                    raise ConfigError(f"pack.{name} belongs to pack.checkpoint, which is not given")
        parse_bytes(self.budget)

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.budget)

    def config(self, code: dict[str, int], *, seed: int) -> PackConfig:
        """Return the config of the packing.

        Args:
            code: bytes of each counted file, by path.
            seed: seed of the calibration, which artifact and report record.
        """
        calibration = CalibrationConfig(seed=seed)
        return PackConfig(
            budget_bytes=self.budget_bytes,
            method=self.method,
            options=self.options,
            keep=self.keep,
            bits=self.bits,
            code=code,
            calibration=calibration,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """[evaluate]: the text that scores the artifact and the float model."""

    text: str = ""
    """Plain text, or .jsonl with a text field; also .zst of either."""
    tokens: str = ""
    """Glob pattern of token shards. Without it and `text`: the validation split of the stage data."""
    tokenizer: str = ""
    """SentencePiece .model file, where it is not that of data or pack."""
    seq_len: int | None = None
    """Largest number of tokens of context; None for that of training, or 1024 without training."""
    mode: str = "chunked"
    """chunked, sliding or document."""
    stride: int | None = None
    """With sliding and document: tokens between windows, 1 to seq_len; 64 if None."""
    packed: bool | None = None
    """Whether weights stay packed in memory; if None, on a GPU."""
    processes: int = 1
    """Number of processes, one on each GPU; above 1 torch.distributed.run starts them."""

    def __post_init__(self) -> None:
        if self.text and self.tokens:
            raise ConfigError(f"give evaluate.text or evaluate.tokens, not both: {self.text} and {self.tokens}")
        _check_processes("evaluate", self.processes)
        as_mode(self.mode)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """[report]: the reports that people read."""

    html: bool = True
    """Whether a page for a browser is written: where the bytes lie, what they cost, what the model scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockOptions:
    """[clock]: wall-clock seconds that the stages may take."""

    max_seconds: float = 0.0
    """Largest sum of the seconds that count; 0 sets no limit."""
    inside: tuple[str, ...] = ("train", "calibrate", "pack")
    """Stages whose seconds count; of training, those of compiling, validation and checkpoints do not."""

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
    """The only table that must be there."""
    train: TrainOptions | None = None
    """None where pack.checkpoint is given."""
    data: DataOptions | None = None
    """Data of training; None without training."""
    calibrate: CalibrateOptions = field(default_factory=CalibrateOptions)
    """Not used with pack.stats."""
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """Not used where there is no text to score."""
    report: ReportOptions = field(default_factory=ReportOptions)
    clock: ClockOptions = field(default_factory=ClockOptions)

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
        return bool(self.evaluate.text or self.evaluate.tokens or (self.data and self.data.has_validation))


def _check_processes(stage: str, processes: int) -> None:
    if not 1 <= processes <= 1024:
        raise ConfigError(f"{stage}.processes must be 1 to 1024, got {processes}")
