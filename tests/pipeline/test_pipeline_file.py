"""The TOML file of quantlab run: its configs, its matrix, its paths, and every way to get it wrong."""

from pathlib import Path

import pytest

from quantlab.errors import ConfigError, QuantlabError
from quantlab.jobs.train_file import read_train_config
from quantlab.methods.method import method_options
from quantlab.pipeline.execute import plan_pipeline
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.packing_stages import build
from quantlab.pipeline.read import read_pipeline
from quantlab.text.shards import write_shard
from quantlab.toml_file import parse_value, to_toml

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN = '[train]\npreset = "demo"\n'
PACK = '[pack]\nbudget = "60kB"\n'


def read(tmp_path, text, changes=()):
    path = tmp_path / "p.toml"
    path.write_text(text)
    return read_pipeline(path, changes)


def test_train_is_a_preset_with_changes_and_the_rest_has_defaults(tmp_path):
    text = TRAIN + "steps = 7\n[train.model]\nnum_layers = 3\n" + PACK
    (cell,) = read(tmp_path, text)
    wanted, data = read_train_config("demo", changes=["steps=7", "model.num_layers=3"])
    assert cell.config.train.config == wanted and cell.config.data.config() == data
    assert cell.name == "" and cell.config.pack.budget_bytes == 60_000 and cell.config.clock.max_seconds == 0
    names = [stage.name for stage in build(cell.config, FileHashes()).stages]
    assert names == ["data", "train", "calibrate", "pack", "evaluate", "report"]


def test_a_checkpoint_needs_neither_training_nor_text(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"weights")
    (cell,) = read(tmp_path, PACK + 'checkpoint = "m.pt"\n')
    assert [stage.name for stage in build(cell.config, FileHashes()).stages] == ["calibrate", "pack", "report"]
    (tmp_path / "s.safetensors").write_bytes(b"statistics")
    (cell,) = read(tmp_path, PACK + 'checkpoint = "m.pt"\nstats = "s.safetensors"\n')
    assert [stage.name for stage in build(cell.config, FileHashes()).stages] == ["pack", "report"]


