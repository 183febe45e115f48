"""Pages of the site that are made of what is elsewhere: examples as tutorials, the references from the code.

mkdocs calls the functions whose names begin with ``on_``. Run as a program, it prints a page, as ``reference/cli.md``.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import repo_builder as rb
from repo_builder import api, cli
from repo_builder.cli import help as grouping

ROOT = Path(__file__).resolve().parents[1]
# page → the example that it is
TUTORIALS = {
    "tutorials/onnx.md": "examples/01_onnx",
    "tutorials/resnet.md": "examples/02_torch",
    "tutorials/outputs.md": "examples/03_two_outputs",
    "tutorials/transformer.md": "examples/04_transformer",
    "tutorials/ci.md": "examples/05_ci",
}
_LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".yml": "yaml"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def tutorial(page: str) -> str:
    """Return an example's README with its files behind it; links lead to pages of the site."""
    folder = ROOT / TUTORIALS[page]
    pages = {f"{example}/README.md": name for name, example in TUTORIALS.items()}

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(f"{TUTORIALS[page]}/{found[3]}")
        if target in pages:
            return f"[{found[2]}]({posixpath.relpath(pages[target], 'tutorials')})"
        if target.startswith("docs/"):
            return f"[{found[2]}](../{target.removeprefix('docs/')})"
        return f"[{found[2]}](#{re.sub(r'[^a-z0-9_-]', '', found[3].lower())})"

    text = _LINK.sub(led, (folder / "README.md").read_text(encoding="utf-8"))
    where = f"These files are in `{TUTORIALS[page]}` of the source tree; the test suite runs what is marked there."
    parts = [_plain(text), f"## The files\n\n{where}"]
    for file in sorted(folder.iterdir()):
        if file.suffix in _LANGUAGES:
            content = file.read_text(encoding="utf-8").rstrip()
            parts.append(f"### {file.name}\n\n```{_LANGUAGES[file.suffix]}\n{content}\n```")
    return "\n\n".join(parts) + "\n"


def reference_cli() -> str:
    """Return every verb's help, with its options in groups."""
    parts = ["# Command line", "", "Every verb takes `--help` and `--debug`, which shows tracebacks.", ""]
    for name, command in commands():
        usage = " ".join(command.collect_usage_pieces(click.Context(command)))
        told = inspect.cleandoc(command.help or "")
        prose, _, examples = told.partition("\n\b\n")
        parts += [f"## {name}", "", f"`repo-builder {name} {usage}`", "", prose.strip(), ""]
        if examples.strip():
            parts += ["```bash", *(re.sub(r" {3,}", "  # ", line.strip()) for line in examples.splitlines()), "```", ""]
        parts += list(_options(name.split()[0], command))
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every verb, and those below it."""
    for verb in cli.VERBS:
        command = cli.group.get_command(click.Context(cli.group), verb)
        if command is not None:
            yield verb, command
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", below) for name, below in command.commands.items())


def _options(verb: str, command: click.Command) -> Iterator[str]:
    rows: dict[str, list[str]] = {}
    for item in command.params:
        record = item.get_help_record(click.Context(command)) if isinstance(item, click.Option) else None
        if record and "--debug" not in item.opts:
            names = grouping.shown(record[0])
            cells = (f"`{names}`", record[1].replace("|", "\\|"))
            rows.setdefault(grouping.group(verb, names), []).append(f"| {cells[0]} | {cells[1]} |")
    for title in (*grouping.GROUPS, grouping.REST):
        if title in rows:
            yield from (f"| {title} | |", "|---|---|", *rows[title], "")


def reference_python() -> str:
    """Return signatures and docstrings of what ``import repo_builder`` gives."""
    parts = [
        "# Python names",
        "",
        "What `import repo_builder as rb` gives; [From Python](../python.md) shows how it is used.",
        "",
    ]
    for name in rb.__all__:
        value = getattr(api, name, None) or getattr(rb, name)
        parts += [f"## {name}", ""]
        if inspect.isfunction(value) or name == "PerfResult":
            parts += ["```python", _signature(name, value), "```", ""]
        parts += [_docstring(value), ""]
        for method in sorted(vars(value)) if inspect.isclass(value) else ():
            member = inspect.getattr_static(value, method)
            inner = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if not method.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
                shown = method if isinstance(member, property) else _signature(method, inner)
                parts += [f"### {name}.{method}", "", "```python", shown, "```", "", _docstring(inner), ""]
    return "\n".join(parts)


def _signature(name: str, value: Any) -> str:  # noqa: ANN401 - a function or a class
    text = str(inspect.signature(value)).replace("'", "")
    if len(text) + len(name) > 100:
        text = re.sub(r", (?=\*|\w+: )", ",\n    ", text.replace("(", "(\n    ", 1))
    return f"{name}{text}"


def _docstring(value: Any) -> str:  # noqa: ANN401 - as above
    """Return a Google docstring as Markdown: ``Args`` and the like become lists."""
    lines, found, listing = inspect.cleandoc(value.__doc__ or "").splitlines(), list[str](), False
    for line in lines:
        if re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            found, listing = [*found, f"**{line[:-1]}**", ""], True
        elif listing and re.match(r" {4}\S", line) and ":" in line:
            name, _, said = line.strip().partition(":")
            found.append(f"- `{name}`:{said}")
        elif listing and line.startswith(" " * 8):
            found[-1] += f" {line.strip()}"
        else:
            listing = listing and not line.strip()
            found.append(line)
    return "\n".join(found).replace("``", "`")


def _plain(text: str) -> str:
    """Return Markdown whose blocks are of plain languages: ``run`` is a word of the test suite."""
    return re.sub(r"^```(\w+) run$", r"```\1", text, flags=re.MULTILINE)


def pages() -> dict[str, str]:
    """Return every page that is made: its path → its Markdown."""
    made = {page: tutorial(page) for page in TUTORIALS}
    return {**made, "reference/cli.md": reference_cli(), "reference/python.md": reference_python()}


def on_config(config: Any) -> Any:  # noqa: ANN401 - mkdocs's
    """Put pages of docs/ that the navigation does not name behind those that say how things work."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    section = next(item["How it works"] for item in config.nav if isinstance(item, dict) and "How it works" in item)
    section.extend(item.name for item in sorted((ROOT / "docs").glob("*.md")) if item.name not in named)
    return config


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - mkdocs's
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401 - mkdocs's
    """Say where a file of the source tree is, as no page of the site shows it."""

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), found[3]))
        inside = target.startswith("docs/") and not target.endswith(".json")
        return found[0] if inside else f"{found[2]} (`{target}` in the source tree)"

    return _LINK.sub(led, _plain(markdown))


if __name__ == "__main__":
    print(pages()[sys.argv[1]])
