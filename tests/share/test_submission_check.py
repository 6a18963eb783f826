"""quantlab submission check and triage: each planted fault is found with its line, a folder without one is not accused."""

import json
import lzma
import zlib
from base64 import b85encode
from pathlib import Path

import pytest
from submission_samples import LOSSES, SCRIPT, bpb_of, log, write

from quantlab.cli.main import run
from quantlab.errors import ConfigError
from quantlab.share.findings import BROKEN, LOOK, NOTE, UNCHECKED
from quantlab.share.submission_check import check_submission, triage
from quantlab.share.wrapped_code import unwrap


def logs(**changes) -> dict[str, str]:
    return {f"train_seed{seed}.log": log(seed, **changes) for seed in LOSSES}


def found(folder: Path, level: str) -> list[str]:
    return [f"{f.check}: {f.text} [{f.place}]" for f in check_submission(folder).findings if f.level == level]


def test_a_folder_without_a_fault_is_not_accused_and_not_called_valid(tmp_path: Path):
    checked = check_submission(write(tmp_path / "records" / "2026-04-01_Sample"))
    assert [f for f in checked.findings if f.level != UNCHECKED] == []
    assert checked.verdict == "nothing found that breaks a rule; 4 things not checked"
    assert any(text.startswith("claim: ") and "mean of final_int8_zlib_roundtrip" in text for text in checked.passed)
    assert "seeds: logs of 1, 2, 3" in checked.passed
    assert not any("valid" in line for line in (checked.verdict, *checked.passed))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"total": 16_000_001}, "size: the log counts 16,000,001 bytes, 1 over 16,000,000"),
        ({"train_ms": 602_048}, "clock: training took 602.0 s, 600 s are allowed"),
        ({"eval_ms": 688_000}, "clock: an evaluation took 688.0 s, 600 s are allowed"),
        ({"bpb": bpb_of(2.01) / 1.04}, "bytes: final_int8_zlib_roundtrip_exact: 62,021,632 tokens"),
        ({"lines": ["total_docs:10000"]}, "split: 10,000 documents are evaluated, the split has 50,000"),
    ],
)
def test_a_figure_against_a_rule_is_broken_with_its_line(tmp_path: Path, changes: dict, expected: str):
    folder = write(tmp_path / "s", logs=logs(**changes))
    broken = found(folder, BROKEN)
    assert len(broken) == 3
    assert all(line.startswith(expected) for line in broken)
    name, _, line = broken[0].rpartition("[")[2].rstrip("]").partition(":")
    text = (folder / name).read_text().splitlines()[int(line) - 1]
    figure = next(iter(changes.values()))
    assert str(figure[0] if isinstance(figure, list) else figure)[:6] in text


def test_one_step_over_the_clock_and_fewer_gpus_are_not_accused(tmp_path: Path):
    assert not found(write(tmp_path / "a", logs=logs(train_ms=600_900)), BROKEN)
    slow = {name: text.replace("world_size:8", "world_size:2") for name, text in logs(train_ms=2_400_000).items()}
    assert not found(write(tmp_path / "b", logs=slow), BROKEN)


def test_a_part_of_the_split_is_something_to_look_at(tmp_path: Path):
    looks = found(write(tmp_path / "s", logs=logs(tokens=9_662_464)), LOOK)
    assert sum("9,662,464 validation tokens are no public split" in line for line in looks) == 3


def test_a_claim_that_no_log_shows_and_seeds_that_were_picked(tmp_path: Path):
    looks = found(write(tmp_path / "s", val_bpb=1.15, seeds=[1, 2, 7]), LOOK)
    assert any("no log and no mean over logs shows 1.15; the nearest is" in line for line in looks)
    assert any("no log of seeds 7, which are claimed" in line for line in looks)
    assert any("logs of seeds 3, which are not among the claimed ones: were seeds picked?" in line for line in looks)


