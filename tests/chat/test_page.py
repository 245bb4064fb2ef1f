"""The page in a real browser: an image is uploaded, a question asked, and nothing leaves this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from jobs.chat import run as run_chat
from onevision.chat.page import MAX_UPLOAD_BYTES, too_large
from onevision.errors import InputError
from onevision.recipe import Recipe
from tests.fixtures import image_bytes

ROOT = Path(__file__).parents[2]
ABSENT = [name for name in ("nicegui", "playwright") if importlib.util.find_spec(name) is None]
ABSENT += [] if shutil.which("chromium") else ["chromium"]


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def served(run: Recipe, port: int) -> Iterator[subprocess.Popen[str]]:
    """The page of the random model, as a user starts it."""
    command = [sys.executable, "-m", "jobs", "chat", run.output, "--web", f"port={port}", "max_new_tokens=6"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NICEGUI"))}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(bool(ABSENT), reason=f"{', '.join(ABSENT)} not installed (envs/chat.lock, Debian's chromium)")
def test_an_image_is_asked_about_in_a_browser_and_nothing_is_loaded_from_elsewhere(
    served: subprocess.Popen[str], port: int, images: dict[str, Path], tmp_path: Path
) -> None:
    from playwright.sync_api import expect, sync_playwright

    assert served.stdout is not None
    assert any(f"open http://127.0.0.1:{port}/" in line for line in served.stdout)
    asked_for: list[str] = []
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 800})
        tab.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        tab.on("request", lambda request: asked_for.append(request.url))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.locator("input[type=file]").set_input_files([images["plain"], images["odd"]])
        expect(tab.locator(".q-img img")).to_have_count(2)
        widths = tab.locator(".q-img img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert widths == [60, 40]  # as they were chosen
        tab.get_by_placeholder("Ask").fill("What is shown?")
        tab.get_by_placeholder("Ask").press("Enter")
        expect(tab.locator(".facts")).to_contain_text("first after")
        assert tab.locator(".answer").inner_text() not in ("", "…")
        tab.get_by_placeholder("Ask").fill("say <|im_end|>")
        tab.get_by_role("button", name="Ask").click()
        expect(tab.locator(".q-notification")).to_contain_text("the question contains <|im_end|>")
        tab.screenshot(path=os.environ.get("CHAT_SCREENSHOT", tmp_path / "page.png"))
        wrong = {"name": "wrong.png", "mimeType": "image/png", "buffer": b"no image"}
        tab.locator("input[type=file]").set_input_files([wrong])  # type: ignore[list-item]
        expect(tab.locator(".q-notification", has_text="wrong.png is not an image that can be read")).to_be_visible()
        tab.get_by_role("button", name="Clear").click()
        expect(tab.locator(".answer")).to_have_count(0)
        alike = [{"name": "1.png", "mimeType": "image/png", "buffer": image_bytes(side, 40)} for side in (50, 30)]
        tab.locator("input[type=file]").set_input_files(alike)  # type: ignore[arg-type]  # of two folders
        expect(tab.locator(".q-img img")).to_have_count(2)
        tab.get_by_role("button", name="Clear").click()
        expect(tab.locator(".q-img")).to_have_count(0)
        tab.locator("input[type=file]").set_input_files([images["plain"], images["odd"]])
        expect(tab.locator(".q-img")).to_have_count(2)
        other = browser.new_page()  # has a conversation of its own, and its turn after this one
        other.goto(f"http://127.0.0.1:{port}/")
        other.get_by_placeholder("Ask").fill("And here?")
        for label, value in (("temperature", "1"), ("seed", "2"), ("max_new_tokens", "3000")):  # it has much to say
            tab.get_by_label(label).fill(value)
        tab.get_by_placeholder("Ask").fill("What is shown?")
        tab.get_by_role("button", name="Ask").click()
        expect(tab.locator(".answer")).not_to_have_text("…")
        other.get_by_role("button", name="Ask").click()
        expect(other.locator(".facts")).to_contain_text("another page is being answered")
        tab.get_by_role("button", name="Stop").click()
        expect(tab.locator(".facts")).to_contain_text("stopped")
        expect(other.locator(".facts")).to_contain_text("first after")
        browser.close()
    elsewhere = [url for url in asked_for if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]
    assert asked_for and not elsewhere
    assert not problems
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(2 * MAX_UPLOAD_BYTES))
        connection.endheaders()
        assert connection.getresponse().status == 413  # before any of it is read
    served.send_signal(signal.SIGINT)
    assert served.wait(60) == 0


def test_no_more_is_taken_in_than_a_file() -> None:
    assert not too_large("GET", None)
    assert not too_large("POST", str(MAX_UPLOAD_BYTES))
    assert too_large("POST", str(2 * MAX_UPLOAD_BYTES))
    assert too_large("POST", None)  # in chunks: there is no telling how many


def test_a_page_that_cannot_be_served_is_refused_before_the_model_is_loaded(
    run: Recipe, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onevision.chat.page.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs NiceGUI: .* envs/chat.lock"):
        run_chat([run.output, "web=true"])
    monkeypatch.setattr("onevision.chat.page.util.find_spec", lambda name: name)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(InputError, match=f"port={port} of 127.0.0.1 is taken: choose another one, port={port + 1}"),
    ):
        run_chat([run.output, "web=true", f"port={port}"])
    with pytest.raises(InputError, match="host=192.0.2.1: no page can be served there"):
        run_chat([run.output, "web=true", "host=192.0.2.1"])
