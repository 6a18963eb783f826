"""quantlab doctor"""

from quantlab.cli import options
from quantlab.cli.display import print_json


def doctor(
    as_json: options.Json = False,
) -> None:
    """Say what this machine can do, and check that a packed tensor comes back as it was.

    Example: quantlab doctor --json
    """
    from quantlab.pipeline.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        print(f"{key:<14} {'none' if value is None else value}")