def test_the_best_seed_as_claim_is_a_note_and_a_wrong_seed_result_a_look(tmp_path: Path):
    best = round(bpb_of(LOSSES[1]), 8)
    folder = write(tmp_path / "s", val_bpb=best, seed_results={"2": {"val_bpb": best}})
    assert any(f"claims {best}, the best of 3 logs" in line for line in found(folder, NOTE))
    assert any(f"claims {best} for seed 2" in line for line in found(folder, LOOK))


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("prequant_ttt: epoch 3/10 loss 2.0", "training before quantization on scored text"),
        ("final_slot val_loss:1.2579 steps:48", "SLOT"),
        ("ngram_two_pass: starting", "rescoring"),
        ("legal_ttt: 3 passes, 7752704 tokens/rank", "rescoring"),
        ("ttt_epoch:5/30 avg_loss:1.8904", "several epochs of test-time training"),
        ("ttt_sliding:start stride=64 slot_lr=0.001 slot_steps=3", "SLOT"),
        ("ppm_enabled: True", "byte-level mixture"),
        ("datasets_dir: sp8192_casefold_v2", "text changed before it is cut"),
    ],
)
def test_known_paths_are_seen_in_a_log_and_not_where_they_are_off(tmp_path: Path, line: str, path: str):
    looks = found(write(tmp_path / "on", logs=logs(lines=[line])), LOOK)
    assert any(text.startswith(f"path: {path}: the log says") for text in looks)
    off = ["prequant_ttt_enabled: False", "slot_steps: 0", "ppm_enabled: 0", "eval_only_path: x"]
    assert found(write(tmp_path / "off", logs=logs(lines=off)), LOOK) == []


TRAINS_ON_VALIDATION = (
    SCRIPT
    + """

def adapt(model, val_tokens, optimizer):
    for x in val_tokens:
        model(x).backward()
        optimizer.step()


def calibrate(model, val_tokens):
    return collect_hessians(model, val_tokens)


train_files = "data/fineweb_val_000000.bin"
"""
)
SCORES_FIRST = (
    SCRIPT
    + """

def adapt(model, val_tokens, optimizer):
    for x in val_tokens:
        with torch.no_grad():
            yield model(x)
        step(model, val_tokens, optimizer)


def step(model, val_tokens, optimizer):
    model(val_tokens).backward()
"""
)


def test_a_script_that_trains_or_calibrates_on_scored_text_is_seen(tmp_path: Path):
    looks = found(write(tmp_path / "s", script=TRAINS_ON_VALIDATION), LOOK)
    assert [line.partition(" [")[0] for line in looks] == [
        "path: training on scored text: adapt steps an optimizer over validation tokens and scores none first",
        "path: training on scored text: train_files holds the validation split",
        "path: calibration on scored text: collect_hessians is given val_tokens",
    ]
    assert (
        f"[train_gpt.py:{TRAINS_ON_VALIDATION.splitlines().index('def adapt(model, val_tokens, optimizer):') + 1}]" in looks[0]
    )
    assert found(write(tmp_path / "first", script=SCORES_FIRST), LOOK) == []


def test_an_option_that_is_off_is_a_note(tmp_path: Path):
    script = SCRIPT + '\nSLOT = os.environ.get("SLOT_ENABLED", "0")\n'
    folder = write(tmp_path / "s", script=script)
    assert found(folder, LOOK) == []
    assert any("SLOT: the script has 'SLOT_ENABLED' (off by default" in line for line in found(folder, NOTE))


RAW = [{"id": lzma.FILTER_LZMA2}]
WRAPPERS = {
    "lzma": (lzma.compress, "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({!r})))"),
    "raw lzma": (
        lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=RAW),
        "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({!r}),format=L.FORMAT_RAW,filters=[]))",
    ),
    "zlib": (zlib.compress, "import zlib,base64\nexec(zlib.decompress(base64.b85decode({!r})))"),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_script_is_read_without_running_it(tmp_path: Path, kind: str):
    source = TRAINS_ON_VALIDATION + "\nraise SystemExit('it was run')\n"
    compress, wrapper = WRAPPERS[kind]
    text = wrapper.format(b85encode(compress(source.encode())).decode())
    assert unwrap(text) == source
    looks = found(write(tmp_path / "s", script=text), LOOK)
    assert any("collect_hessians is given val_tokens [train_gpt.py (unwrapped):" in line for line in looks)


