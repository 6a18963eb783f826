"""Samples for tests: small reports, evaluations and entries of a comparison, made without a model."""

import math
from dataclasses import replace

from quantlab.evaluation.evaluation_record import Against, EvaluationData, EvaluationRecord, Probe
from quantlab.report.entry import Entry, FileFacts, TensorFacts
from quantlab.report.pack_report import PackReport, TensorReport

PROBES = (Probe(name="flip", passed=True, detail="0 of 64 predictions change with later tokens"),)
DATA = EvaluationData(
    tokens_sha256="5f" * 32,
    tokens=1000,
    bytes=2500,
    documents=3,
    mode="chunked",
    seq_len=100,
    stride=100,
    tokenizer_sha256="7a" * 32,
)


def tensor(name="blocks.0.attn.weight", size=1000, kl=2e-4, **more):
    """Return the report of a tensor of 64 x 32 weights."""
    facts = {"shape": (64, 32), "width_bits": 8, "bpw": 8 * size / 2048, "code_bytes": size - 100}
    facts |= {"setting": 1e-4, "codec": "rans"}
    return TensorReport(name=name, bytes=size, predicted_kl=kl, **facts | more)


TENSORS = (tensor(), tensor("blocks.1.attn.weight", 1500, 4e-4), tensor("tok_emb.weight", 2500, 9e-4))


def report(total=6000, budget=6100, tensors=TENSORS, sha256="ab" * 32, **more):
    """Return a report of the trellis method; all bytes but the codes are 1,300."""
    known = {
        "checkpoint": "model.pt",
        "artifact": "m.qlab",
        "method": "trellis",
        "options": {"widths": [5, 6, 8, 16], "states": 8},
        "predictor": "kronecker",
        "effort": {"states": 8, "tune_steps": 24},
        "tuned": {"kl_before": 0.0021, "kl_after": 0.0020, "accepted": True},
        "seed": 0,
        "code_bytes": 0,
        "n_params": 16384,
        "predicted_kl": sum(t.predicted_kl for t in tensors),
        "size_breakdown": {"codes": total - 1300, "scales": 600, "entropy_model": 100, "passthrough": 500, "framing": 100},
        "code_files": {},
        "calibration": {"kind": "self", "tokens": 2048, "fingerprint": "c0ffee"},
        "tensors_sha256": "12" * 32,
        "timings_s": {"total": 1.5},
        "producer": "quantlab 0.1.0",
    }
    sizes = {"artifact_bytes": total, "total_bytes": total, "budget_bytes": budget, "slack_bytes": budget - total}
    return PackReport(**known | sizes | {"bpw": 8 * total / 16384, "tensors": tensors, "artifact_sha256": sha256} | more)


def evaluation(kl=0.002, bpb=1.61, sha256="ab" * 32, data=DATA, **more):
    """Return the record of an evaluation beside a reference of 1.60 bits per byte."""
    against = Against(
        file="model.pt",
        fingerprint="0dd",
        val_bpb=1.60,
        val_loss=2.7,
        tokens=1000,
        bytes=2500,
        kl_mean=kl,
        kl_q99=10 * kl,
        top1_flips=0.03,
        loss_difference=0.02,
        loss_difference_low=0.01,
        loss_difference_high=0.03,
    )
    target = {"target": "m.qlab", "target_sha256": sha256, "target_bytes": 6000, "device": "cpu", "producer": "quantlab 0.1.0"}
    nats = bpb * math.log(2) * data.bytes
    score = {"data": data, "val_bpb": bpb, "val_loss": nats / data.tokens, "nats": nats}
    return EvaluationRecord(**target | score | {"probes": PROBES, "against": against} | more)


def facts(of):
    """Return the facts of the file that a report describes."""
    tensors = tuple(TensorFacts(name=t.name, shape=t.shape, width_bits=t.width_bits) for t in of.tensors)
    return FileFacts(
        sha256=of.artifact_sha256,
        bytes=of.artifact_bytes,
        size_breakdown=of.size_breakdown,
        n_params=of.n_params,
        tensors=tensors,
        method=of.method,
        checkpoint="0dd",
        about={"producer": of.producer, "model": {"num_layers": 2}},
    )


def entry(path="a.qlab", kl=0.002, bpb=1.61, data=DATA, **more):
    """Return a file with its report and its evaluation; `more` changes the report."""
    told = report(**more)
    return Entry(path=path, file=facts(told), report=told, evaluation=evaluation(kl, bpb, data=data))


def without(of, **parts):
    """Return an entry with parts replaced, most often by None."""
    return replace(of, **parts)


OTHER_CODES = {"t": [1] + [0] * 56 + [1] * 4 + [0] * 7 + [1] * 4 + [0] * 56 + [1]}
"""Ten codes, two of them beyond the limit."""
