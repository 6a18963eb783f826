"""Stages that several output directories share: what one pipeline has made, another does not make again.

A finished stage is a folder of files that never change, so it is shared by hard links. Its record names every file by hash, and
a pipeline checks them before it believes a stage, wherever it comes from.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from quantlab.pipeline.packing_stages import Pipeline
from quantlab.pipeline.stage_folder import RECORD_NAME

EXPENSIVE = "train"
"""The stage that only one pipeline at a time may make."""


class SharedStages:
    """A folder of finished stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, pipeline: Pipeline, root: Path) -> list[str]:
        """Put the finished stages of a pipeline into the output directory `root`; return the names of the new ones.

        What a killed pipeline has left there of a stage that is shared meanwhile goes.
        """
        taken = []
        for stage in pipeline.stages:
            target = stage.folder(root)
            source = self.folder / target.name
            if (source / RECORD_NAME).is_file() and not (target / RECORD_NAME).is_file():
                shutil.rmtree(target, ignore_errors=True)
                _link(source, target)
                taken.append(target.name)
        return taken

    def give(self, pipeline: Pipeline, root: Path) -> None:
        """Share the finished stages of the output directory `root`; those that are shared already stay."""
        for stage in pipeline.stages:
            source = stage.folder(root)
            target = self.folder / source.name
            if (source / RECORD_NAME).is_file() and not target.exists():
                _link(source, target)

    @contextmanager
    def making(self, pipeline: Pipeline) -> Iterator[None]:
        """Hold the lock of the pipeline's training while the block runs, so that nobody else trains the same."""
        import fcntl

        stage = next((stage for stage in pipeline.stages if stage.name == EXPENSIVE), None)
        if stage is None or (stage.folder(self.folder) / RECORD_NAME).is_file():
            yield
            return
        descriptor = os.open(self.folder / f".{stage.folder(self.folder).name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """Make `target`, whole or not at all, a folder of links to the files of `source`; copies where links cannot be made."""
    partial = Path(mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        shutil.copytree(source, partial, copy_function=_link_file, dirs_exist_ok=True)
        partial.chmod(0o755)
        partial.rename(target)
    except FileExistsError:
        pass  # somebody else was faster
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
