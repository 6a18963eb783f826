"""What decides a packing besides the model: budget, method, counted code, calibration."""

from dataclasses import dataclass, field, replace

from quantlab.calib.sources import CalibrationConfig
from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs.devices import find_device
from quantlab.methods.method import MethodOptions, find_method, method_options


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Options of one packing."""

    budget_bytes: int
    """Artifact and counted code together may not exceed it."""
    method: str = "trellis"
    """Name of a folder's method in quantlab.methods."""
    options: MethodOptions = field(default_factory=lambda: method_options("trellis", {}))
    """Options of the method."""
    code: dict[str, int] = field(default_factory=dict)
    """Bytes of each counted code file, by path."""
    keep: tuple[str, ...] = ()
    """Patterns of names of tensors that are stored unquantized."""
    bits: dict[str, int] = field(default_factory=dict)
    """Most bits that the codes of tensors may have, by pattern of their names; of several that match, the last counts."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Calibration tokens, unless statistics are given."""
    device: str | None = None
    """cpu or cuda: where the model samples, is measured and tuned; None for a GPU where there is one."""
    with_tokenizer: bool | None = None
    """Whether the artifact carries the tokenizer, counted in its bytes; None for models of transformers alone."""

    def __post_init__(self) -> None:
        if type(self.options) is not find_method(self.method).options:
            raise ConfigError(f"options of method {self.method} are needed, got {type(self.options).__name__}")
        self.options.check(self.method)
        for pattern, bits in self.bits.items():
            self._check_bits(pattern, bits)
        if self.budget_bytes < 1:
            raise ConfigError(f"budget must be at least 1 byte, got {self.budget_bytes}")
        if self.code_bytes >= self.budget_bytes:
            raise BudgetError(f"the code files take {self.code_bytes} bytes, the budget is {self.budget_bytes}")
        find_device(self.device)

    def _check_bits(self, pattern: str, bits: int) -> None:
        """Raise ConfigError unless the method can store codes of so many bits."""
        try:
            replace(self.options, widths=(bits,)).check(self.method)
        except ConfigError as error:
            raise ConfigError(f"bits {pattern}={bits}: {error}") from error

    @property
    def code_bytes(self) -> int:
        """Bytes of all counted code files."""
        return sum(self.code.values())
