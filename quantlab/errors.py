"""The errors that quantlab raises on purpose: each is one line that names the thing, its value and what is allowed."""


def first_line(error: BaseException) -> str:
    """Return an error of another library as one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is exhausted; torch says so by RuntimeErrors."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def why_not(error: ValueError | RecursionError) -> str:
    """Return on one line why JSON or TOML cannot be read, without Python's advice on how to allow longer numbers."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return "it has a number of more than 4,300 digits" if "int_max_str" in str(error) else " ".join(str(error).split())


class QuantlabError(Exception):
    """Base of all quantlab errors; the command line returns `exit_code` and prints `hint` below the error."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(QuantlabError):
    """An option or a configuration file is wrong."""

    exit_code = 2


class ShapeError(QuantlabError):
    """A tensor has a shape or dtype that does not fit its use."""


class CheckpointError(QuantlabError):
    """A checkpoint is missing or damaged, has values that are not finite, or fits no model."""


class DataError(QuantlabError):
    """Text, token shards or a tokenizer are missing or damaged, or do not belong together."""


class StatisticsError(QuantlabError):
    """Calibration statistics are zero, not finite or damaged, or belong to another model."""


class TrainingError(QuantlabError):
    """Training cannot go on: a loss is not finite, or a checkpoint does not fit."""


class FormatError(QuantlabError):
    """An artifact is damaged, truncated, hostile or of an unknown version."""


class ExpansionError(FormatError):
    """A file decodes to more than a file of its size may; `least_bytes` is the smallest size at which it may."""

    def __init__(self, message: str, *, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class ReportError(QuantlabError):
    """A report or an evaluation record is missing, damaged, or belongs to another file."""


class StageError(QuantlabError):
    """The folder of a pipeline stage is damaged."""


class BudgetError(QuantlabError):
    """The byte budget cannot be met; `smallest_bytes` is the smallest total that can be met, where it is known."""

    exit_code = 3

    def __init__(self, message: str, *, smallest_bytes: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.smallest_bytes = smallest_bytes


class TimeLimitError(BudgetError):
    """The time limit cannot be met, whatever the bytes."""
