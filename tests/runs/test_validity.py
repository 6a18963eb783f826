"""Which runs are valid, and how packings and scores are joined by the bytes of the artifact."""

from dataclasses import replace

import pytest
from run_samples import FAILED, data, file_of, packed, packing, record, score, scored, write

from quantlab.runs.run_record import Process
from quantlab.runs.store import UNKNOWN_PACKING, join, read_store


def entries(folder, *records):
    write(folder, *records)
    return join(read_store(folder).runs)


def problems(folder, *records):
    return [entry.problems for entry in entries(folder, *records)]


def test_a_packing_and_a_score_of_the_same_bytes_complete_each_other(tmp_path):
    pack, evaluation = entries(tmp_path, packed(1, "a"), scored(2, "a", 1.5))
    assert pack.evaluation == evaluation.evaluation == score("a", 1.5) and evaluation.packing == pack.packing == packing("a")
    assert pack.is_valid and evaluation.is_valid


def test_a_name_joins_nothing(tmp_path):
    other = replace(scored(2, "b", 1.5), artifact=replace(file_of("b"), path="a.qlab"))
    pack, evaluation = entries(tmp_path, packed(1, "a"), other)
    assert pack.evaluation is None and evaluation.packing is None and evaluation.problems == (UNKNOWN_PACKING,)


def test_artifact_and_code_must_fit_and_decode_again(tmp_path):
    assert problems(tmp_path / "1", packed(1, "a", size=900, code=100)) == [()]
    assert problems(tmp_path / "2", packed(1, "a", size=900, code=101)) == [("1 bytes over the budget",)]
    lost = packed(1, "a", packing=packing("a", is_decoded_equal=False))
    assert problems(tmp_path / "3", lost, scored(2, "a", 1.5)) == [("the file was not decoded to the measured tensors",)] * 2
    replaced = packed(1, "a", artifact=file_of("b"))
    assert problems(tmp_path / "4", replaced) == [("the artifact is not the file that was decoded",)]


def test_a_score_must_be_of_the_runs_own_file(tmp_path):
    changed = scored(2, "a", 1.5, evaluations=(score("b", 1.5),))
    pack, evaluation = entries(tmp_path, packed(1, "a"), changed)
    assert pack.evaluation is None and evaluation.problems == ("the score is of another file than the artifact",)


def test_one_valid_packing_of_the_bytes_is_enough(tmp_path):
    tight, roomy = packed(1, "a", budget=800), packed(2, "a", budget=1000)
    assert problems(tmp_path, tight, roomy, scored(3, "a", 1.5)) == [("100 bytes over the budget",), (), ()]


def test_a_score_whose_probes_failed_or_were_not_run_is_not_valid(tmp_path):
    flipped = replace(score("a", 0.058), probes=FAILED)
    pack, evaluation = entries(tmp_path / "1", packed(1, "a"), scored(2, "a", 0.058, evaluations=(flipped,)))
    line = f"flip: {FAILED[0].detail}"
    assert pack.problems == evaluation.problems == (line,)
    unprobed = replace(score("a", 1.5), probes=())
    assert problems(
        tmp_path / "2", scored(2, "w", 1.5, artifact=replace(file_of("a"), path="w.pt"), evaluations=(unprobed,))
    ) == [("the predictions were not probed",)]


def test_a_later_score_that_failed_does_not_hide_a_valid_one(tmp_path):
    flipped = replace(score("a", 0.058), probes=FAILED)
    pack, _, _ = entries(tmp_path, packed(1, "a"), scored(2, "a", 1.5), scored(3, "a", 0.058, evaluations=(flipped,)))
    assert pack.is_valid and pack.evaluation == score("a", 1.5)


def test_a_score_with_other_bytes_than_its_split_is_not_valid(tmp_path):
    other = replace(score("a", 1.0), split="sp1024", bytes_match=False)
    _, evaluation = entries(tmp_path, packed(1, "a"), scored(2, "a", 1.0, evaluations=(other,)))
    assert evaluation.problems == ("as many tokens as the public validation split sp1024, but not its bytes",)


@pytest.mark.parametrize("edit", [{"val_bpb": 0.9}, {"val_loss": 1.0}, {"nats": 1.0}, {"data": data(2000)}])
def test_a_record_whose_figures_contradict_each_other_was_edited(tmp_path, edit):
    edited = replace(score("a", 1.5), **edit)
    pack, evaluation = entries(tmp_path, packed(1, "a"), scored(2, "a", 1.5, evaluations=(edited,)))
    line = "bits per byte, loss, nats, tokens and bytes contradict each other: the record was edited"
    assert pack.problems == evaluation.problems == (line,)


def test_a_file_has_one_size_in_all_of_its_records(tmp_path):
    smaller = packed(1, "a", size=1100, budget=1000, packing=packing("a", size=900))
    assert problems(tmp_path / "1", smaller) == [("the artifact has 1,100 bytes, its packing says 900",)]
    lied = scored(2, "a", 1.5, evaluations=(score("a", 1.5, size=100),))
    found = problems(tmp_path / "2", packed(1, "a"), lied)
    assert found[1] == ("the artifact has 900 bytes, its score names another number",)


def test_float_weights_have_no_budget(tmp_path):
    trained = record(1, "train", artifact=replace(file_of("w"), path="model.safetensors"), metrics={"val_bpb": 1.4})
    checked = scored(2, "w", 1.4, artifact=replace(file_of("w"), path="model.safetensors"))
    assert problems(tmp_path, trained, checked) == [(), ()]


def test_a_pipelines_run_has_a_packing_and_two_scores(tmp_path):
    both = (score("w", 1.4), score("a", 1.5))
    (entry,) = entries(tmp_path, packed(1, "a", evaluations=both))
    assert entry.is_valid and entry.evaluation == score("a", 1.5)


def test_what_is_not_done_is_not_valid(tmp_path):
    failed = packed(1, "a", status="failed", error="budget 10 bytes is below 20", packing=None, artifact=None)
    running = record(2, "train", status="running")
    found = problems(
        tmp_path, failed, running, record(3, "train", status="interrupted"), record(4, "run", problems=("too slow",))
    )
    assert found == [("budget 10 bytes is below 20",), ("running",), ("interrupted",), ("too slow",)]


def test_a_score_that_is_not_done_is_no_score_of_another_run(tmp_path):
    pack, evaluation = entries(tmp_path, packed(1, "a"), scored(2, "a", 1.5, status="failed", error="no space"))
    assert pack.evaluation is None and evaluation.problems == ("no space",)


def test_the_newest_score_counts_whatever_the_folders_are_called(tmp_path):
    write(tmp_path, packed(1, "a"), scored(5, "a", 1.5), scored(4, "a", 1.6, on=data(2000)))
    newest = next(tmp_path.glob("*05.000000Z*"))
    newest.rename(tmp_path / "0-renamed")
    by_kind = {entry.run.record.kind: entry for entry in join(read_store(tmp_path).runs)}
    assert by_kind["pack"].evaluation == score("a", 1.5)


def test_a_run_of_this_host_without_a_process_is_interrupted(tmp_path):
    from quantlab.runs.origin import this_process

    gone = replace(this_process(), pid=2**22 + 1)
    write(tmp_path, record(1, "train", status="running", process=gone))
    write(tmp_path, record(2, "train", status="running", process=Process(host="elsewhere", pid=2**22 + 1)))
    assert [e.status for e in join(read_store(tmp_path).runs)] == ["interrupted", "running"]
