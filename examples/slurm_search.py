"""A search on Slurm through submitit: python examples/slurm_search.py examples/search.toml

Several jobs work on one folder of the search, which lies on the shared file system; a job that is preempted is queued
again, and the next search begins its trial once more. Not run on a cluster yet.
"""

import shlex
import subprocess
import sys

JOBS = 4
SEARCH = "quantlab search run {space} --runs runs"


def work(space: str) -> None:
    """Go on with the search, as one of several."""
    subprocess.run(shlex.split(SEARCH.format(space=shlex.quote(space))), check=True)


def main(space: str) -> None:
    """Queue the jobs and return."""
    import submitit

    executor = submitit.AutoExecutor(folder="slurm_logs")
    executor.update_parameters(timeout_min=12 * 60, gpus_per_node=1, cpus_per_task=8, mem_gb=64, slurm_array_parallelism=JOBS)
    for job in executor.map_array(work, [space] * JOBS):
        print(job.job_id)


if __name__ == "__main__":
    main(sys.argv[1])
