"""Talk with a checkpoint about images: on this terminal, or on a page in the browser."""

from __future__ import annotations

from jobs.arguments import parse, run_recipe
from jobs.numbers import whole
from jobs.place import SETTINGS
from jobs.ranks import ready_model
from onevision.errors import InputError

SAMPLING = ("temperature", "top_p", "top_k", "seed", "max_new_tokens")
PAGE = ("web", "host", "port")


def run(arguments: list[str]) -> int:
    """python -m jobs chat RUN [step=N] [temperature=0] [top_p=1] [top_k=0] [seed=0] [max_new_tokens=512]
                        [web=true [host=127.0.0.1] [port=7860]] [key=value ...]

    Loads the newest checkpoint of a run, or that of `step`, and answers questions about images, in this terminal or
    (web=true, or --web) on a page for a browser on this machine. temperature=0 always takes the most likely token.
    """
    arguments = ["web=true" if argument == "--web" else argument for argument in arguments]
    path, overrides, own = parse(arguments, "chat", "run folder", ("step", *SAMPLING, *PAGE))
    recipe = run_recipe(path, overrides)
    for key in own.keys() & set(SETTINGS):
        raise InputError(f"{key}={own[key]}: a chat runs where it is started; on a cluster start it with srun --pty")
    if (web := own.get("web", "false")) not in ("true", "false"):
        raise InputError(f"web={web} is not true or false")
    if unused := [key for key in ("host", "port") if key in own and web == "false"]:
        raise InputError(f"{unused[0]}={own[unused[0]]} is for web=true")
    port = _whole(own, "port", 7860)
    if not 0 < port < 65536:
        raise InputError(f"port={port} is not between 1 and 65535")
    step = _whole(own, "step", -1)
    ready_model()
    from onevision.chat.assistant import Settings, load_assistant
    from onevision.chat.terminal import chat
    from onevision.evaluation.sampling import Sampling
    from onevision.training.checkpoint_files import step_folder

    sampling = Sampling(
        temperature=_number(own, "temperature", 0.0),
        top_p=_number(own, "top_p", 1.0),
        top_k=_whole(own, "top_k", 0),
        seed=_whole(own, "seed", 0),
    )
    settings = Settings(sampling, _whole(own, "max_new_tokens", 512))
    checkpoint = path if step < 0 else step_folder(path, step)
    if web == "false":
        return chat(load_assistant(recipe, checkpoint), settings)
    from onevision.chat.page import check_page, serve

    check_page(own.get("host", "127.0.0.1"), port)
    serve(load_assistant(recipe, checkpoint), settings, own.get("host", "127.0.0.1"), port)
    return 0


def _whole(own: dict[str, str], key: str, default: int) -> int:
    number = whole(own[key]) if key in own else default
    if number is None:
        raise InputError(f"{key}={own[key]} is not a number")
    return number


def _number(own: dict[str, str], key: str, default: float) -> float:
    try:
        return float(own.get(key, default))
    except ValueError:
        raise InputError(f"{key}={own[key]} is not a number") from None
