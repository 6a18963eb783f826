"""Turn formulas into MathML when the site is built: browsers draw it themselves, without a script or a font of ours."""

import re
from html import unescape

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_LEFT_OVER = re.compile(r"\\\w+|(?<=>)[&{}](?=<)")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas that pymdownx.arithmatex marked; a `div` is a formula on a line of its own."""

    def mathml(match: re.Match[str]) -> str:
        tag, _, latex = match.groups()
        try:
            math = convert(unescape(latex).strip(), display="block" if tag == "div" else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: the formula {latex.strip()} cannot be read: {error!r}") from error
        if unknown := _LEFT_OVER.search(math):  # a name that the converter does not know goes through as it is
            raise PluginError(f"{page.file.src_uri}: the formula {latex.strip()} has {unknown[0]}, which is not known")
        # a wide formula scrolls within its box on a phone, and the box can be reached with the keyboard
        return f'<div class="formula" tabindex="0">{math}</div>' if tag == "div" else math

    return _FORMULA.sub(mathml, html)
