"""quantlab packs a trained language model into a byte budget and proves the score it still has.

    import quantlab

    report = quantlab.pack("final_model.pt", budget="16MB", output="model.qlab")
    record = quantlab.evaluate("model.qlab", tokens="fineweb_val_*.bin", tokenizer="fineweb_1024_bpe.model")

Importing the package loads nothing else; each function is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlab.artifact.reader import open_artifact
    from quantlab.jobs.calibrate import calibrate
    from quantlab.jobs.compare import compare
    from quantlab.jobs.diff import diff
    from quantlab.jobs.estimate import estimate
    from quantlab.jobs.evaluate import evaluate
    from quantlab.jobs.merge import merge
    from quantlab.jobs.pack import pack
    from quantlab.jobs.publish import fetch, publish
    from quantlab.jobs.sample import sample
    from quantlab.jobs.unpack import unpack
    from quantlab.models.loading import load

__version__ = "0.1.0"
__all__ = [
    "calibrate",
    "compare",
    "diff",
    "estimate",
    "evaluate",
    "fetch",
    "load",
    "merge",
    "open_artifact",
    "pack",
    "publish",
    "sample",
    "unpack",
]

_HOMES = {
    "calibrate": "quantlab.jobs.calibrate",
    "compare": "quantlab.jobs.compare",
    "diff": "quantlab.jobs.diff",
    "estimate": "quantlab.jobs.estimate",
    "evaluate": "quantlab.jobs.evaluate",
    "fetch": "quantlab.jobs.publish",
    "load": "quantlab.models.loading",
    "merge": "quantlab.jobs.merge",
    "open_artifact": "quantlab.artifact.reader",
    "pack": "quantlab.jobs.pack",
    "publish": "quantlab.jobs.publish",
    "sample": "quantlab.jobs.sample",
    "unpack": "quantlab.jobs.unpack",
}


def __getattr__(name: str) -> Any:
    """Load a public function when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
