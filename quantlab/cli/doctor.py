"""quantlab doctor"""

from typing import Any

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
    kernels = found.pop("kernels")
    for key, value in found.items():
        print(f"{key:<14} {'none' if value is None else value}")
    for check in kernels:
        print(f"kernel         {check['kernel']:<22} {check['runs_as']:<7} {_agreement(check)}")


def _agreement(check: dict[str, Any]) -> str:
    if check["runs_as"] == "twin" and check["against"].startswith("twin"):
        return "no GPU: nothing to compare"
    return f"differs from {check['against']} by {check['error']:.1e}, allowed {check['allowed']:.1e}"
