"""Dry run: what a packing would give and take, from one rounding. Nothing is written."""

from dataclasses import replace

from quantlab.jobs.estimate import forecast_of, solving
from quantlab.jobs.pack import PackPlan
from quantlab.jobs.packer import too_small
from quantlab.models.loading import LoadedModel
from quantlab.progress import Progress, silent
from quantlab.report.estimates import DryRun
from quantlab.text.tokenizer import Tokenizer

SAMPLE_TOKENS = 8192
"""Most tokens that a forecast without statistics is measured on: an eighth of those of a packing."""


def dry_run(plan: PackPlan, loaded: LoadedModel, tokenizer: Tokenizer | None = None, *, progress: Progress = silent) -> DryRun:
    """Return the forecast of a packing whose options and outputs are checked.

    Raises:
        BudgetError: the budget is below the smallest reachable size, which it names.
        TimeLimitError: not even the least effort is forecast to keep the time limit.
        ConfigError, StatisticsError, CheckpointError, DataError: see `quantlab.pack`.
    """
    config, has_statistics = plan.config, plan.stats is not None
    effort = forecast_of(loaded, config, has_statistics=has_statistics)
    few = replace(config.calibration, tokens=max(min(config.calibration.tokens, SAMPLE_TOKENS), config.calibration.seq_len))
    sampled = replace(config, options=effort.options, calibration=config.calibration if has_statistics else few)
    with solving(loaded, sampled, plan.stats, tokenizer=tokenizer, progress=progress) as ready:
        smallest, goal = ready.solver.smallest_bytes(), config.budget_bytes - config.code_bytes
        if smallest > goal:
            raise too_small(smallest, config, has_tokenizer=ready.has_tokenizer)
        (point,) = ready.curve([goal])
    outputs = [plan.outputs.artifact, plan.outputs.report, *([plan.outputs.decoder] if plan.outputs.decoder else [])]
    return DryRun(
        outputs=tuple(map(str, outputs)),
        method=config.method,
        budget_bytes=config.budget_bytes,
        code_bytes=config.code_bytes,
        smallest_bytes=smallest,
        point=point,
        calibration_tokens=ready.statistics.tokens,
        packing_tokens=ready.statistics.tokens if has_statistics else config.calibration.tokens,
        stages_s=effort.forecast.stages_s,
        total_s=round(effort.forecast.total_s, 1),
        peak_memory_bytes=effort.forecast.peak_bytes,
    )
