"""The report of a packing, out of the solution of its method."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.artifact.layout import TensorBytes
from quantlab.calib.statistics import Statistics
from quantlab.jobs.pack_config import PackConfig
from quantlab.methods.method import Point, Solution, find_method, options_dict
from quantlab.models.loading import LoadedModel
from quantlab.report.pack_report import PackReport, TensorReport


def packing_report(
    loaded: LoadedModel,
    config: PackConfig,
    forecast: dict[str, Any],
    stats: Statistics,
    solution: Solution,
    tensors_sha256: str,
    output: Path,
    timings_s: dict[str, float],
) -> PackReport:
    """Return the report of a packing whose file decodes to tensors with the digest `tensors_sha256`."""
    artifact_bytes, n_params = len(solution.data), sum(tensor.numel() for tensor in solution.tensors.values())
    total = artifact_bytes + config.code_bytes
    return PackReport(
        checkpoint=loaded.name,
        artifact=str(output),
        method=config.method,
        options=options_dict(config.options),
        predictor=find_method(config.method).predictor,
        effort=solution.effort,
        forecast=forecast,
        rounded_weights=solution.rounded_weights,
        tuned=solution.tuned,
        refined=tuple(solution.refined),
        seed=seed_of(stats, config),
        training_documents=loaded.provenance.training,
        budget_bytes=config.budget_bytes,
        artifact_bytes=artifact_bytes,
        code_bytes=config.code_bytes,
        total_bytes=total,
        slack_bytes=config.budget_bytes - total,
        n_params=n_params,
        bpw=8 * artifact_bytes / n_params,
        predicted_kl=sum(point.predicted_kl for point in solution.points.values()),
        size_breakdown=solution.layout.size_breakdown,
        code_files=config.code,
        calibration={**stats.source, "tokens": stats.tokens, "fingerprint": stats.fingerprint},
        tensors_sha256=tensors_sha256,
        timings_s={**timings_s, "total": round(sum(timings_s.values()), 3)},
        keep=config.keep,
        bits=config.bits,
        priors=tuple(name for name in stats.priors if name in solution.points),
        apart=tuple(name for name in stats.apart if name in solution.points),
        tensors=tuple(_tensor_report(size, solution) for size in solution.layout.tensors),
        passthrough=tuple({"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in solution.layout.passthrough),
        producer=f"quantlab {__version__}",
        artifact_sha256=hashlib.sha256(solution.data).hexdigest(),
    )


def _tensor_report(size: TensorBytes, solution: Solution) -> TensorReport:
    point = solution.points[size.name]
    total, coded, bpw = size.bytes, size.code_bytes, size.bpw
    assert total is not None and coded is not None and bpw is not None  # the writer knows all sizes
    return TensorReport(
        name=size.name,
        shape=size.shape,
        width_bits=size.width_bits,
        setting=point.setting,
        codec=size.codec,
        bytes=total,
        bpw=bpw,
        predicted_kl=point.predicted_kl,
        code_bytes=coded,
        points=_other_points(solution.measured.get(size.name, []), point, total - point.bytes),
    )


def _other_points(measured: Sequence[Point], chosen: Point, side_bytes: int) -> tuple[tuple[int, float], ...]:
    """Return what the search measured between half and twice the chosen bytes, but for what another point beats in both."""
    near = [p for p in measured if chosen.bytes / 2 < p.bytes < 2 * chosen.bytes and p != chosen]
    undominated: list[tuple[int, float]] = []
    for point in sorted(near, key=lambda p: (p.bytes, p.predicted_kl)):
        predicted_kl = float(f"{point.predicted_kl:.4g}")  # the report is read by people too
        if not undominated or predicted_kl < undominated[-1][1]:
            undominated.append((point.bytes + side_bytes, predicted_kl))
    return tuple(undominated)


def seed_of(stats: Statistics, config: PackConfig) -> int:
    """Return the seed of the calibration that was used, which statistics bring with them."""
    return int(stats.source.get("seed", config.calibration.seed))
