"""Digests of the code of components, for installations whose version does not determine the code.

A distribution that was installed from an index and not edited is identified by its version. For any other one
(editable, installed from a folder, a repository or a file, or edited in place) the code of a component is the module
of its class and the modules of the same distribution that this one imports, directly or indirectly. Comments, layout
and docstrings do not count. Imports whose module name is computed at run time and data files are not seen.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

_FOREIGN = {"site-packages", "dist-packages"}


class _Module(NamedTuple):
    """The digest of a module's code, and the names of what it imports: for each import (module, names from it)."""

    digest: str
    imports: tuple[tuple[str, tuple[str, ...]], ...]


@cache
def code_digest(module: str, distribution_name: str) -> str | None:
    """SHA-256 of the code that a module of a distribution consists of, as 64 hex digits.

    None where the version of the distribution determines the code, and where the module has no file.
    """
    own = _own_files(distribution_name)
    if own is None or (path := _file_of(module)) is None:
        return None
    digests: dict[str, str] = {}
    todo = [(module, path)]
    while todo:
        name, path = todo.pop()
        if name in digests or not own.contains(path):
            continue
        read = _read(path, name)
        digests[name] = read.digest
        todo += [(found, file) for found in _modules_of(read) if (file := _file_of(found)) is not None]
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


class _Own(NamedTuple):
    """The files of a distribution: those listed, or all below a folder that are not installed packages."""

    listed: frozenset[Path]
    folder: Path | None

    def contains(self, path: Path) -> bool:
        if self.folder is None:
            return path in self.listed
        return path.is_relative_to(self.folder) and not _FOREIGN & set(path.relative_to(self.folder).parts)


@cache
def _own_files(name: str) -> _Own | None:
    """The files of a distribution, or None where its version determines them."""
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return None
    origin = json.loads(installed.read_text("direct_url.json") or "null")
    if origin is not None and origin.get("dir_info", {}).get("editable"):
        return _Own(frozenset(), Path(url2pathname(urlparse(origin["url"]).path)).resolve())
    if origin is None and _unmodified(installed):
        return None
    return _Own(frozenset(Path(str(file.locate())).resolve() for file in installed.files or ()), None)


def _unmodified(installed: Distribution) -> bool:
    """Whether the modules of a distribution are those that were installed, by the digests in its RECORD."""
    for file in installed.files or ():
        if file.suffix in (".py", ".so", ".pyd") and file.hash is not None:
            try:
                digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
            except (OSError, ValueError):  # removed, or of an unknown kind
                return False
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return False
    return True


@cache
def _read(path: Path, name: str) -> _Module:
    content = path.read_bytes()
    if path.suffix != ".py":
        return _Module(hashlib.sha256(content).hexdigest(), ())
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # it cannot be imported, and every edit counts
        return _Module(hashlib.sha256(content).hexdigest(), ())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = tuple(_imports(tree, package))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return _Module(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports)


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The imports in a syntax tree, without those for type checkers alone."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, ()) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield base, tuple(alias.name for alias in node.names)
    else:
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            children = node.orelse
        for child in children:
            yield from _imports(child, package)


def _modules_of(read: _Module) -> Iterator[str]:
    """The modules that a module imports. `from package import module` does not need the package's own code."""
    for base, names in read.imports:
        submodules = [f"{base}.{name}" for name in names if _file_of(f"{base}.{name}") is not None]
        yield from submodules
        if len(submodules) < len(names) or not names:
            yield base


@cache
def _file_of(module: str) -> Path | None:
    """The file of a module, found without importing anything; None if it has none."""
    spec = _spec_of(module)
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin).resolve()


@cache
def _spec_of(module: str) -> ModuleSpec | None:
    parent, _, name = module.rpartition(".")
    if not parent:
        if name in sys.stdlib_module_names:
            return None
        try:
            return find_spec(name)
        except (ImportError, ValueError):  # ValueError: a module without a spec, such as __main__
            return None
    package = _spec_of(parent)
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(module, list(package.submodule_search_locations))
