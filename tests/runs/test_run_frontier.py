"""The best run and the lower envelope: never across evaluation data, never with a run that is not valid."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import data, file_of, packed, record, score, scored, write

from quantlab.errors import BudgetError, ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import Against
from quantlab.runs.frontier import best_of, by_data, candidates, data_id, lower_envelope, one_group
from quantlab.runs.frontier_picture import draw_frontier, draw_history, short_bytes
from quantlab.runs.frontier_view import frontier_of, recognised_names
from quantlab.runs.history import history_of
from quantlab.runs.run_figures import frontier_figure
from quantlab.runs.runs_page import note_of, picture_page
from quantlab.runs.store import read_store

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20).map(lambda n: n / 8)), max_size=30)


@settings(deadline=None)  # a busy machine is no finding
@given(POINTS)
def test_the_envelope_has_the_undominated_points(points):
    envelope = lower_envelope(points)
    for (size, bpb), (next_size, next_bpb) in pairwise(points[i] for i in envelope):
        assert size < next_size and bpb > next_bpb
    for size, bpb in points:
        reached = min(points[i][1] for i in envelope if points[i][0] <= size)
        assert reached <= bpb
    assert bool(envelope) == bool(points)


@settings(deadline=None)
@given(POINTS, st.randoms())
def test_the_envelope_does_not_depend_on_the_order(points, random):
    shuffled = random.sample(points, len(points))
    assert [points[i] for i in lower_envelope(points)] == [shuffled[i] for i in lower_envelope(shuffled)]


def found_in(folder, *records):
    write(folder, *records)
    return candidates(read_store(folder).runs)


def test_the_best_is_the_lowest_score_on_the_same_data(tmp_path):
    found = found_in(
        tmp_path,
        packed(1, "a"),
        packed(2, "b", size=950),
        packed(3, "c"),
        scored(4, "a", 1.5),
        scored(5, "b", 1.4),
        scored(6, "c", 1.1, data(10)),
    )
    assert [(c.artifact, c.bpb, among) for c, among in best_of(found, None)] == [("b.qlab", 1.4, 2), ("c.qlab", 1.1, 1)]
    assert sorted((c.artifact, among) for c, among in best_of(found, 940)) == [("a.qlab", 1), ("c.qlab", 1)]
    with pytest.raises(BudgetError, match="no valid run fits 100 bytes, the smallest has 900") as error:
        best_of(found, 100)
    assert error.value.smallest_bytes == 900


@pytest.mark.parametrize("field", ["tokens_sha256", "mode", "seq_len", "stride", "tokenizer_sha256", "bytes", "documents"])
def test_data_differ_in_any_field(field):
    other = data(**{field: 32 if field in ("seq_len", "stride", "bytes", "documents") else "other"})
    assert data_id(other) != data_id(data()) and re.fullmatch("[0-9a-f]{8}", data_id(other))


def test_what_does_not_count_is_a_candidate_with_its_problem(tmp_path):
    found = found_in(
        tmp_path,
        packed(1, "over", size=1200),
        scored(2, "over", 1.0),
        scored(3, "nobody", 1.1),
        scored(4, "x", 1.2, evaluations=(score("y", 1.2),)),
        record(5, "train", evaluations=(score("w", 1.3),)),
    )
    expected = {"over.qlab": "200 bytes over", "nobody.qlab": "no packing", "y.qlab": "of another file"}
    assert {c.artifact for c in found} == set(expected)
    assert all(expected[c.artifact] in c.problems[0] for c in found)
    with pytest.raises(QuantlabError, match="no valid run has a score"):
        best_of(found, None)


def test_two_packings_of_the_same_bytes_differ_in_their_code(tmp_path):
    found = found_in(tmp_path, packed(1, "a", code=10), packed(2, "a", code=20), scored(3, "a", 1.5), scored(4, "a", 1.5))
    assert sorted(c.total_bytes for c in found) == [910, 920]


def test_one_group_must_be_chosen_where_there_are_several(tmp_path):
    groups = by_data(found_in(tmp_path, packed(1, "a"), scored(2, "a", 1.5), scored(3, "a", 1.6, data(2000))))
    first, second = (data_id(d) for d in groups)
    with pytest.raises(ConfigError, match=rf"scores on 2 evaluation data cannot be mixed: {first} \(1\), {second} \(1\)"):
        one_group(groups, None)
    assert data_id(one_group(groups, second[:6])[0]) == second
    with pytest.raises(ConfigError, match="--data must name one of"):
        one_group(groups, "zz")
    with pytest.raises(QuantlabError, match="no run has the score of a packed model"):
        one_group({}, None)


def frontier(tmp_path, budget=None):
    found = found_in(
        tmp_path,
        *(packed(i, f"m{i}", size=100 * i, budget=1000) for i in range(1, 5)),
        *(scored(10 + i, f"m{i}", 2 - i / 4 if i != 3 else 2.5, size=100 * i) for i in range(1, 5)),
        packed(20, "over", size=1200),
        scored(21, "over", 0.9, size=1200),
    )
    return frontier_of(data(), found, budget)


def artifacts(marks):
    return [mark.candidate.artifact for mark in marks]


def test_invalid_runs_are_drawn_and_reach_no_envelope(tmp_path):
    found = frontier(tmp_path)
    assert artifacts(found.envelope) == ["m1.qlab", "m2.qlab", "m4.qlab"]
    assert artifacts(found.invalid) == ["over.qlab"] and found.budgets == (1000,)
    low, high = found.x_range
    assert low < 100 and high > 1200


def test_a_budget_of_the_users_own_makes_larger_files_invalid(tmp_path):
    found = frontier(tmp_path, 250)
    assert set(artifacts(found.invalid)) == {"over.qlab", "m3.qlab", "m4.qlab"} and found.budgets == (250,)


def against(kl, gap, float_bpb=1.0):
    """Return a comparison whose gap in bits per byte has an interval of 0.01 to both sides."""
    per_bpb = math.log(2) * 2400 / 1000
    loss = {f"loss_difference{end}": (gap + by) * per_bpb for end, by in (("", 0.0), ("_low", -0.01), ("_high", 0.01))}
    more = {"val_bpb": float_bpb, "val_loss": 2.0, "tokens": 1000, "bytes": 2400}
    return Against(file="m.pt", fingerprint="f", kl_mean=kl, kl_q99=9 * kl, top1_flips=0.1, **more, **loss)


def scores(tmp_path):
    """Return the candidates of three good files, a valid one that is far off, and one that is far too large."""
    found = []
    for number, (stem, size, bpb, method) in enumerate(
        [("demo/model", 500, 1.10, "trellis"), ("b", 800, 1.05, "trellis"), ("c", 900, 1.20, "gptq"), ("bad", 700, 2.78, "rtn")]
    ):
        one = packed(number, stem, size=size)
        found.append(replace(one, packing=replace(one.packing, method=method)))
        evaluation = replace(score(stem, bpb, size=size), against=against(0.1 * (bpb - 1), bpb - 1))
        found.append(scored(20 + number, stem, bpb, size=size, evaluations=(evaluation,)))
    return found_in(tmp_path, *found, packed(10, "huge", size=9000), scored(30, "huge", 1.01, size=9000))


def test_the_axes_are_those_of_the_envelope_and_others_are_arrows_at_their_edge(tmp_path):
    found = frontier_of(data(), scores(tmp_path), None)
    at = {mark.candidate.artifact: mark for mark in found.marks}
    assert found.float_score == 1.0 and found.methods[0] == "trellis"
    assert found.y_range[0] < 1.0 and 1.1 < found.y_range[1] < 1.3 and found.x_range[1] < 1200
    assert artifacts([m for m in found.marks if found.is_outside(m)]) == ["c.qlab", "bad.qlab", "huge.qlab"]
    assert found.place(at["bad.qlab"]) == (700, found.y_range[1]) and found.place(at["huge.qlab"])[0] == found.x_range[1]
    assert (at["b.qlab"].low, at["b.qlab"].high) == (pytest.approx(1.04), pytest.approx(1.06))
    figure = frontier_figure(found, "f")
    symbols = {trace["name"]: trace["marker"]["symbol"] for trace in figure.data[1:]}
    assert symbols == {
        "trellis": ["circle", "circle"],
        "trellis, not valid": ["triangle-right-open"],
        "gptq": ["triangle-up"],
        "rtn": ["triangle-up"],
    }
    assert len({str(trace["marker"]["color"]) for trace in figure.data[1:]}) == 3
    assert [note["text"] for note in figure.layout["annotations"]] == ["budget 1 kB", "float model", "demo/model", "b"]


@pytest.mark.parametrize(("measure", "best", "float_score"), [("gap", [0.1, 0.05], 0.0), ("kl", [0.01, 0.005], None)])
def test_the_axis_may_be_the_gap_or_kl(tmp_path, measure, best, float_score):
    found = frontier_of(data(), scores(tmp_path), None, measure)
    assert [mark.y for mark in found.envelope] == pytest.approx(best) and found.float_score == float_score
    assert found.without == 1 and "1 scores have no value of this measure" in note_of(found)
    pytest.importorskip("matplotlib")
    assert draw_frontier(found)[:4] == b"\x89PNG"


def test_a_measure_that_is_none_or_that_no_run_has_is_refused(tmp_path):
    found = scores(tmp_path)
    with pytest.raises(ConfigError, match="y must be one of bpb, gap, kl, got 'loss'"):
        frontier_of(data(), found, None, "loss")
    with pytest.raises(QuantlabError, match="no run has a kl on this data"):
        frontier_of(data(), [c for c in found if not c.evaluation.against], None, "kl")


def test_names_are_those_that_people_recognise(tmp_path):
    found = found_in(
        tmp_path, *(packed(n, stem) for n, stem in enumerate(["a/model", "b/x", "c/x"])), scored(9, "a/model", 1.0)
    )
    same = [
        replace(found[0], artifact=path, run=f"run-{n:08x}") for n, path in enumerate(["a/model.qlab", "b/x.qlab", "c/x.qlab"])
    ]
    assert recognised_names(same) == ["a/model", "x 00000001", "x 00000002"]


def test_history_keeps_the_best_valid_score_and_every_size(tmp_path):
    found = history_of(scores(tmp_path), None)
    assert [m.name for m in found.moments] == ["demo/model", "b", "c", "bad", "huge"] and found.budgets == (1000,)
    assert [m.name for m in found.steps] == ["demo/model", "b"]  # the large one is better and not valid
    assert [m.name for m in history_of(scores(tmp_path / "again"), 600).steps] == ["demo/model"]
    lost = [replace(c, started="yesterday") for c in scores(tmp_path / "lost")]
    assert history_of(lost, None).moments == ()


def test_pictures_are_png_and_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    png = draw_frontier(frontier(tmp_path))
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png == draw_frontier(frontier(tmp_path / "again"))
    history = draw_history(history_of(scores(tmp_path / "h"), None))
    assert history[:8] == png[:8] and history == draw_history(history_of(scores(tmp_path / "h2"), None))


def test_the_html_holds_everything_and_no_name_becomes_markup(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    on = data(mode=hostile)
    found = found_in(tmp_path, packed(1, "a", artifact=replace(file_of("a"), path=hostile)), scored(2, "a", 1.5, on))
    assert [c.artifact for c in found] == [hostile]
    view = frontier_of(on, found, None)
    page = picture_page([frontier_figure(view, "frontier")], "Frontier", note_of(view))
    assert "<img" not in page and page.count("</html>") == 1 and "lower envelope" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)  # nothing is loaded from elsewhere


def test_sizes_read_as_budgets_do():
    assert [short_bytes(n) for n in (999, 250_000, 16_000_000, 2.5e9)] == ["999 B", "250 kB", "16 MB", "2.5 GB"]
