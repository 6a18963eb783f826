"""quantlab packs a trained language model into a byte budget and proves the score it still has."""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():  # source checkout: kernels/, trainer/, calib/ sit one level up
    __path__.append(str(_here.parent))
