"""What the fuzz harness takes from the samples of other tests, whose folders are no packages."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.extend(str(TESTS / room) for room in ("", "artifact", "calib", "coding", "models", "report", "runs"))

import report_samples as report_samples  # noqa: E402 (the path comes first)
import run_samples as run_samples  # noqa: E402
from challenge_writers import torch_bytes as torch_bytes  # noqa: E402
from challenge_writers import write_int6 as write_int6  # noqa: E402
from challenge_writers import write_int8 as write_int8  # noqa: E402
from challenge_writers import write_npz as write_npz  # noqa: E402
from test_artifact import payloads as golden_payloads  # noqa: E402, F401
from test_standalone import raw_payloads as raw_payloads  # noqa: E402
from test_standalone import trellis_payload as trellis_payload  # noqa: E402
from test_statistics_file import statistics as statistics  # noqa: E402
