"""The server of a search: one that was started for it, or one that allows models to be loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from repo_builder.core import files
from repo_builder.core.errors import MeasureError, RepositoryError, ServeError, first_line
from repo_builder.core.servers import Process
from repo_builder.flows.tune.options import TuneOptions
from repo_builder.measure.wire.control import Control, open_control
from repo_builder.measure.wire.transport import ConnectionLost, Endpoint
from repo_builder.repository import serving
from repo_builder.results.tuning import Settings
from repo_builder.serve import Server, start

_OPTIONS = (
    "--exit-timeout-secs=3",  # Triton may wait long for a request whose client has gone; a search does not
    "--metrics-interval-ms=200",  # of every 2 s by default, which is longer than a level
)


class Host(Protocol):
    """A server that takes configurations of one model."""

    endpoint: Endpoint
    metrics_url: str | None
    configs: tuple[Any, ...]  # ModelConfig messages, one a build

    @property
    def group(self) -> int | None:
        """The process group of its processes; None where they are not this user's."""

    def name(self, settings: Settings) -> str:
        """Return the model's name in the server, which differs from build to build."""

    def load(self, settings: Settings) -> None:
        """Load a configuration."""

    def revive(self) -> None:
        """Start it again where it has died."""

    def close(self) -> None:
        """Leave it as it was found: stopped, or with the configuration that it had."""


def open_host(options: TuneOptions) -> Host:
    """Start the server, or reach the one that was named.

    Raises:
        RepositoryError: There is no such model, or its settings cannot be searched.
        ServeError: It does not start, or allows no loading of models.
        MeasureError: It cannot be reached.
    """
    return OwnServer(options) if options.endpoint is None else OtherServer(options, options.endpoint)


class OwnServer:
    """An embedded server on links to the model's builds; its administration is closed to everybody else."""

    def __init__(self, options: TuneOptions) -> None:
        self._options = options
        builds = (options.repository / options.model, *options.builds)
        self.configs = tuple(_read(item) for item in builds)
        _refuse(self.configs)
        _refuse_others(self.configs, builds)
        self._names = tuple(f"{options.model}.{place + 1}" if place else options.model for place in range(len(builds)))
        self._folder = _staged(options.folder, builds, self._names, self.configs)
        self._server: Server | None = None
        self._control: Control | None = None
        self._loaded = ""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def group(self) -> int | None:
        """The server's process group."""
        return self._server.pid if self._server else None

    def name(self, settings: Settings) -> str:
        """Return the name of a build's model."""
        return self._names[settings.build]

    def load(self, settings: Settings) -> None:
        """Load a configuration, and unload the build before it."""
        name = self.name(settings)
        config = serving.changed(self.configs[settings.build], settings, name=name)
        if self._control is None:
            raise ServeError("the server does not run")
        if self._loaded not in ("", name):
            self._control.unload(self._loaded)
        self._control.load(name, serving.to_json(config))
        self._loaded = name

    def revive(self) -> None:
        """Start it again where it has died; a model whose process died is loaded anew with the next configuration."""
        if self._server is not None and self._server.exit_code is None:
            return
        self._stop()
        self._start()

    def close(self) -> None:
        """Stop it, and remove the links."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        options = self._options
        http, grpc, metrics = options.ports
        log = options.folder / "triton.log"
        self._server = start(
            self._folder,
            runtime="embedded",
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            models=(self._names[0],),
            options=_OPTIONS,
            log=log,
            mps=options.mps,
            backend_directory=options.backend_directory,
        )
        self._server.wait_ready(options.load_timeout_s)
        self.endpoint = Endpoint.parse(self._server.grpc_url, "grpc")
        self.metrics_url: str | None = self._server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        self._control = open_control(self.endpoint, options.load_timeout_s)
        self._loaded = self._names[0]

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.stop()
            self._server = None


class OtherServer:
    """A server that runs already; in the end it gets back the configuration that it had."""

    group: int | None = None

    def __init__(self, options: TuneOptions, endpoint: Endpoint) -> None:
        if options.builds:
            raise ServeError("several builds are compared on a server of their own", where="--build", hint="no --url")
        self.endpoint, self.metrics_url, self._model = endpoint, options.metrics_url, options.model
        self._control = open_control(endpoint, options.load_timeout_s)
        try:
            self.configs = (serving.of_json(self._control.config(options.model), options.model),)
            _refuse(self.configs)
            self._try()
        except BaseException:
            self._control.close()
            raise

    def _try(self) -> None:
        """Load the configuration that is there, to see whether that is allowed."""
        try:
            self._control.load(self._model, serving.to_json(self.configs[0]))
        except ConnectionLost:
            raise
        except MeasureError as error:
            raise ServeError(
                f"the server does not let this client load models: {error.message.removeprefix('the server says: ')}",
                where=str(self.endpoint),
                hint="leave --url out, so that one is started, or start that one with repo-builder serve (for another "
                "user with --open-control), or tritonserver --model-control-mode=explicit",
            ) from error

    def name(self, settings: Settings) -> str:
        """Return the model's name."""
        return self._model

    def load(self, settings: Settings) -> None:
        """Load a configuration."""
        self._control.load(self._model, serving.to_json(serving.changed(self.configs[0], settings)))

    def revive(self) -> None:
        """Nothing: whoever runs it has to start it again."""

    def close(self) -> None:
        """Give it back the configuration that it had."""
        try:
            self._control.load(self._model, serving.to_json(self.configs[0]))
        finally:
            self._control.close()


