"""The best run and the lower envelope: never across evaluation data, never with a run that is not valid."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import data, file_of, packed, record, score, scored, write

from quantlab.errors import BudgetError, ConfigError, QuantlabError
from quantlab.runs.frontier import best_of, by_data, candidates, data_id, lower_envelope, one_group
from quantlab.runs.frontier_picture import draw, frontier_of, short_bytes, size_range
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
    assert [(c.artifact, among) for c, among in best_of(found, 940)] == [("a.qlab", 1), ("c.qlab", 1)]
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


def test_invalid_runs_are_drawn_and_reach_no_envelope(tmp_path):
    found = frontier(tmp_path)
    assert [c.artifact for c in found.envelope] == ["m1.qlab", "m2.qlab", "m4.qlab"]
    assert [c.artifact for c in found.invalid] == ["over.qlab"] and found.budgets == [1000]
    low, high = size_range(found)
    assert low < 100 and high > 1200


def test_a_budget_of_the_users_own_makes_larger_files_invalid(tmp_path):
    found = frontier(tmp_path, 250)
    assert {c.artifact for c in found.invalid} == {"over.qlab", "m3.qlab", "m4.qlab"} and found.budgets == [250]


def test_the_png_is_one(tmp_path):
    pytest.importorskip("matplotlib")
    png = draw(frontier(tmp_path), ".png")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png == draw(frontier(tmp_path / "again"), ".png")


def test_the_html_holds_everything_and_no_name_becomes_markup(tmp_path):
    pytest.importorskip("plotly")
    hostile = "</script><img src=x onerror=alert(1)>"
    on = data(mode=hostile)
    found = found_in(tmp_path, packed(1, "a", artifact=replace(file_of("a"), path=hostile)), scored(2, "a", 1.5, on))
    assert [c.artifact for c in found] == [hostile]
    page = draw(frontier_of(on, found, None), ".html").decode()
    assert "<img" not in page and page.count("</html>") == 1 and "lower envelope" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)  # nothing is loaded from elsewhere


def test_sizes_read_as_budgets_do():
    assert [short_bytes(n) for n in (999, 250_000, 16_000_000, 2.5e9)] == ["999 B", "250 kB", "16 MB", "2.5 GB"]
