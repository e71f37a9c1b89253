"""No two files of the package import each other in a loop, however long."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "aligngpt"


def module_of(file: Path) -> str:
    parts = ("aligngpt", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, at any depth and also only for type checkers."""
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                # `from a import b` is of the module b where there is one.
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {one if one in files else node.module for one in full}
        found[module] = {name for name in names if name in files and name != module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that can all be reached from each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(one: str) -> None:
        index[one] = low[one] = len(index)
        stack.append(one)
        for other in graph[one]:
            if other not in index:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], index[other])
        if low[one] == index[one]:
            group = [stack.pop()]
            while group[-1] != one:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return groups


def test_no_files_import_each_other_in_a_loop() -> None:
    graph = imports()
    assert len(graph) > 100
    # The package's face imports the model lazily, which imports the package.
    graph["aligngpt"] = set()
    assert circles(graph) == []


def test_a_loop_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