def test_a_wrapper_that_would_fill_the_memory_is_left_alone():
    bomb = b85encode(zlib.compress(b" " * (1 << 26))).decode()
    assert unwrap(f"exec(zlib.decompress(b85decode({bomb!r})))") is None


def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Path):
    folder = write(tmp_path / "s")
    (folder / "submission.json").write_text("{" * 5000)
    (folder / "train_gpt.py").write_bytes(b"\xff\xfe def")
    (folder / "noise.log").write_bytes(bytes(range(256)) * 50)
    assert any("the claims cannot be read" in line for line in found(folder, NOTE))
    assert any("no val_bpb is claimed" in line for line in found(folder, LOOK))
    assert any("not Python that can be parsed" in line for line in found(folder, UNCHECKED))
    with pytest.raises(ConfigError, match="is not a folder"):
        check_submission(tmp_path / "nothing")


def test_figures_that_no_machine_holds_do_not_end_the_check(tmp_path: Path):
    digits = "9" * 5000
    lines = [f"seed:{digits}", f"total_docs:{digits}", f"train_shards:{digits}", f"final val_loss:{digits}.99 val_bpb:0.00"]
    lines += ["final val_loss:1.00 val_bpb:0.00", f"Total submission size: {digits} bytes"]
    huge = 10**400
    folder = write(tmp_path / "s", logs=logs(lines=lines), seeds=["²", huge, -1, None], bytes_total=huge, val_bpb=huge)
    (folder / "submission.json").write_text(
        (folder / "submission.json").read_text()[:-1] + f', "seed_results": {{"1": {{"val_bpb": {huge}}}}}}}'
    )
    (folder / "deep.py").write_text("x_train = " + "(" * 150 + "1" + ")" * 150 + "\n" + "y = " + "-" * 30000 + "1\n")
    checked = check_submission(folder)
    assert any("not Python that can be parsed" in f.text and f.file == "deep.py" for f in checked.findings)
    assert any("no val_bpb is claimed as a number" in f.text for f in checked.findings)


def test_significance_is_tested_in_the_unit_of_the_tokenizer(tmp_path: Path):
    folder = write(tmp_path / "s")
    new = sum(map(bpb_of, LOSSES.values())) / 3
    better = check_submission(folder, [new + 0.0100, new + 0.0101, new + 0.0102])
    assert any(text.startswith("significance: -0.01010 BPB against the other, margin 0.00296") for text in better.passed)
    worse = check_submission(folder, [new + 0.0001])
    assert any("not a record by the rule" in f.text for f in worse.findings if f.check == "significance")


def test_triage_puts_the_gravest_first_and_calls_none_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "records" / "2026-04-01_Good")
    write(tmp_path / "records" / "2026-04-02_Large", logs=logs(total=16_000_001))
    write(tmp_path / "records" / "2026-04-03_Slot", logs=logs(lines=["final_slot val_loss:1.0"]))
    assert [c.name for c in triage(tmp_path)] == ["2026-04-01_Good", "2026-04-02_Large", "2026-04-03_Slot"]
    assert run(["submission", "triage", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[5] for line in out.splitlines()[1:]] == ["2026-04-02_Large", "2026-04-03_Slot", "2026-04-01_Good"]
    assert "3 folders: 1 break a rule, 1 have something to look at; none is called valid" in err
    (tmp_path / "some.txt").write_text("records/2026-04-01_Good\n# a note\nrecords/missing\n")
    assert run(["submission", "triage", str(tmp_path / "some.txt"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in listed] == ["2026-04-01_Good", "missing"]
    assert listed[1]["findings"][0]["level"] == UNCHECKED


def test_check_says_what_and_where_and_ends_with_1_for_a_broken_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "2026-04-02_Large", logs=logs(total=16_000_001))
    assert run(["submission", "check", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("2026-04-02_Large, claims 1.19")
    lines = (folder / "train_seed1.log").read_text().splitlines()
    assert f"[train_seed1.log:{lines.index('Total submission size int8+zlib: 16000001 bytes') + 1}]" in out
    assert "3 rules broken" in err
