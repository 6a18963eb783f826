"""The report of a packing as a table for a terminal."""

import io
from dataclasses import replace

from report_samples import report, tensor
from rich.console import Console

from quantlab.cli.display import show_whole
from quantlab.report.tables import render_report

TABLE = """\
tensor                shape  bytes    bpw  predicted KL
blocks.0.attn.weight  64x32  1,000  3.906      2.00e-04
blocks.1.attn.weight  64x32  1,500  5.859      4.00e-04
tok_emb.weight        64x32  2,500  9.766      9.00e-04
all tensors: setting 0.0001, codec rans

bytes: codes 4,700, scales 600, entropy model 100, passthrough 500, framing 100, code 0, slack 100
total 6,000 of 6,100 bytes (98.36 %), 2.930 bits per weight over 16,384 parameters
quantized 37.50 % of the weights; 0 tensors are unquantized
predicted KL 0.00150 nats per token (trellis); decoded again by a fresh process: equal
tuning: KL on held-out calibration text 0.00210 to 0.00200 nats per token, accepted
terms: see the glossary (docs/glossary.md)
"""


def shown(value, capsys):
    show_whole(render_report(value))
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


def test_the_table_of_a_packing(capsys):
    assert shown(report(), capsys) == TABLE


def test_the_table_says_how_often_the_weights_were_rounded(capsys):
    text = shown(replace(report(), rounded_weights=43_000), capsys)
    assert "\nrounded 43,000 weights in all, 7.0 times those there are\n" in text


def test_tuned_values_that_were_not_accepted_are_named(capsys):
    tuned = {"kl_before": 0.002, "kl_after": 0.003, "accepted": False}
    assert "0.00200 to 0.00300 nats per token, not accepted\n" in shown(replace(report(), tuned=tuned), capsys)
    assert "tuning" not in shown(replace(report(), tuned={}), capsys)
    assert "2.00e-04" in shown(report(tensors=(tensor(),)), capsys)


def test_columns_that_differ_are_shown(capsys):
    tensors = (tensor(), tensor("tok_emb.weight", 2500, 9e-4, setting=0.5))
    head = shown(report(tensors=tensors), capsys).splitlines()[0]
    assert head.split() == ["tensor", "shape", "setting", "bytes", "bpw", "predicted", "KL"]


def test_names_are_folded_in_a_narrow_terminal_and_nothing_is_cut():
    text = io.StringIO()
    long = tensor("model.layers.11.self_attn.q_proj.weight")
    Console(file=text, width=60).print(render_report(report(tensors=(long,))))
    rows = text.getvalue().split("all tensors")[0].splitlines()
    assert (
        max(map(len, rows)) <= 60 and "".join(row[:25].strip() for row in rows[1:]) == "model.layers.11.self_attn.q_proj.weight"
    )
    assert "…" not in text.getvalue()
