"""`llama2cpp.ray.deployment`: what ``llama2cpp serve`` answers, by replicas on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.arguments import checked
from .common.ray_arguments import adapter_path, opening

if TYPE_CHECKING:
    from ray.serve import Application

_MAX_BODY = 8 << 20


@checked
def deployment(
    model: str | PathLike[str] = "storyteller",
    *,
    replicas: int = 1,
    threads: int = 1,
    name: str | None = None,
    rows: int = 32,
    queue: int = 256,
    template: str | None = None,
    api_key: str | None = None,
    adapters: Mapping[str, str | PathLike[str]] | None = None,
    load_args: Mapping[str, Any] | None = None,
) -> Application:
    """Make an application of Ray Serve, whose replicas answer over HTTP in the shape of OpenAI's API.

    Each replica opens the model once and runs its requests together, as ``llama2cpp serve`` does. An answer depends on
    its request only, so it does not matter which replica gives it.

    Parameters
    ----------
    model : str or path
        What `load` opens, on each machine: a path that all have, or a name.
    replicas : int
        How many processes answer.
    threads : int
        Of each: Ray reserves as many CPUs.
    name : str, optional
        What requests call the model; `model` without its folder if not given.
    rows, queue : int
        Requests that a replica runs at a time, and how many more may wait there.
    template : str, optional
        The chat template, as in `chat`; the model's own if not given.
    api_key : str, optional
        What clients have to show; nothing if not given.
    adapters : mapping of str to path, optional
        LoRA adapters by the names that requests call them, at paths that all machines have.
    load_args : mapping, optional
        Further arguments of `load`, such as ``{"context": 4096}``.

    Returns
    -------
    ray.serve.Application
        For ``ray.serve.run(application)``.

    Raises
    ------
    ImportError
        Without Ray Serve or what ``llama2cpp serve`` needs; the message has the command that installs it.
    ValueError, TypeError
        For an argument that cannot be. A model that cannot be opened is found by the replicas, and ``ray.serve.run``
        says so.

    Examples
    --------
    ::

        from ray import serve
        from llama2cpp.ray import deployment

        serve.run(deployment("model.gguf", replicas=2, threads=8))  # http://127.0.0.1:8000/v1
    """
    function = "deployment"
    try:
        from ray import serve

        from .server import app as _  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"llama2cpp.ray.deployment needs the package {error.name}: pip install 'llama2cpp[ray-serve]'"
        ) from None
    for what, number, least in (("replicas", replicas, 1), ("rows", rows, 1), ("queue", queue, 0)):
        if number < least:
            raise ValueError(f"{function}: {what} is {number}, expected {least} or more")
    source = fspath(model)
    served = Path(source).name if name is None else name
    if not served:
        raise ValueError(f"{function}: name is empty: what do requests call the model?")
    paths = {named: adapter_path(function, path) for named, path in (adapters or {}).items()}
    if served in paths:
        raise ValueError(f"{function}: adapters has {served!r}, which is the model's name")
    how = opening(function, load_args, threads)
    settings = {"name": served, "rows": rows, "queue": queue, "template": template, "api_key": api_key or None}

    def build() -> Any:  # noqa: ANN401 - what a replica runs at its start
        from llama2cpp.ray_serve import application

        return application(source, how, settings, paths)

    made = serve.deployment(
        serve.ingress(build)(),
        name="llama2cpp",
        num_replicas=replicas,
        max_ongoing_requests=rows + queue,
        ray_actor_options={"num_cpus": threads},
    )
    return made.bind()


def application(
    source: str, load_args: Mapping[str, Any], settings: Mapping[str, Any], adapters: Mapping[str, Any]
) -> Any:  # noqa: ANN401
    """Open a model, and give the ASGI application that answers for it.

    Parameters
    ----------
    source : str
        What `load` opens.
    load_args : mapping
        How.
    settings : mapping
        Of the server.
    adapters : mapping of str to str
        Paths of adapters by their names.

    Returns
    -------
    ASGI application
    """
    from .dialogue.chat_format import ChatFormat
    from .loading import load
    from .server.app import make_app
    from .server.service import Settings
    from .serving.engine import Engine

    model = load(source, **load_args)
    if settings["template"] is not None:
        ChatFormat(model.tokenizer, settings["template"])
    beside = {name: model.load_adapter(path) for name, path in adapters.items()}
    engine = Engine(model, rows=settings["rows"])
    return make_app(engine, model, Settings(max_body=_MAX_BODY, **settings), None, beside)
