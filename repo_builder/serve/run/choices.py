"""Options of tritonserver that follow from what is served, where the user has not chosen otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.serve.run.configs import Model
from repo_builder.serve.run.control import closing, joined, value_of

_CACHE_BYTES = 64 << 20
_INCOMPLETE = ("--disable-auto-complete-config", "--strict-model-config")
_MODE = "--model-control-mode"


def of(models: Sequence[Model], named: Sequence[str], options: Sequence[str], key: str | None) -> list[str]:
    """Return the options for the embedded server.

    Models are loaded by name there even where all are served, so that one whose process died can be loaded again.

    Args:
        models: The models that are served.
        named: The models that the user named; empty means all.
        options: The user's own options of tritonserver.
        key: What opens the server's administration; None leaves that open to all.
    """
    return [
        *loading(named, options, by_name=True),
        *(closing(key, options) if key else []),
        *caching(models, options),
        *completing(models, options),
    ]


def loading(named: Sequence[str], options: Sequence[str], *, by_name: bool) -> list[str]:
    """Return the options that say which models are loaded.

    Args:
        named: The models that the user named; empty means all.
        options: The user's own options of tritonserver.
        by_name: Whether all are to be loaded as if each were named.
    """
    if value_of(options, _MODE) is not None and not named:
        return []
    chosen = named or (["*"] if by_name else [])
    return [f"{_MODE}=explicit", *(f"--load-model={name}" for name in chosen)] if chosen else []


def completing(models: Sequence[Model], options: Sequence[str]) -> list[str]:
    """Return the option that keeps Triton from starting every model once more to ask what its configuration lacks."""
    if polls(options) or any(word.partition("=")[0] in _INCOMPLETE for word in joined(options)):
        return []
    return [_INCOMPLETE[0]] if models and all(item.complete for item in models) else []


def caching(models: Sequence[Model], options: Sequence[str]) -> list[str]:
    """Return the option that makes a response cache, where a model asks for one."""
    own = any(word.startswith(("--cache-config=", "--response-cache-byte-size=")) for word in joined(options))
    return [] if own or not any(item.cached for item in models) else [f"--cache-config=local,size={_CACHE_BYTES}"]


def cached(models: Sequence[Model], options: Sequence[str]) -> str:
    """Return what is to be said of the response cache; empty where no model asks for it."""
    asking = [item.name for item in models if item.cached]
    if not asking:
        return ""
    size = next((word for word in joined(options) if word.startswith("--cache-config=")), "")
    told = f"{_CACHE_BYTES >> 20} MiB" if size.endswith(f"size={_CACHE_BYTES}") else "as asked"
    return f"response cache: {told}, for {', '.join(asking)}; answers that come from it did not run the model"


def explicit(options: Sequence[str]) -> bool:
    """Whether models can be loaded and unloaded through the server's interface."""
    return value_of(options, _MODE) == "explicit"


def polls(options: Sequence[str]) -> bool:
    """Whether the server looks for new models by itself."""
    return value_of(options, _MODE) == "poll"
