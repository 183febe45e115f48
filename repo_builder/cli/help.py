"""How ``--help`` looks: options in groups, nothing cut and nothing broken off at any width.

One table says to which group an option belongs, whatever its verb, so that one word means one thing.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

import click

# Title → its options. "perf --version" is the option of one verb; what stands nowhere comes last.
GROUPS: dict[str, str] = {
    "Model and data": (
        "--recipe --checkpoint --data --data-dir --input-data --string-length --set --argument --resume --device "
        "--seed --no-accuracy"
    ),
    "Search": (
        "--search --also --max-drop --objective --budget --trials --patience --rounds --timings --storage --fresh "
        "--apply"
    ),
    "What is searched": "--instances --max-batch-size --queue-delay-us --threads --preferred --build",
    "Precision and target": "--target --allow-precision-mismatch --accept-departure --trust-code",
    "Server": (
        "--url --protocol --runtime --host --http-port --grpc-port --metrics-port --model --image --backend-directory "
        "--mps --open-control --metrics-url --timeout --load-timeout --header --cores --repository --print-command"
    ),
    "Left running": "--detach --status --stop --restart --all",
    "Encryption": "--tls --ca-file --cert-file --key-file --insecure",
    "Load": (
        "--concurrency --batch-size --request-rate --poisson --trace --max-p99-ms --max-in-flight --shape "
        "--max-concurrency --shared-memory --workers --sequence-length --priority --request-timeout-us"
    ),
    "How long each load is measured": (
        "--duration --requests --window-ms --window-requests --max-windows --stability-percent --stability-percentile"
    ),
    "Tensors and batches": (
        "--name --backend --dims --no-dynamic-batching --preferred-batch-size --max-queue-delay-us "
        "--response-cache --warmup --warmup-dims"
    ),
    "Instances and backend": "--instance-count --instance-kind --parameter",
    "Comparison": "--explain --baseline --accuracy-tolerance --latency-tolerance --strict",
    "Output": "--output --work --version --keep-versions --force --half --json --csv --report --raw",
}
REST = "Other options"
_OF_A_VERB = {
    "build --seed": "Search",
    "config --max-batch-size": "Tensors and batches",
    "tune --seed": "Search",
    "tune --max-p99-ms": "Search",
    "perf --version": "Server",
    "perf --work": "Model and data",
    "repo-builder --version": REST,
}
_PLACES = {name: title for title, names in GROUPS.items() for name in names.split() if name.startswith("--")}
# What options were called before; they go on working and are not shown.
FORMER = frozenset({"--dataset", "--model-version", "--timeout-s"})
# The same of one verb, where others mean something else by that word.
FORMER_OF = {"sense": ("--output",), "serve": ("--timeout",)}
_KINDS = (("INTEGER RANGE", "N"), ("FLOAT RANGE", "NUMBER"), ("INTEGER", "N"), ("FLOAT", "NUMBER"))
_LEAST, _INDENT = 40, 4
_WORD = r"(?:\"[^\"]*\"|'[^']*'|\S)+"
_WORDS = re.compile(rf"--[\w-]+ (?!-){_WORD}|{_WORD}")  # an option stays with its value


class Formatter(click.HelpFormatter):
    """Writes options in groups, and examples that do not fit in lines that do.

    Args:
        verb: Whose help it is.
        width: Columns.
        max_width: Columns beyond which lines are not read easily.
    """

    def __init__(self, verb: str, width: int | None, max_width: int | None) -> None:
        super().__init__(width=width, max_width=max_width)
        self._verb, self._section = verb, ""

    def write_heading(self, heading: str) -> None:
        """Write a heading; that of all options waits for those of the groups."""
        self._section = heading
        if heading != "Options":
            super().write_heading(heading)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write options or verbs, and what they are."""
        narrow = min(col_max, max(12, self.width // 3))
        if self._section != "Options":
            super().write_dl(list(rows), col_max=narrow, col_spacing=col_spacing)
            return
        sorted_rows: dict[str, list[tuple[str, str]]] = {}
        for names, said in rows:
            name = shown(names, self._verb)
            spaced = re.sub(r"\s+\[default", "  [default", said)
            sorted_rows.setdefault(group(self._verb, name), []).append((name, spaced))
        self.dedent()
        titles = [title for title in (*GROUPS, REST) if title in sorted_rows]
        for place, title in enumerate(titles):
            if place:
                self.write_paragraph()
            super().write_heading(title if len(titles) > 1 else "Options")
            self.indent()
            super().write_dl(sorted_rows[title], col_max=narrow, col_spacing=col_spacing)
            self.dedent()
        self.indent()

    def write_text(self, text: str) -> None:
        """Write paragraphs; one that begins with a backspace character holds examples, a line each."""
        for place, paragraph in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
            if place:
                self.write_paragraph()
            lines = paragraph.split("\n")
            if lines[0].strip() == "\b":
                for line in lines[1:]:
                    self._write_lines(_example(line.strip(), max(_LEAST, self.width - self.current_indent)))
            else:
                super().write_text(paragraph)

    def _write_lines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(f"{'':>{self.current_indent}}{line}\n")


def group(verb: str, names: str) -> str:
    """Return the title of the group that an option of a verb belongs to."""
    found = re.search(r"--[\w-]+", names)
    name = found[0] if found else ""
    return _OF_A_VERB.get(f"{verb} {name}") or _PLACES.get(name, REST)


def shown(names: str, verb: str = "") -> str:
    """Return an option's names and value without former names and programmers' words."""
    for former in (*FORMER, *FORMER_OF.get(verb, ())):
        names = names.replace(f", {former} ", " ").replace(f"{former}, ", "")
    for said, short in _KINDS:
        names = names.replace(said, short)
    return names


def _example(line: str, width: int) -> Iterator[str]:
    """Yield an example in lines of a width: a remark behind it goes above it, a command goes on behind a backslash."""
    if len(line) <= width:
        yield line
        return
    command, _, remark = (part.strip() for part in line.partition("   "))
    if remark:
        yield from textwrap.wrap(remark, width, initial_indent="# ", subsequent_indent="# ")
    current = ""
    for word in re.findall(_WORDS, command):
        longer = f"{current} {word}" if current else word
        if len(longer) > width - 2 and current.strip():
            yield f"{current} \\"
            longer = " " * _INDENT + word
        current = longer
    yield current


class Context(click.Context):
    """A verb's context, whose help is written by ``Formatter``."""

    def make_formatter(self) -> click.HelpFormatter:
        """Return the formatter of this verb."""
        return Formatter(self.info_name or "", self.terminal_width, self.max_content_width)


def dress(command: click.Command) -> click.Command:
    """Have a command, and those below it, write their help so."""
    command.context_class = Context
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        dress(below)
    return command
