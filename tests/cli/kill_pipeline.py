"""Run a pipeline that is killed with SIGKILL once in every stage, then to its end. Usage: kill_pipeline.py P.toml DIR

Each run is a fork of one process that has imported everything and computed nothing. Prints a JSON line for each.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401 - the first optimizer step would import it, in every fork

from quantlab import child_process as child
from quantlab.cli.main import run
from quantlab.jobs import pack
from quantlab.methods.trellis import rounder
from quantlab.pipeline import packing_stages as calibrate
from quantlab.pipeline import packing_stages as report
from quantlab.pipeline import result
from quantlab.pipeline import training_stages as data
from quantlab.trainer import training_loop as training


def kill(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(module, name, count=1):
    """Let `module.name` be called `count - 1` times."""
    calls, real = [0], getattr(module, name)

    def dying(*args, **options):
        calls[0] += 1
        if calls[0] == count:
            kill()
        return real(*args, **options)

    setattr(module, name, dying)


POINTS = {
    "data, between two files": lambda: kill_at(data, "write_shard", 2),
    "train, after 3 of 6 steps": lambda: kill_at(training, "save_checkpoint", 4),
    "calibrate, before its only file": lambda: kill_at(calibrate, "write_statistics"),
    "pack, after 3 tensors": lambda: kill_at(rounder, "round_on_paths", 4),
    "pack, when the file is read back": lambda: kill_at(pack, "_verify"),
    "evaluate, with its process at work": lambda: kill_at(child, "_follow"),
    "report": lambda: kill_at(report, "render"),
    "between the results' files": lambda: kill_at(result, "_write_new", 2),
    "": lambda: None,
}


def main(pipeline, folder):
    for point, patch in POINTS.items():
        pid = os.fork()
        if pid == 0:
            patch()
            os.dup2(2, 1)  # what it prints is not ours
            os._exit(run(["run", pipeline, "--out", folder]))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        done = sorted(path.parent.name.partition("-")[0] for path in Path(folder).glob("*/stage.json"))
        print(json.dumps({"point": point, "code": code, "done": done}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
