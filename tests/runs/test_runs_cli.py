"""quantlab runs as a user types it: exact output, exit codes, broken and copied folders, a thousand runs."""

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from run_samples import change, data, file_of, name_of, packed, record, scored, write, write_many

from quantlab.cli.main import run
from quantlab.runs.frontier import data_id
from quantlab.runs.run_record import Process

ROOT = Path(__file__).resolve().parents[2]
ID, OTHER = data_id(data()), data_id(data(2000))
BUSY_CPU_SECONDS = 4.0
"""Limit for listing a thousand runs: it takes 0.7 on an idle core, and several times that where processes share a core."""


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def folder(tmp_path):
    """Return a folder of seven runs: a training, two packings, their scores, a failed packing, one over the budget."""
    place = tmp_path / "runs"
    write(
        place,
        record(1, "train", metrics={"steps": 6, "val_bpb": 1.4}, options={"model": {"num_layers": 2}}, seeds={"seed": 1337}),
        packed(2, "a", size=900),
        packed(3, "b", size=950, code=40, options={"method": "gptq", "budget_bytes": 1000}, seeds={"seed": 1}),
        scored(4, "a", 1.5),
        scored(5, "b", 1.625),
        packed(6, "c", status="failed", exit_code=3, error="budget 10 bytes is below 20", packing=None, artifact=None),
        packed(7, "d", size=1200),
    )
    return place


def says(capsys, *arguments, code=0):
    """Return stdout and stderr of one command that ends with `code`."""
    assert run([str(a) for a in arguments]) == code
    return capsys.readouterr()


LIST = f"""\
id        kind          BPB   size   bits  budget  method   data      file
00000001  train      1.4000      -      -       -  -        -         -
00000002  pack+eval  1.5000  900 B  3.500    1 kB  trellis  {ID}  a.qlab
00000003  pack+eval  1.6250  990 B  3.500    1 kB  trellis  {ID}  b.qlab

all rows: status valid, started 07-24 10:15
data {ID}: 1,000 tokens, 2,400 bytes, chunked, sequences of 64
BPB: bits per byte of the packed model; size: the artifact and counted code; bits: of the whole file
  for each weight; pack+eval: a packing and the score of its file, under the id of the packing
"""


def test_list_shows_valid_runs_a_packing_with_its_score_and_counts_the_others(folder, capsys):
    out, err = says(capsys, "runs", "list", "--runs", folder)
    assert out == LIST and err == "2 of 7 runs are not valid: --all shows them\n"


