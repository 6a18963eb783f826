"""A search on Modal that goes on detached: modal run --detach examples/modal_search.py

The folder of the search and the recorded runs lie on a volume, so that a container that is taken
away loses the trial at work alone. Not run on Modal yet.
"""

import shlex
import subprocess

import modal

SEARCH = "quantlab search run /data/space.toml --out /data/search --runs /data/runs"
REPORT = "quantlab search report /data/space.toml --out /data/search"

app = modal.App("quantlab-search")
volume = modal.Volume.from_name("quantlab-search", create_if_missing=True)
image = modal.Image.debian_slim(python_version="3.12").pip_install("quantlab-llm[search,share]")


@app.function(image=image, gpu="H100", volumes={"/data": volume}, timeout=24 * 3600, retries=3)
def search() -> None:
    """Go on with the search of /data/space.toml; put it and its pipeline there with `modal volume put`."""
    try:
        subprocess.run(shlex.split(SEARCH), check=True)
        subprocess.run(shlex.split(REPORT), check=True)
    finally:
        volume.commit()


@app.local_entrypoint()
def main() -> None:
    """Start the search and return."""
    search.spawn()