def _read(folder: Path) -> Any:  # noqa: ANN401 - a ModelConfig message
    path = folder / "config.pbtxt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such model" if not folder.is_dir() else f"cannot be read ({first_line(error)})"
        hint = "run repo-builder build first, or name the repository with --repository"
        raise RepositoryError(reason, where=str(folder if not folder.is_dir() else path), hint=hint) from None
    return serving.of_text(text, str(path))


def _refuse(configs: Sequence[Any]) -> None:
    """Refuse models whose settings cannot be searched."""
    for config in configs:
        if reason := serving.why_not(config):
            raise RepositoryError(reason, where=config.name)


def _refuse_others(configs: Sequence[Any], folders: Sequence[Path]) -> None:
    """Refuse builds that do not take and give the same tensors."""

    def tensors(config: Any) -> Mapping[str, Any]:  # noqa: ANN401 - a ModelConfig message
        sides = {"input": config.input, "output": config.output}
        return {key: [(item.name, item.data_type, tuple(item.dims)) for item in side] for key, side in sides.items()}

    for config, folder in zip(configs[1:], folders[1:], strict=True):
        if tensors(config) != tensors(configs[0]):
            message = f"is no build of the same model: its tensors are not those of {folders[0]}"
            raise RepositoryError(message, where=str(folder), hint="name folders of the same model with --build")


def _staged(folder: Path, builds: Sequence[Path], names: Sequence[str], configs: Sequence[Any]) -> Path:
    """Return a repository of links to the builds; what killed searches left of theirs is removed."""
    files.require_writable(folder)
    with files.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("repository.*"):
            pid, _, began = old.name.removeprefix("repository.").partition("-")
            if not (pid.isdecimal() and began.isdecimal() and Process(pid=int(pid), began=int(began)).alive()):
                shutil.rmtree(old, ignore_errors=True)
        me = Process.of(os.getpid())
        made = folder / f"repository.{me.pid}-{me.began}"
        shutil.rmtree(made, ignore_errors=True)
        for build, name, config in zip(builds, names, configs, strict=True):
            shutil.copytree(build, made / name, copy_function=_linked)
            (made / name / "config.pbtxt").unlink()
            present = serving.settings_of(config)
            text = serving.rendered(serving.changed(config, present, name=name), "", "a search's copy")
            files.write_text(made / name / "config.pbtxt", text)
    return made


def _linked(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