def test_paths_are_relative_to_the_file_and_globs_take_its_folder_as_it_is(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    text = '[data]\ntrain = "tokens:x/t_*.bin"\nval = "text:v.txt"\ntokenizer = "t.model"\n' + TRAIN + PACK
    (cell,) = read(folder, text + 'code = ["train.py", "/abs/eval.py"]\n')
    data = cell.config.data
    assert data.train == f"tokens:{tmp_path}/a[[]1]/x/t_*.bin" and data.val == f"text:{folder}/v.txt"
    assert data.tokenizer == f"{folder}/t.model" and cell.config.pack.code == (f"{folder}/train.py", "/abs/eval.py")
    (cell,) = read(folder, PACK + 'checkpoint = "m.pt"\nmodel = "my.py:make"\n')
    assert cell.config.pack.model == f"{folder}/my.py:make"


def test_tensors_are_kept_and_limited_by_pattern(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"weights")
    plain = PACK + 'checkpoint = "m.pt"\n'
    chosen = plain + 'keep = ["*.gate.weight"]\n[pack.bits]\n"*.mlp.*" = 5\n[calibrate]\nkeep = ["*.odd"]\n'
    (cell,), (other,) = read(tmp_path, chosen), read(tmp_path, plain)
    config = cell.config.pack.config({}, seed=0)
    assert config.keep == ("*.gate.weight",) and config.bits == {"*.mlp.*": 5} and cell.config.calibrate.keep == ("*.odd",)
    keys, others = ({s.name: s.inputs for s in build(c.config, FileHashes()).stages} for c in (cell, other))
    assert keys["pack"] != others["pack"] and keys["calibrate"] != others["calibrate"]
    with pytest.raises(ConfigError, match=r"bits \*=3: the widest"):
        read(tmp_path, plain + '[pack.bits]\n"*" = 3\n')[0].config.pack.config({}, seed=0)


def test_data_with_a_source_stands_alone_and_else_changes_the_preset(tmp_path):
    preset = '[train]\npreset = "baseline"\n'
    (cell,) = read(tmp_path, preset + PACK + '[data]\ntokenizer = "other.model"\n')
    assert cell.config.data.train.endswith("fineweb_train_*.bin") and cell.config.data.tokenizer.endswith("other.model")
    (cell,) = read(tmp_path, preset + PACK + '[data]\ntrain = "stdlib"\n')
    assert (cell.config.data.train, cell.config.data.val, cell.config.data.tokenizer) == ("stdlib", "", "")


def test_changes_come_after_the_file(tmp_path):
    (cell,) = read(tmp_path, TRAIN + PACK, ["pack.budget=1MiB", "train.model.num_layers=1", "pack.widths=[8, 5]"])
    assert cell.config.pack.budget_bytes == 2**20 and cell.config.train.config.model.num_layers == 1
    assert cell.config.pack.options.widths == (5, 8)
    (cell,) = read(tmp_path, TRAIN + PACK, ["pack.budget=70000"])
    assert cell.config.pack.budget_bytes == 70_000


def test_a_matrix_is_the_product_of_its_lists(tmp_path):
    text = TRAIN + PACK + '[matrix]\n"train.seed" = [1, 2]\npack.budget = ["60kB", 70000]\npack.code = [[], ["a/b.py"]]\n'
    cells = read(tmp_path, text)
    assert len(cells) == 8 and cells[0].name == "train.seed=1,pack.budget=60kB,pack.code="
    assert cells[7].name == "train.seed=2,pack.budget=70000,pack.code=a_b.py"
    assert cells[7].config.train.config.seed == 2 and cells[7].config.pack.code == (f"{tmp_path}/a/b.py",)
    cells = read(tmp_path, text, ["pack.budget=50kB", "matrix.train.seed=[3, 4, 5]", "matrix.pack.code=[[]]"])
    assert [cell.config.train.config.seed for cell in cells] == [3, 4, 5]
    assert {cell.config.pack.budget_bytes for cell in cells} == {50_000}


def test_the_keys_of_pack_that_are_not_its_own_are_options_of_the_method(tmp_path):
    keys = "states = 4\ntune = false\nwidths = [6, 5]\ntime_limit = 3\neffort = 'best'\n"
    (cell,) = read(tmp_path, TRAIN + PACK + keys)
    options = method_options("trellis", {"effort": "best", "states": 4, "tune": False, "widths": [5, 6], "time_limit": 3.0})
    assert cell.config.pack.options == options and cell.config.pack.config({}, seed=3).options == options
    cells = read(tmp_path, TRAIN + PACK + '[matrix]\npack.method = ["trellis", "gptq", "rtn"]\n')
    assert [cell.config.pack.config({}, seed=0).options for cell in cells] == [
        method_options(name, {}) for name in ("trellis", "gptq", "rtn")
    ]
    text = TRAIN + PACK + keys.splitlines()[0] + '\n[matrix]\npack.method = ["trellis", "gptq"]\n'
    with pytest.raises(ConfigError, match=r"pack.states is not an option of method gptq"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[pakc]\n", "unknown key pakc", "did you mean pack?"),
        (PACK + "buget = 1\n[train]\n", "unknown key pack.buget", "did you mean pack.budget?"),
        ("[pack]\nbugdet = 1\n[train]\n", "unknown key pack.bugdet", "did you mean pack.budget?"),
        ("[pack]\nbudgt = 1\n[train]\n", "unknown key pack.budgt", "did you mean pack.budget?"),
        (TRAIN + "stepz = 1\n" + PACK, "unknown key train.stepz", "did you mean train.steps?"),
        (TRAIN + "prozesses = 1\n" + PACK, "unknown key train.prozesses", "did you mean train.processes?"),
        (
            TRAIN + "[train.model]\nnum_layer = 1\n" + PACK,
            "unknown key train.model.num_layer",
            "did you mean train.model.num_layers?",
        ),
        (TRAIN + PACK + "[evaluate]\nmod = 1\n", "unknown key evaluate.mod", "did you mean evaluate.mode?"),
        (TRAIN + PACK + "[clock]\nseconds = 1\n", "unknown key clock.seconds", "did you mean clock.max_seconds?"),
        (TRAIN + PACK + '[matrix]\npack.bugdet = ["1MB"]\n', "unknown key pack.bugdet", "did you mean pack.budget?"),
        (TRAIN, "a pipeline needs a table [pack] with a budget", None),
        (TRAIN + "[pack]\n", "pack.budget is missing", None),
        (TRAIN + "[pack]\nbudget = 1.5\n", "pack.budget must be str, got 1.5", None),
        (TRAIN + '[pack]\nbudget = "lots"\n', "budget must be a number of bytes", None),
        (TRAIN + PACK + 'method = "magic"\n', "method must be one of gptq, rtn, trellis, got 'magic'", None),
        (TRAIN + PACK + "method = [1]\n", "pack.method must be str, got [1]", None),
        (TRAIN + PACK + "stats_ = 1\n", "unknown key pack.stats_", "did you mean pack.stats?"),
        (TRAIN + PACK + "stetes = 4\n", "unknown key pack.stetes", "did you mean pack.states?"),
        (TRAIN + PACK + "options = {}\n", "unknown key pack.options", None),
        ("[pack]\nstates = 4\n[train]\n", "pack.budget is missing", None),
        (
            TRAIN + PACK + 'method = "gptq"\nstates = 4\n',
            "pack.states is not an option of method gptq",
            "leave it out, or choose method trellis",
        ),
        (
            TRAIN + PACK + 'method = "rtn"\nemit_decoder = true\n',
            "pack.emit_decoder is not for artifacts of method rtn",
            None,
        ),
        (TRAIN + PACK + 'tune = "no"\n', "pack.tune must be bool, got 'no'", None),
        (TRAIN + PACK + "states = 5\n", "states must be one of 1, 4, 8, 16, 32, 64, 256, got 5", None),
        (TRAIN + PACK + "widths = [5, 40]\n", "widths of method trellis must be among 2,3,4,5,6,7,8,16, got 5,40", None),
        (TRAIN + PACK + 'widths = "5,6"\n', "pack.widths must be a list, got '5,6'", None),
        (TRAIN + PACK + 'widths = ["5"]\n', "pack.widths[0] must be int, got '5'", None),
        (TRAIN + PACK + 'checkpoint = "m.pt"\n', "give [train] or pack.checkpoint, not both", None),
        (PACK, "nothing to pack: give [train], or pack.checkpoint", None),
        (PACK + 'checkpoint = "m.pt"\n[data]\ntrain = "stdlib"\n', "[data] is what [train] reads", None),
        (TRAIN + PACK + 'stats = "s"\n', "pack.stats belongs to pack.checkpoint", None),
        (TRAIN + 'config = "c.toml"\n' + PACK, "give train.preset or train.config, not both", None),
        ('[train]\npreset = "demmo"\n' + PACK, "no file and no preset is named demmo", "did you mean demo?"),
        ('[train]\npreset = "c.toml"\n' + PACK, "train.preset must be a preset's name, got 'c.toml'", "a file is train.config"),
        ('[train]\nconfig = "c.toml"\n' + PACK, "cannot read config", None),
        (TRAIN + "processes = 0\n" + PACK, "train.processes must be 1 to 1024, got 0", None),
        (TRAIN + 'processes = "8"\n' + PACK, "train.processes must be int, got '8'", None),
        (TRAIN + PACK + '[calibrate]\nsource = "web"\n', "calibration source must be self, random", None),
        (PACK + 'checkpoint = "m.pt"\n[calibrate]\nsource = "train"\n', "calibrate.source train needs [train]", None),
        (PACK + 'checkpoint = "m.pt"\n[evaluate]\nmode = "chunked"\n', "evaluate has no text", None),
        (PACK + 'checkpoint = "m.pt"\n[evaluate]\ntext = "t"\n', "evaluate needs evaluate.tokenizer or pack.tokenizer", None),
        (TRAIN + PACK + '[evaluate]\ntext = "t"\ntokens = "x"\n', "give evaluate.text or evaluate.tokens, not both", None),
        (TRAIN + PACK + '[evaluate]\nmode = "fast"\n', "mode must be one of chunked, sliding, document, got 'fast'", None),
        (TRAIN + PACK + '[data]\nsources = ["a"]\nval = "text:b"\n', "give data.sources or data.train and data.val", None),
        (TRAIN + PACK + '[data]\nsources = ["a"]\n', "data.sources needs data.tokenizer", None),
        (TRAIN + PACK + '[clock]\ninside = ["pakc"]\n', "clock.inside must be among data, train", None),
        (TRAIN + PACK + "[clock]\nmax_seconds = -1\n", "clock.max_seconds must be at least 0", None),
        (TRAIN + PACK + "[matrix]\npack.budget = 3\n", "matrix.pack.budget must be a list of one value or more, got 3", None),
        (TRAIN + PACK + "[matrix]\nseed = [1]\n", "matrix.seed must name a key of a stage, like pack.budget", None),
        (TRAIN + PACK + "[matrix]\ntrain.seed = [1, 1]\n", "matrix.train.seed holds 1 twice", None),
        (TRAIN + PACK + '[matrix]\npack.budget = ["1/MB", "1 MB"]\n', "two cells would be named pack.budget=1_MB", None),
        ("pack = 3\n", "pack must be a table, got 3", None),
        ("pack = ", "is not TOML", None),
    ],
)
def test_mistakes_are_named(tmp_path, text, message, hint):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert hint is None or caught.value.hint == hint


