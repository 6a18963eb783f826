"""Run a pipeline that is killed with SIGKILL once in every stage, then to its end. Usage: kill_pipeline.py P.toml DIR

Each run is a fork of one process that has imported everything and computed nothing. Prints a JSON line for each.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401 - the first optimizer step would import it, in every fork

from quantlab import child_process
from quantlab.cli.main import run
from quantlab.jobs import packer
from quantlab.methods.trellis import rounder
from quantlab.pipeline import packing_stages, result, training_stages
from quantlab.trainer import training_loop


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
    "data, between two files": lambda: kill_at(training_stages, "write_shard", 2),
    "train, after 3 of 6 steps": lambda: kill_at(training_loop, "save_checkpoint", 4),
    "calibrate, before its only file": lambda: kill_at(packing_stages, "write_statistics"),
    "pack, after 3 tensors": lambda: kill_at(rounder, "round_with_feedback", 4),
    "pack, when the file is read back": lambda: kill_at(packer, "_verify"),
    "evaluate, with its process at work": lambda: kill_at(child_process, "_follow", 2),  # the first is of reading back
    "report": lambda: kill_at(packing_stages, "render_report"),
    "between the results' files": lambda: kill_at(result, "write_changed", 2),
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
