"""What pages are made of: templates, one style, scripts, and plotly's basic bundle (MIT licence), which each page holds whole.

Nothing on a page is loaded from elsewhere, and a policy in its head forbids it.
"""

import importlib.util
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from quantlab.errors import QuantlabError

PACKAGES = ("jinja2",)
PLOTLY = "plotly-basic.min.js"
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
"""JSON escapes of the characters that could end a script element, or a line of it."""


def check_packages() -> None:
    """Raise QuantlabError unless the packages that make a page are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise QuantlabError(f"an HTML page needs the package {missing[0]}", hint=f"pip install {' '.join(missing)}")


def asset(name: str) -> str:
    """Return a file of this folder as text."""
    return (files("quantlab.report") / name).read_text("utf-8")


def json_in_page(value: Any) -> str:
    """Return JSON that may stand inside a script element. ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def render(template: str, *, scripts: Sequence[str], page_data: Any, policy: str = POLICY, **values: Any) -> str:
    """Return a page: a template of this folder with style, plotly and scripts, which find `page_data` as JSON in the page."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = jinja2.FunctionLoader(asset)
    return environment.get_template(template).render(
        css=asset("page.css"),
        plotly=asset(PLOTLY),
        scripts=[asset(name) for name in scripts],
        page_data=json_in_page(page_data),
        policy=policy,
        **values,
    )
