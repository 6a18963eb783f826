"""The decoder as counted code: standalone.py with short names and no spare characters, compressed inside one `exec`.

Records of the challenge wrap their own code in the same way: minified, LZMA or deflate, base85. The minifier is made for the
plain style of standalone.py and refuses what it does not handle.
"""

import ast
import base64
import io
import itertools
import keyword
import lzma
import re
import string
import tokenize
import zlib
from importlib import resources

PUBLIC = "load"
"""Name of the function that the emitted file defines."""


def emit_decoder() -> bytes:
    """Return a Python file in ASCII that defines `load` of standalone.py; one version of Python always gives the same bytes."""
    module = resources.files("quantlab.artifact") / "standalone.py"
    source = minify(module.read_text("utf-8")).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    wrapped = [
        _wrapped("lzma", lzma.compress(source, lzma.FORMAT_RAW, filters=filters), "3,None,[{'id':33}]"),
        _wrapped("zlib", deflate.compress(source) + deflate.flush(), "-15"),
    ]
    return min(wrapped, key=len)


def _wrapped(module: str, packed: bytes, options: str) -> bytes:
    text = base64.b85encode(packed).decode()
    return f'import base64,{module}\nexec({module}.decompress(base64.b85decode("{text}"),{options}))\n'.encode()


def is_decoder(data: bytes) -> bool:
    """Return whether a file looks like one that `emit_decoder` wrote, in this version or another."""
    return re.match(rb"import base64,(lzma|zlib)\nexec\(", data) is not None


def minify(source: str) -> str:
    """Return the same program, short: without docstrings, comments, annotations and what only those use; with short names.

    PUBLIC, its arguments, attributes and keywords of calls keep their names.

    Raises:
        ValueError: the source has something that this does not handle: a class, an f-string, a keyword for its own function,
            and so on; the line is named.
    """
    tree = _Stripped().visit(ast.parse(source))
    _drop_unused_(tree)
    _rename_(tree)
    ast.fix_missing_locations(tree)
    short = _squeezed(ast.unparse(tree))
    assert ast.dump(ast.parse(short)) == ast.dump(tree), "squeezing changed the program"
    return short


class _Stripped(ast.NodeTransformer):
    """Remove docstrings and annotations."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign | None:
        return ast.Assign([node.target], node.value) if node.value else None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node


def _drop_unused_(tree: ast.Module) -> None:
    """Remove the imports, constants and functions of the module that nothing names, until all that are left are named."""
    used = {PUBLIC} | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    needed = [statement for statement in tree.body if used.intersection(_bound_by(statement))]
    if len(needed) < len(tree.body):
        tree.body = needed
        _drop_unused_(tree)


def _bound_by(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of the module binds there."""
    match statement:
        case ast.Import(names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.FunctionDef(name) | ast.Assign([ast.Name(name)]):
            return [name]
    raise ValueError(f"line {statement.lineno}: {type(statement).__name__} outside functions is not handled by the minifier")


def _rename_(tree: ast.Module) -> None:
    """Give the names of the module, and those of each function, new ones that do not occur in the source.

    PUBLIC, its arguments, and modules imported under their own name keep their names.
    """
    _refuse_unhandled(tree)
    functions = {statement.name: statement for statement in tree.body if isinstance(statement, ast.FunctionDef)}
    unchanged = {PUBLIC, *(argument.arg for argument in functions[PUBLIC].args.args)}
    taken = unchanged | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    outer = [name for statement in tree.body if not _is_plain_import(statement) for name in _bound_by(statement)]
    new = _short_names(outer, unchanged, taken)
    for statement in tree.body:
        is_function = isinstance(statement, ast.FunctionDef)
        inner = [name for node in ast.walk(statement) for name in _bound_in(node)] if is_function else []
        _replace_(statement, new | _short_names(inner, unchanged, taken | set(new.values())))


def _refuse_unhandled(tree: ast.Module) -> None:
    functions = {statement.name for statement in tree.body if isinstance(statement, ast.FunctionDef)}
    unhandled = (ast.ClassDef, ast.AsyncFunctionDef, ast.Lambda, ast.Global, ast.Match, ast.Try, ast.JoinedStr)
    for node in ast.walk(tree):
        if isinstance(node, unhandled) or (isinstance(node, ast.FunctionDef) and node not in tree.body):
            raise ValueError(f"line {node.lineno}: {type(node).__name__} is not handled by the minifier")
        if isinstance(node, ast.Call) and node.keywords and isinstance(node.func, ast.Name) and node.func.id in functions:
            raise ValueError(f"line {node.lineno}: pass arguments of {node.func.id} by position, the minifier renames them")


def _is_plain_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom) and not any(alias.asname for alias in statement.names)


def _bound_in(node: ast.AST) -> list[str]:
    """Return the names that a node binds in the function around it."""
    match node:
        case ast.Name(name, ast.Store()) | ast.arg(name):
            return [name]
    return []


def _short_names(names: list[str], unchanged: set[str], taken: set[str]) -> dict[str, str]:
    """Return a new name for each, in the order in which they come."""
    letters = string.ascii_letters
    short = (*letters, *map("".join, itertools.product(letters, letters)))
    free = [name for name in short if name not in taken and not keyword.iskeyword(name)]
    return dict(zip([name for name in dict.fromkeys(names) if name not in unchanged], free, strict=False))


def _replace_(tree: ast.AST, new: dict[str, str]) -> None:
    for node in ast.walk(tree):
        match node:
            case ast.Name():
                node.id = new.get(node.id, node.id)
            case ast.arg():
                node.arg = new.get(node.arg, node.arg)
            case ast.FunctionDef():
                node.name = new.get(node.name, node.name)
            case ast.alias(asname=str(name)):
                node.asname = new.get(name, name)


def _squeezed(source: str) -> str:
    """Return the same tokens with a space only between two words, and one space for a level of indentation."""
    parts, depth = [""], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.INDENT, tokenize.DEDENT):
            depth += 1 if token.type == tokenize.INDENT else -1
        elif token.type == tokenize.NEWLINE:
            parts.append("\n")
        elif token.string.strip():
            if parts[-1] == "\n":
                parts.append(" " * depth)
            elif _is_word(parts[-1][-1:]) and _is_word(token.string[0]):
                parts.append(" ")
            parts.append(token.string)
    return "".join(parts)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