def test_list_all_says_what_is_wrong(folder, capsys):
    out, err = says(capsys, "runs", "list", "--runs", folder, "--all", "--kind", "pack", "--sort", "-bytes")
    assert out.splitlines()[:5] == [
        "id        status        BPB    size   bits  method   data      file",
        "00000007  not valid       -  1.2 kB  3.500  trellis  -         d.qlab",
        f"00000003  valid      1.6250   990 B  3.500  trellis  {ID}  b.qlab",
        f"00000002  valid      1.5000   900 B  3.500  trellis  {ID}  a.qlab",
        "00000006  failed          -       -      -  -        -         -",
    ]
    assert "all rows: kind pack, budget 1 kB, started 07-24 10:15" in out
    assert out.splitlines()[-2:] == [
        "00000007 not valid: 200 bytes over the budget",
        "00000006 failed: budget 10 bytes is below 20",
    ]
    assert err == ""


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_a_narrow_terminal_and_says_what_it_left_out(folder, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    out = says(capsys, "runs", "list", "--runs", folder, "--all").out
    assert max(map(len, out.splitlines())) <= width
    kept, left_out = {
        60: ("id status BPB size data file", "kind, bits, budget, method"),
        80: ("id kind status BPB size method data file", "bits, budget"),
    }[width]
    assert out.splitlines()[0].split() == kept.split()
    assert f"left out at this width: {left_out} (a wider terminal or --json shows them)" in " ".join(out.split())


def test_long_paths_keep_their_end_and_no_run_without_its_packing_is_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    deep = "experiments/of/this/week/a_model_with_a_long_name.qlab"
    write(
        tmp_path,
        packed(1, "a", artifact=replace(file_of("a"), path=deep)),
        scored(2, "a", 1.5),
        scored(3, "a", 1.75, data(2000)),
        scored(4, "nobody", 1.25),
    )
    out = says(capsys, "runs", "list", "--runs", tmp_path, "--all").out
    rows = out.split("\n\n")[0].splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["00000001", "00000002", "00000004"]  # the newest score is in the row of a
    assert rows[0].endswith("name.qlab") and "…" in rows[0] and max(map(len, out.splitlines())) <= 60


def test_a_status_has_its_colour_on_a_terminal_alone(folder, capsys, monkeypatch):
    monkeypatch.setattr("quantlab.cli.runs_commands.paint", lambda text, status: f"<{status}>{text.strip()}</>")
    out = says(capsys, "runs", "list", "--runs", folder, "--all").out
    assert out.count("<valid>valid</>") == 3 and "<not valid>not valid</>" in out and "<failed>failed</>" in out
    from quantlab.cli.display import paint

    assert paint("valid", "valid") == "valid"  # stdout is no terminal here
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert paint("valid", "valid") == "\x1b[32mvalid\x1b[0m" and paint("x", "unknown") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("valid", "valid") == "valid"


@pytest.mark.parametrize(
    ("conditions", "numbers"),
    [
        (["method=gptq"], [3]),
        (["options.method=trellis"], [2]),
        (["kind=pack", "states=8"], [2]),
        (["budget=1kB"], [2, 3, 4, 5]),
        (["bpb=1.5"], [2, 4]),
        (["seeds.seed=1337"], [1]),
        (["valid=false"], []),
    ],
)
def test_list_filters_by_any_key_or_its_end(folder, capsys, conditions, numbers):
    wheres = [part for condition in conditions for part in ("--where", condition)]
    found = json.loads(says(capsys, "runs", "list", "--runs", folder, *wheres, "--json").out)
    assert [int(row["run"][-8:]) for row in found] == numbers


def test_list_sorts_by_any_key_and_puts_runs_without_it_last(folder, capsys):
    def order(key):
        rows = json.loads(says(capsys, "runs", "list", "--runs", folder, "--sort", key, "--json").out)
        return [int(row["run"][-8:]) for row in rows]

    assert order("bpb") == [1, 2, 4, 3, 5] and order("-bpb") == [3, 5, 2, 4, 1]
    assert order("method") == [3, 2, 1, 4, 5] and order("-run") == [5, 4, 3, 2, 1]


SHOW = f"""\
run                      20260724T101503.000000Z-pack-00000003
kind                     pack
status                   done
valid                    yes
started                  2026-07-24T10:15:03.000000Z
seconds                  60
bpb                      1.625
loss                     2.70327
data                     {ID}
bytes                    990
code_bytes               40
budget                   1,000
bpw                      3.5
predicted_kl               0
artifact                 b.qlab
sha256                   3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d
checkpoint               m.pt
fingerprint              ffffffffffffffffffffffffffffffff
data.tokens_sha256       {data().tokens_sha256}
data.tokens              1,000
data.bytes               2,400
data.documents           3
data.mode                chunked
data.seq_len             64
data.stride              64
data.tokenizer_sha256    {data().tokenizer_sha256}
options.method           gptq
options.budget_bytes     1,000
seeds.seed               1
versions.quantlab        0.1.0
git.commit               cccccccccccccccccccccccccccccccccccccccc
git.is_dirty             no
command                  quantlab pack x
directory                /nowhere
file b.qlab: 950 bytes, sha256 3e23e8160039, not here
"""


def test_show_prints_what_went_in_and_what_came_out(folder, capsys):
    out, err = says(capsys, "runs", "show", "00000003", "--runs", folder)
    assert [re.sub(" +", " ", line) for line in out.splitlines()] == [re.sub(" +", " ", line) for line in SHOW.splitlines()]
    assert err == "" and len({line.index(line.split()[1]) for line in out.splitlines()[:-1]}) == 1  # aligned
    found = json.loads(says(capsys, "runs", "show", "20260724T101503", "--runs", folder, "--json").out)
    assert found["record"]["packing"]["code_bytes"] == 40 and found["bpb"] == 1.625 and found["folder"].startswith(str(folder))


def test_show_finds_the_run_of_a_file_by_its_content_else_by_its_path(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def shown(name):
        return says(capsys, "runs", "show", name, "--runs", folder).out.split()[1]

    assert shown("b.qlab") == name_of(3, "pack")  # the file is gone: its path is enough; the packing comes before the score
    Path("moved.qlab").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    write(folder, packed(8, "e", artifact=replace(file_of("e"), path="e.qlab", sha256=sha256)), scored(9, "b", 1.5))
    assert shown("moved.qlab") == name_of(8, "pack")
    Path("other.qlab").write_bytes(b"others")
    fails(capsys, ["show", "other.qlab", "--runs", folder], 2, "no run made or scored the file other.qlab")
    fails(capsys, ["show", "x" * 5000, "--runs", folder], 2, "no run begins or ends with")


DIFF = """\
key                      20260724T101502.000000Z-pack-00000002  20260724T101503.000000Z-pack-00000003
options.method           trellis                                gptq
options.rounding.states  8                                      -
seeds.seed               0                                      1
bpb                      1.5                                    1.625
loss                     2.49533                                2.70327
bytes                    900                                    990
code_bytes               0                                      40
sha256                   ca978112ca1b                           3e23e8160039
"""


def test_diff_shows_config_and_results_alone(folder, capsys):
    out, err = says(capsys, "runs", "diff", name_of(2, "pack"), "00000003", "--runs", folder)
    assert (out, err) == (DIFF, "")
    found = json.loads(says(capsys, "runs", "diff", "00000002", "00000003", "--runs", folder, "--json").out)
    assert found["differences"]["options.method"] == ["trellis", "gptq"]
    assert says(capsys, "runs", "diff", "00000002", "00000002", "--runs", folder) == (
        "",
        "no difference in config and results\n",
    )


def test_diff_of_scores_on_other_data_names_what_differs(tmp_path, capsys):
    write(tmp_path, packed(1, "a"), scored(2, "a", 1.5), scored(3, "a", 1.25, data(2000)))
    out = says(capsys, "runs", "diff", "00000002", "00000003", "--runs", tmp_path).out
    assert "data.tokens" in out and "1,000" in out and "2,000" in out and "versions" not in out


def test_best_is_one_for_each_evaluation_data(folder, capsys):
    line = f"  1.500000 BPB  900 of 1,000 bytes  {name_of(2, 'pack')}  a.qlab  (best of 2)\n"
    head = f"data {ID}: 1,000 tokens, 2,400 bytes, chunked, sequences of 64\n"
    assert says(capsys, "runs", "best", "--runs", folder) == (head + line, "")
    write(folder, scored(8, "a", 1.75, data(2000)))
    out = says(capsys, "runs", "best", "--runs", folder, "--budget", "900").out
    assert out.count("data ") == 2 and "(best of 1)" in out and f"data {OTHER}: 2,000 tokens" in out
    found = json.loads(says(capsys, "runs", "best", "--runs", folder, "--json").out)
    assert [(row["data"], row["bpb"], row["among"]) for row in found] == [(ID, 1.5, 2), (OTHER, 1.75, 1)]


def test_frontier_draws_a_picture_and_prints_the_envelope(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write(folder, scored(8, "d", 1.25))
    picture = tmp_path / "f.png"
    out, err = says(capsys, "runs", "frontier", "-o", picture, "--runs", folder)
    assert out == (
        f"lower envelope on {ID}: 1,000 tokens, 2,400 bytes, chunked, sequences of 64\n"
        f"  1.500000 BPB  900 bytes  {name_of(2, 'pack')}  a.qlab\n"
    )
    assert err == f"wrote {picture}: 2 valid, 1 not valid\n" and picture.read_bytes()[:4] == b"\x89PNG"
    assert says(capsys, "runs", "frontier", "-o", picture, "--runs", folder, code=2).err.startswith(
        f"error: output {picture} exists"
    )
    found = says(capsys, "runs", "frontier", "-o", picture, "--runs", folder, "--force", "--budget", "800", "--json").out
    assert json.loads(found) == []


def fails(capsys, arguments, code, *parts):
    out, err = says(capsys, "runs", *arguments, code=code)
    lines = [line for line in err.splitlines() if not line.startswith("hint: ")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: ")
    assert all(part in err for part in parts), err


def test_every_mistake_is_one_clear_line(folder, tmp_path, capsys, monkeypatch):
    here = ["--runs", folder]
    fails(capsys, ["list", "--runs", tmp_path / "absent"], 2, "folder of runs", "absent does not exist")
    fails(capsys, ["list"], 2, "QUANTLAB_RUNS is empty", "name a folder with --runs")
    fails(capsys, ["list", "--kind", "bake", *here], 2, "--kind must be one of train, pack, eval, run, got 'bake'")
    fails(capsys, ["list", "--where", "method", *here], 2, "--where must look like key=value, got 'method'")
    fails(capsys, ["list", "--where", "metod=gptq", *here], 2, "no run has the key 'metod'", "did you mean method?")
    fails(capsys, ["list", "--where", "method=gqtq", *here], 2, "no run has options.method 'gqtq'", "did you mean gptq?")
    fails(capsys, ["list", "--where", "status=good", *here], 2, "no run has status 'good'", "there are done, failed")
    fails(capsys, ["list", "--where", "bpb=low", *here], 2, "no run has bpb 'low'", "there are 1.4, 1.5, 1.625")
    assert says(capsys, "runs", "list", "--where", "bpb=9.5", *here).out == ""  # a question, not a mistake
    fails(capsys, ["list", "--sort", "badget", *here], 2, "no run has the key 'badget'", "did you mean budget?")
    fails(capsys, ["show", "xyz", *here], 2, "no run begins or ends with 'xyz'")
    fails(capsys, ["show", "2026", *here], 2, "7 runs begin or end with '2026'")
    fails(capsys, ["show", "", *here], 2, "no run begins or ends with ''")
    fails(capsys, ["diff", "00000002", *here], 2, "RUN")
    fails(capsys, ["best", "--budget", "1", *here], 3, "no valid run fits 1 bytes, the smallest has 900")
    fails(capsys, ["best", "--budget", "lots", *here], 2, "budget must be a number of bytes")
    fails(capsys, ["frontier", "-o", tmp_path / "f.svg", *here], 2, "must end in .png or .html")
    fails(capsys, ["frontier", "-o", tmp_path / "no" / "f.png", *here], 2, "does not exist")
    write(folder, scored(8, "a", 1.75, data(2000)))
    fails(capsys, ["frontier", "-o", tmp_path / "f.png", *here], 2, "cannot be mixed", f"{ID} (2)", f"{OTHER} (1)", "--data")
    (tmp_path / "none").mkdir()
    fails(capsys, ["best", "--runs", tmp_path / "none"], 1, "no valid run has a score")
    fails(
        capsys, ["frontier", "-o", tmp_path / "f.png", "--runs", tmp_path / "none"], 1, "no run has the score of a packed model"
    )
    assert says(capsys, "runs", "list", "--runs", tmp_path / "none") == ("", "no runs\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails(capsys, ["frontier", "-o", tmp_path / "f.html", *here], 1, ".html needs the package jinja2", "pip install jinja2")


def test_the_variable_names_the_folder_and_the_option_comes_first(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QUANTLAB_RUNS", str(folder))
    assert says(capsys, "runs", "list").out == LIST
    (tmp_path / "none").mkdir()
    assert says(capsys, "runs", "list", "--runs", tmp_path / "none").out == ""


def test_a_broken_run_is_one_line_on_stderr_and_never_fatal(folder, capsys):
    def broken(number):
        return folder / name_of(number, "pack") / "run.json"

    before = says(capsys, "runs", "list", "--runs", folder, "--all", "--json").out
    for number in range(20, 27):
        write(folder, packed(number, "z"))
    broken(20).write_text('{"kind": "pack", "status"')
    broken(21).unlink()
    broken(22).write_bytes(b"\xff\xfe")
    change(folder, broken(23).parent.name, status="lost")
    change(folder, broken(24).parent.name, version=2)
    change(folder, broken(25).parent.name, packing={"artifact_bytes": "many"})
    with broken(26).open("ab") as file:
        file.truncate(1 << 23)
    (folder / "laptop").mkdir()  # a training's own folder
    (folder / "notes.txt").write_text("mine")
    out, err = says(capsys, "runs", "list", "--runs", folder, "--all", "--json")
    lines = err.splitlines()
    assert out == before and len(lines) == 7 and all(line.startswith("broken run: ") for line in lines)
    for line, part in zip(
        lines,
        [
            "is not JSON",
            "No such file",
            "is not JSON",
            "status must be one of running",
            "has version 2",
            "is missing",
            "8,388,608",
        ],
        strict=True,
    ):
        assert part in line and str(folder) in line


def test_copied_folders_are_merged(folder, tmp_path, capsys):
    other = tmp_path / "other"
    write(other, packed(10, "e", size=800), scored(11, "e", 1.25, size=800))
    for one in other.iterdir():
        shutil.copytree(one, folder / one.name)
    assert f"{name_of(10, 'pack')}  e.qlab  (best of 3)" in says(capsys, "runs", "best", "--runs", folder).out


def test_interrupted_runs_and_their_names(tmp_path, capsys):
    from quantlab.runs.origin import this_process

    gone = replace(this_process(), pid=2**22 + 1)
    elsewhere = Process(host="elsewhere", pid=1)
    write(tmp_path, *(record(i, "train", status="running", process=p) for i, p in enumerate((gone, elsewhere, this_process()))))
    out = says(capsys, "runs", "list", "--runs", tmp_path, "--all").out
    assert [line.split()[1] for line in out.splitlines()[:4]] == ["status", "interrupted", "running", "running"]


def test_no_value_of_a_record_reaches_the_terminal_as_a_command(tmp_path, capsys):
    write(tmp_path, record(1, "train", status="failed", error="\x1b[2Jgone\nnext", options={"a\x07": "\x1b]0;title\x07"}))
    for command in (["list", "--all"], ["show", "00000001"]):
        out = says(capsys, "runs", *command, "--runs", tmp_path).out
        assert all(c.isprintable() or c == "\n" for c in out) and r"\x1b[2Jgone\nnext" in out
    path = "\x1b[2Ja.qlab"
    write(tmp_path, packed(2, "a", artifact=replace(file_of("a"), path=path)), scored(3, "a", 1.5))
    assert r"\x1b[2Ja.qlab" in says(capsys, "runs", "best", "--runs", tmp_path).out


def test_a_thousand_runs_list_fast_and_load_nothing_heavy(tmp_path):
    write_many(tmp_path, 1000)
    code = (
        "import sys; from quantlab.cli.main import run; code = run(['runs', 'list', '--all', '--runs', sys.argv[1]]); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'plotly', 'numba'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.split("\n\n")[0].count("\n") == 500
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < BUSY_CPU_SECONDS


@pytest.mark.parametrize("command", ["list", "show", "diff", "best", "frontier", "history", "page", "serve", "export"])
def test_every_command_has_help_with_an_example_and_a_line_in_the_docs(command, capsys):
    out = says(capsys, "runs", command, "--help").out
    assert f"Example: quantlab runs {command}" in " ".join(out.split())
    assert f"quantlab runs {command}" in (ROOT / "docs/runs.md").read_text()
    assert "quantlab runs" in (ROOT / "README.md").read_text()
