"""The report of a packing as a table for a terminal."""

from dataclasses import replace

from report_samples import report, tensor

from quantlab.cli.display import show_whole
from quantlab.report.tables import render_report

TABLE = """\
tensor                shape  width  setting  codec  bytes    bpw  predicted KL
blocks.0.attn.weight  64x32      8   0.0001   rans  1,000  3.906      2.00e-04
blocks.1.attn.weight  64x32      8   0.0001   rans  1,500  5.859      4.00e-04
tok_emb.weight        64x32      8   0.0001   rans  2,500  9.766      9.00e-04

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