def test_a_stride_that_does_not_fit_the_sequences_of_training_is_named(tmp_path):
    text = TRAIN + "seq_len = 32\nbatch_tokens = 64\nmicro_batch_tokens = 64\n" + PACK
    (cell,) = read(tmp_path, text + '[evaluate]\nmode = "sliding"\n')
    with pytest.raises(ConfigError, match="stride must be 1 to seq_len 32, got 64"):
        build(cell.config, FileHashes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PACK + 'checkpoint = "absent.pt"\n', "pack.checkpoint: cannot read .*absent.pt: No such file"),
        (TRAIN + PACK + 'code = ["absent.py"]\n', "pack.code: cannot read .*absent.py"),
        (TRAIN + PACK + '[evaluate]\ntext = "absent.txt"\n', "evaluate.text: cannot read .*absent.txt"),
        (TRAIN + PACK + '[evaluate]\ntokens = "absent_*.bin"\n', "evaluate.tokens: no token shard matches .*absent_"),
        (TRAIN + PACK + '[calibrate]\nsource = "text:absent.txt"\n', "calibrate.source: cannot read .*absent.txt"),
        (TRAIN + PACK + '[data]\ntrain = "text:a"\ntokenizer = "t"\n', "data.train: cannot read .*a: No such"),
    ],
)
def test_a_missing_file_is_named_before_anything_runs(tmp_path, text, message):
    cells = read(tmp_path, text)
    with pytest.raises(QuantlabError, match=message):
        plan_pipeline(cells, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_mean_the_same_have_one_key(tmp_path):
    def keys(text, changes=()):
        return {stage.name: stage.key for stage in build(read(tmp_path, text, changes)[0].config, FileHashes()).stages}

    base = keys(TRAIN + PACK)
    assert keys(TRAIN + PACK, ["pack.budget=60000", "evaluate.seq_len=256", "pack.method=trellis", "data.workers=2"]) == base
    changed = keys(TRAIN + PACK, ["calibrate.seed=1"])
    assert {name for name in base if base[name] != changed[name]} == {"calibrate", "pack", "evaluate", "report"}
    changed = keys(TRAIN + PACK, ["pack.states=4"])
    assert {name for name in base if base[name] != changed[name]} == {"pack", "evaluate", "report"}
    changed = keys(TRAIN + PACK, ["evaluate.mode=sliding"])
    assert {name for name in base if base[name] != changed[name]} == {"evaluate", "report"}


def test_a_key_is_of_the_content_of_files_not_of_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.pt").write_bytes(b"weights")
        (tmp_path / name / "p.toml").write_text(PACK + 'checkpoint = "m.pt"\n')

    def key(name):
        return build(read_pipeline(tmp_path / name / "p.toml")[0].config, FileHashes()).pack.stage.key

    assert key("a") == key("b")
    (tmp_path / "b" / "m.pt").write_bytes(b"Weights")
    assert key("a") != key("b")


def test_the_examples_are_whole_pipelines(tmp_path):
    (laptop,) = plan_pipeline(read_pipeline(EXAMPLES / "laptop.toml"), tmp_path / "out")
    assert [p.stage.name for p in laptop.stages] == ["data", "train", "calibrate", "pack", "evaluate", "report"]
    assert laptop.cell.config.train.config.max_seconds == 0  # it must resume to the same bytes
    shards, model = tmp_path / "data/datasets/fineweb10B_sp8192", tmp_path / "data/tokenizers/fineweb_8192_bpe.model"
    for folder in (shards, model.parent, tmp_path / "examples"):
        folder.mkdir(parents=True)
    for split in ("train", "val"):
        write_shard(shards / f"fineweb_{split}_000000.bin", [1, 2, 3])
    model.write_bytes(b"model")
    (tmp_path / "examples/eight_h100.toml").write_bytes((EXAMPLES / "eight_h100.toml").read_bytes())
    plans = plan_pipeline(read_pipeline(tmp_path / "examples/eight_h100.toml"), tmp_path / "out")
    assert [plan.cell.name for plan in plans] == ["train.seed=1337", "train.seed=42", "train.seed=2025"]
    assert len({p.stage.key for plan in plans for p in plan.stages if p.stage.name == "data"}) == 1
    config = plans[0].cell.config
    assert (config.train.processes, config.evaluate.processes, config.clock.max_seconds) == (8, 8, 600)


def test_a_training_file_is_written_as_it_is_read():
    values = {"steps": 3, "lr": 1e-08, "on": True, "text": 'a"\\\n\u00e9\x7f', "model": {"dim": 4, "data": "x"}}
    assert parse_value("3") == 3
    import tomllib

    assert tomllib.loads(to_toml(values)) == values
