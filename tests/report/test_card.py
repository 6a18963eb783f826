"""Model cards."""

import json
from dataclasses import replace

import pytest
from report_samples import PROBES, entry, evaluation, report

from quantlab.evaluation.evaluation_record import Probe
from quantlab.report.card import render_card
from quantlab.report.layer_picture import Cell, layer_picture


def test_a_card_has_size_scores_packing_and_the_hash():
    card = render_card(entry())
    known = entry()
    assert card.startswith("---\nlibrary_name: quantlab\n") and card.count("---\n") == 2
    assert f"{known.artifact_bytes:,} bytes" in card and f"| total | {known.total_bytes:,} |" in card
    assert f"{known.evaluation.val_bpb:.4f} bits per byte" in card and "valid: yes" in card
    assert f"budget {known.report.budget_bytes:,} bytes" in card and known.file.sha256 in card


def test_names_of_files_are_neither_markdown_nor_yaml():
    hostile = report(checkpoint='x: "y"\n# evil `code` |', method="a`b\x1b[31m")
    card = render_card(replace(entry(), report=hostile, path="dir/a`b|c\n.qlab"))
    front = card.split("---\n")[1]
    (line,) = [line for line in front.splitlines() if line.startswith("base_model: ")]
    assert json.loads(line.removeprefix("base_model: ")) == 'x: "y"\\n# evil `code` |'
    assert "\x1b" not in card and "a'b/c\\n.qlab" in card


def test_a_card_shows_the_picture_beside_it_and_the_picture_is_one():
    assert "](<figures/a b.png>)" in render_card(entry(), "figures/a b.png") and "![" not in render_card(entry())
    pytest.importorskip("matplotlib")
    cells = [Cell(f"blocks.{n}.{role}.weight", 1000, 400 + 10 * n, 1e-4) for n in range(3) for role in ("attn.$q$", "mlp")]
    png = layer_picture([*cells, Cell("tok_emb.weight", 1000, 800, 2e-4)], "a $b$ \x1b[31m")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png == layer_picture(
        [*cells, Cell("tok_emb.weight", 1000, 800, 2e-4)], "a $b$ \x1b[31m"
    )


def test_what_was_not_measured_is_not_claimed():
    card = render_card(replace(entry(), evaluation=None))
    assert "Not evaluated" in card and "bits per byte" not in card
    unknown = Probe(name="training overlap", passed=None, detail="nobody `knows`")
    card = render_card(replace(entry(), evaluation=replace(evaluation(), probes=(*PROBES, unknown))))
    assert "- valid: yes\n- not checked: `training overlap: nobody 'knows'`\n" in card
    card = render_card(replace(entry(), evaluation=replace(evaluation(), probes=())))
    assert "valid: no: `the predictions were not probed`" in card
