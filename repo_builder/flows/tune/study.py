"""The trials in their database, Optuna's: a killed search goes on, and machines share what they found."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from repo_builder.core import codec, files, loading
from repo_builder.core.errors import MeasureError, RepoBuilderError, first_line
from repo_builder.core.servers import Process
from repo_builder.flows.tune.space import Space
from repo_builder.results.tuning import Settings, Trial

_STALE_S = 600.0  # of another machine: a trial without a level for so long is given up
_KEY = "repo-builder"  # the attribute of Optuna's trials that holds ours
_STARTS = 4  # trials after which TPE proposes by what was measured


def url_of(storage: str | None, folder: Path) -> str:
    """Return the database's URL: as given, a file's of SQLite for a path, or the one in ``folder``."""
    if storage and "://" in storage:
        return storage
    path = Path(storage) if storage else folder / "trials.db"
    files.require_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path.resolve()}"


def require() -> None:
    """See that Optuna is here.

    Raises:
        MissingDependency: It is not installed.
    """
    with loading.needs("tune", what="tune"):
        import optuna  # noqa: F401 - whether it can be


class Study:
    """One search in a database.

    Args:
        url: The database, as SQLAlchemy takes it.
        name: The search's name there: what is not comparable has another.
        space: What is searched.
        seed: Of the sampler.
        fresh: Whether what is there under that name is deleted first.

    Raises:
        MissingDependency: Optuna, or the database's driver, is not installed.
        MeasureError: The database cannot be used.
    """

    def __init__(self, url: str, name: str, space: Space, *, seed: int, fresh: bool) -> None:
        with loading.needs("tune", what="tune"):
            import optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.url, self.name, self._space, self._optuna = url, name, space, optuna
        self._free = {key: optuna.distributions.IntDistribution(0, size - 1) for key, size in space.free.items()}
        with loading.needs(None, what=f"the storage {_hidden(url)}"):
            self._storage = self._guarded(lambda: optuna.storages.RDBStorage(url))
        self._study: Any = self._guarded(lambda: self._open(seed, fresh=fresh))
        self._where = f"{platform.node()}:{os.getpid()}"
        self._ended: dict[int, Trial] = {}
        self._began = Process.of(os.getpid()).began
        self._guarded(self._take_over)

    def trials(self) -> tuple[Trial, ...]:
        """Return every trial there is, also those of other machines."""
        found = []
        for item in self._guarded(lambda: self._study.get_trials(deepcopy=False)):
            value = item.user_attrs.get(_KEY, {}).get("trial")
            if item.number not in self._ended and value is not None:
                trial = codec.build(Trial, value)
                if not item.state.is_finished():
                    found.append(trial)
                    continue
                self._ended[item.number] = trial  # nothing is written of one that has ended
            if item.number in self._ended:
                found.append(self._ended[item.number])
        return tuple(found)

    def ask(self, settings: Settings | None = None, origin: str = "search") -> Trial:
        """Return a trial to run: with these settings, or with what the sampler proposes."""
        places: dict[str, int] = {}
        if settings is not None:
            places = {key: place for key, place in self._space.places(settings).items() if key in self._free}
            self._guarded(lambda: self._study.enqueue_trial(places, user_attrs={"origin": origin}))
        asked = self._guarded(lambda: self._study.ask(fixed_distributions=self._free))
        # Another machine may have taken what was put there, and this one gets what that one had put there.
        ours = settings is not None and dict(asked.params) == places
        trial = Trial(
            number=asked.number,
            settings=settings if settings is not None and ours else self._space.settings(asked.params),
            state="running",
            origin=str(asked.user_attrs.get("origin", "search")),
            where=self._where,
        )
        self.keep(trial)
        return trial

    def keep(self, trial: Trial) -> None:
        """Write down what a trial has so far."""
        self._write(self._id(trial), {"trial": codec.plain(trial), "began": self._began, "beat": time.time()})

    def tell(self, trial: Trial, value: float | None) -> None:
        """End a trial; ``value`` is what the sampler learns from it, None where it failed."""
        states = self._optuna.trial.TrialState
        self.keep(trial)  # nothing is written of one that has ended
        state = states.COMPLETE if value is not None else states.FAIL
        self._guarded(lambda: self._study.tell(trial.number, value, state=state))

    def tell_again(self, trial: Trial, value: float | None) -> None:
        """End a trial that was measured already, so that it is none; the sampler learns what it knew."""
        self._write(self._id(trial), {})
        states = self._optuna.trial.TrialState
        state = states.COMPLETE if value is not None else states.FAIL
        self._guarded(lambda: self._study.tell(trial.number, value, state=state))

    def close(self) -> None:
        """Close the connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _open(self, seed: int, *, fresh: bool) -> Any:  # noqa: ANN401 - Optuna is imported when it is used
        optuna = self._optuna
        if fresh and self.name in optuna.study.get_all_study_names(self._storage):
            optuna.delete_study(study_name=self.name, storage=self._storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=_STARTS)
        return optuna.create_study(
            storage=self._storage, study_name=self.name, direction="maximize", sampler=sampler, load_if_exists=True
        )

    def _take_over(self) -> None:
        """End the trials that a killed search left running, and have them tried again."""
        states = self._optuna.trial.TrialState
        for item in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            known = item.user_attrs.get(_KEY, {})
            if not _is_left(known):
                continue
            if known:
                left = replace(
                    codec.build(Trial, known["trial"]), state="failed", reason="its search was killed; tried again"
                )
                self._storage.set_trial_user_attr(item._trial_id, _KEY, {"trial": codec.plain(left)})
            self._study.tell(item.number, state=states.FAIL)
            self._study.enqueue_trial(dict(item.params), user_attrs={"origin": "search"})

    def _write(self, number: int, value: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._storage.set_trial_user_attr(number, _KEY, value))

    def _id(self, trial: Trial) -> int:
        number: int = self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, trial.number)
        return number

    def _guarded(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        """Call the database; what fails there becomes one sentence."""
        try:
            return call()
        except (RepoBuilderError, KeyboardInterrupt, ImportError):
            raise
        except Exception as error:  # SQLAlchemy's, the driver's and Optuna's share no base
            hint = "name another with --storage, as in sqlite:////shared/trials.db or postgresql://host/name"
            message = f"the trials' database cannot be used: {first_line(error)[:200]}"
            raise MeasureError(message, where=_hidden(self.url), hint=hint) from error


def _is_left(attributes: Mapping[str, Any]) -> bool:
    """Whether a running trial's process is gone; of another machine, whether it has been silent for long."""
    value = attributes.get("trial") or {}
    host, _, pid = str(value.get("where", "")).rpartition(":")
    if host == platform.node() and pid.isdecimal():
        return not Process(pid=int(pid), began=int(attributes.get("began", 0))).alive()
    return time.time() - float(attributes.get("beat", 0.0)) > _STALE_S


def _hidden(url: str) -> str:
    """Return a URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and "://" in head and head.count(":") > 1 else url
