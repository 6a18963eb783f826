"""Pipelines: data, training, calibration, packing, evaluation and report as one file says, and only what is not up to date."""
