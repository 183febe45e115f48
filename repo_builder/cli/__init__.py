"""The command line: a group whose verbs are imported when they are called.

``repo-builder --help`` imports click and nothing else. Errors become one sentence on stderr and an exit code
(``repo_builder.core.errors``); a traceback only with ``--debug``. What nobody foresaw is one line too (``bugs.py``).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import click

from repo_builder import __version__
from repo_builder.cli import bugs, help, streams
from repo_builder.core.errors import OutputError, RepoBuilderError, did_you_mean

# verb → (module under repo_builder.cli, one line for --help)
VERBS: dict[str, tuple[str, str]] = {
    "build": ("build", "Build a model repository from a recipe: quantize, export, compile, configure."),
    "compile": ("compile", "Compile an artifact that was exported elsewhere, on the GPU that will serve it."),
    "config": ("config", "Print a config.pbtxt for any ONNX file."),
    "init": ("init", "Write a first recipe for an ONNX file or a torch module."),
    "inspect": ("inspect", "Show what every layer of a plan or an ONNX model became."),
    "layers": ("layers", "List a model's layers, as rules may name them."),
    "perf": ("perf", "Measure a served model: accuracy first, then latency and throughput."),
    "recipes": ("recipes", "List the built-in recipes, or print one to start from."),
    "sense": ("sense", "Measure what each layer gains and costs in a lower precision."),
    "serve": ("serve", "Serve a model repository with Triton, in a container or embedded."),
    "train": ("train", "Train a recipe's model and write a checkpoint."),
    "tune": ("tune", "Search the serving configuration: instances, batches, delay, threads, on the real server."),
    "validate": ("validate", "Check a model repository as Triton would, without starting it."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs' names and one-liners without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one verb's module and return its ``command``."""
        if name not in VERBS:
            return None
        module = importlib.import_module(f"repo_builder.cli.{VERBS[name][0]}")
        command: click.Command = module.command
        if not any(item.name == "debug" for item in command.params):
            command.params.append(debug_option())
        return help.dress(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command '{args[0]}': {did_you_mean(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


def debug_option() -> click.Option:
    """Return the ``--debug`` option, which every verb takes."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["debug"] = True

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, is_eager=True, callback=remember, help="Show tracebacks."
    )


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nrepo-builder build vgg\nrepo-builder serve --detach\nrepo-builder perf vgg",
    params=[debug_option()],
)
@click.version_option(__version__, prog_name="repo-builder")
def group() -> None:
    """From a trained PyTorch or ONNX model to a measured NVIDIA Triton deployment.

    A recipe says which model, which data and which precision every layer gets. `build` makes a model repository of
    it, `serve` starts Triton on that, `perf` proves accuracy and measures latency through the running server.

    Start with the three lines at the end. Your own model: repo-builder init, then build.

    Shell completion: eval "$(_REPO_BUILDER_COMPLETE=bash_source repo-builder)" (also zsh_source, fish_source).
    """


help.dress(group)


def main() -> None:
    """Run the command line and exit with the error's code."""
    if "_REPO_BUILDER_COMPLETE" in os.environ:
        group.main(prog_name="repo-builder")
    try:
        streams.prepare()
        code = run(sys.argv[1:])
    except OutputError as error:
        code = _say(str(error), error.exit_code)
    unwritten = streams.finish()
    sys.exit(_say(str(unwritten), unwritten.exit_code) if unwritten and code == 0 else code)


def run(arguments: list[str]) -> int:
    """Run the command line on ``arguments`` and return the exit code."""
    meta: dict[str, Any] = {}
    try:
        with group.make_context("repo-builder", list(arguments)) as ctx:
            meta = ctx.meta
            group.invoke(ctx)
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        click.echo(f"interrupted: {stop}" if str(stop) else "interrupted", err=True)  # training says what was kept
        return 130
    except BrokenPipeError:
        streams.mute()
        return 141
    except Exception as error:  # the last resort of the whole program
        return _failed(error, arguments, debug=bool(meta.get("debug")))
    return 0


def _failed(error: Exception, arguments: list[str], *, debug: bool) -> int:
    """Say in one line what went wrong, after the traceback where that was asked for; return the exit code."""
    if debug:
        traceback.print_exception(error)
    known = streams.refusal(error) if isinstance(error, OSError) else error
    if isinstance(known, RepoBuilderError):
        return _say(str(known), known.exit_code)
    return _say(bugs.sentence(error, arguments), bugs.EXIT_CODE)


def _say(text: str, code: int) -> int:
    """Print an error's sentence on stderr and return its exit code."""
    with suppress(OSError):  # a full stderr changes nothing about what failed
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(text, err=True)
    return code
