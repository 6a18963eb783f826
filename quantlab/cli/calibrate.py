"""quantlab calibrate"""

from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, print_json


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pt, .pth, .safetensors, or a folder of shards.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STATS", help="The .safetensors file to write.")],
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure calibration statistics once; quantlab pack --stats uses them for any number of budgets.

    Example: quantlab calibrate final_model.pt -o final_model.stats.safetensors
    """
    from quantlab.calib.sources import CalibrationConfig
    from quantlab.calib.statistics import write_statistics
    from quantlab.files import refuse_existing
    from quantlab.pipeline.calibrate import measure_statistics
    from quantlab.pipeline.models import load_checkpoint, load_tokenizer

    refuse_existing([output], force=force)
    config = CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed)
    loaded = load_checkpoint(checkpoint, model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    with ProgressDisplay() as progress:
        stats = measure_statistics(loaded, config, known, progress)
    write_statistics(output, stats)
    if as_json:
        about = {"tokens": stats.tokens, "tensors": stats.matrices, "fingerprint": stats.fingerprint, **stats.source}
        print_json({"statistics": str(output), **about, "row_agreement": stats.row_agreement})
    else:
        print(f"wrote {output}: {stats.matrices} tensors measured on {stats.tokens:,} tokens ({config.source})")
        if stats.row_agreement:
            name, low = min(stats.row_agreement.items(), key=lambda item: item[1])
            middle = median(stats.row_agreement.values())
            print(
                f"row sensitivities of two halves of the sample correlate by {middle:.3f} (median), {low:.3f} at worst ({name})"
            )
