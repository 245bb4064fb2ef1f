"""Chat on a page in the browser, by NiceGUI, which serves all that a page needs by itself: nothing of it comes from, or
goes to, another machine. A page has a conversation of its own; the model answers one of them at a time."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import socket
from contextlib import closing, suppress
from importlib import util
from typing import TYPE_CHECKING, Any

from onevision.chat.assistant import Answer, Assistant, Settings
from onevision.chat.conversation import Conversation, Picture
from onevision.data.image import decode_image
from onevision.errors import InputError, OneVisionError, line_of
from onevision.evaluation.sampling import Sampling

if TYPE_CHECKING:
    from nicegui.events import MultiUploadEventArguments
    from starlette.requests import Request
    from starlette.responses import Response

MAX_FILE_BYTES = 64 << 20
MAX_UPLOAD_BYTES = 4 * MAX_FILE_BYTES  # of the files that are sent together
FORM_BYTES = 1 << 16  # around them
THUMBNAIL = 192  # pixels of the longer side
# Said to the browser: what is not this server's own is not loaded.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
)


def check_page(host: str, port: int) -> None:
    """What can be refused before a model is loaded.

    Raises:
        InputError: NiceGUI is not installed, or there is no listening at that address.
    """
    if util.find_spec("nicegui") is None:
        raise InputError(
            "web=true needs NiceGUI: .venv/bin/python -m pip install --no-deps -r envs/chat.lock, or chat without it"
        )
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port={port} of {host} is taken: choose another one, port={port + 1}") from None
        raise InputError(f"host={host}: no page can be served there: {error.strerror}") from None


class Page:
    """What one browser tab shows."""

    def __init__(self, assistant: Assistant, settings: Settings, turn: asyncio.Lock) -> None:
        """Lay the page out. `turn` is held by the page whose question is being answered."""
        from nicegui import ui

        self._assistant, self._turn = assistant, turn
        self._conversation = Conversation()
        self._waiting: list[Picture] = []
        self._stopped = False
        sampling = settings.sampling
        ui.page_title("OneVision chat")
        with ui.column().classes("w-full max-w-3xl mx-auto gap-3"):
            ui.label(assistant.label).classes("text-xs text-gray-500")
            self._said = ui.column().classes("w-full")
            self._thumbnails = ui.row()
            self._upload = (
                ui.upload(
                    multiple=True,
                    auto_upload=True,
                    max_file_size=MAX_FILE_BYTES,
                    max_total_size=MAX_UPLOAD_BYTES,
                    on_multi_upload=self._uploaded,  # one by one they would come in any order
                    on_rejected=self._rejected,
                )
                .props('accept="image/*" flat bordered label="Drop images here, or +"')
                .props(':field-name="file => file.__key"')  # by their names, one of two that are alike would be lost
                .classes("w-full")
            )
            with ui.row().classes("w-full items-center no-wrap"):
                self._question = ui.input(placeholder="Ask").classes("grow").on("keydown.enter", self._ask)
                self._ask_button = ui.button("Ask", on_click=self._ask)
                self._stop_button = ui.button("Stop", on_click=self._stop).props("outline")
                ui.button("Clear", on_click=self._clear).props("flat")
            with ui.row().classes("w-full"):
                self._temperature = ui.number("temperature", value=sampling.temperature, min=0, step=0.1)
                self._top_p = ui.number("top_p", value=sampling.top_p, min=0.01, max=1, step=0.05)
                self._top_k = ui.number("top_k", value=sampling.top_k, min=0, precision=0)
                self._seed = ui.number("seed", value=sampling.seed, min=0, precision=0)
                self._longest = ui.number("max_new_tokens", value=settings.max_new_tokens, min=1, precision=0)
        self._set_busy(False)
        ui.context.client.on_delete(self._stop)  # the tab is gone

    def _set_busy(self, busy: bool) -> None:
        self._ask_button.set_enabled(not busy)
        self._stop_button.set_enabled(busy)

    def _settings(self) -> Settings:
        fields = (self._temperature, self._top_p, self._top_k, self._seed, self._longest)
        if any(entry.value is None for entry in fields):
            raise InputError("a setting below the question is empty")
        temperature, top_p, top_k, seed, longest = (entry.value for entry in fields)
        return Settings(Sampling(float(temperature), float(top_p), int(top_k), int(seed)), int(longest))

    async def _uploaded(self, event: MultiUploadEventArguments) -> None:
        from nicegui import ui

        for file in event.files:
            content = await file.read()
            try:
                picture = await asyncio.to_thread(self._assistant.picture, file.name, content)
                thumbnail = await asyncio.to_thread(_thumbnail, content)
                self._assistant.check_room([*self._conversation.pictures, *self._waiting, picture])
            except OneVisionError as error:
                ui.notify(str(error), type="negative", multi_line=True)
                continue
            self._waiting.append(picture)
            with self._thumbnails:
                shown = ui.image(thumbnail).classes("w-24 rounded")
                shown.tooltip(f"{picture.name}, {picture.size[0]} x {picture.size[1]}, {picture.tokens} tokens")

    def _rejected(self) -> None:
        from nicegui import ui

        most, together = MAX_FILE_BYTES >> 20, MAX_UPLOAD_BYTES >> 20
        ui.notify(f"only images of up to {most} MB can be asked about, {together} MB at a time", type="negative")

    async def _ask(self) -> None:
        from nicegui import ui

        if not self._ask_button.enabled:
            return
        question = self._question.value.strip()
        try:
            conversation = self._conversation.ask([*self._waiting, question])
            answer = self._assistant.answer(conversation, self._settings())
        except OneVisionError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self._set_busy(True)
        self._stopped = False
        self._waiting, self._question.value = [], ""
        self._upload.reset()
        with self._said:
            with ui.chat_message(sent=True).props("bg-color=blue-1").classes("self-end"), ui.column():
                pictures = ui.row()
                for thumbnail in list(self._thumbnails):
                    thumbnail.move(pictures)
                ui.label(question)
            with ui.chat_message().props("bg-color=grey-2").classes("self-start"), ui.column():
                text = ui.label("…").classes("answer whitespace-pre-wrap")
                facts = ui.label("").classes("facts text-xs text-gray-600")
        if self._turn.locked():
            facts.set_text("another page is being answered")
        try:
            async with self._turn:
                await self._show(answer, text, facts)
            self._conversation = conversation.answered(answer.text)
        except Exception as error:  # whatever it is, the page tells it and stays; what was said before is known still
            text.set_text(answer.text or "(no answer)")
            facts.set_text(f"failed, ask again: {error if isinstance(error, OneVisionError) else line_of(error)}")
        finally:
            self._set_busy(False)

    async def _show(self, answer: Answer, text: Any, facts: Any) -> None:
        with closing(iter(answer)) as pieces:
            while not self._stopped and await asyncio.to_thread(next, pieces, None) is not None:
                text.set_text(answer.text)
        text.set_text(answer.text or "(no answer)")
        facts.set_text(answer.facts)

    def _stop(self) -> None:
        self._stopped = True

    def _clear(self) -> None:
        if self._ask_button.enabled:
            self._conversation, self._waiting = Conversation(), []
            self._said.clear()
            self._thumbnails.clear()


def serve(assistant: Assistant, settings: Settings, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    from nicegui import app, ui
    from starlette.responses import PlainTextResponse

    turn = asyncio.Lock()

    @app.middleware("http")
    async def own_files_only(request: Request, call_next: Any) -> Response:
        if too_large(request.method, request.headers.get("content-length")):  # the browser refuses it, others may not
            return PlainTextResponse(f"files may have {MAX_UPLOAD_BYTES >> 20} MB at a time", status_code=413)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    address = f"[{host}]" if ":" in host else host
    print(f"{assistant.label}\nopen http://{address}:{port}/ in a browser; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        ui.run(
            lambda: Page(assistant, settings, turn),
            host=host,
            port=port,
            reload=False,
            show=False,
            show_welcome_message=False,
        )


def too_large(method: str, length: str | None) -> bool:
    """Whether a request with that Content-Length is more than files may be; one that does not say is."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    return length is None or not length.isdecimal() or int(length) > MAX_UPLOAD_BYTES + FORM_BYTES


def _thumbnail(content: bytes) -> str:
    """An image file as the address of a small PNG, which every browser shows."""
    image = decode_image(content)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
