"""The real hub client against a local server that answers as the hub does, each case in a fresh interpreter."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS

from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.hf_config import to_spec

PATH = "or give a path to its config.json"
CONFIG = json.dumps(CONFIGS["qwen3"]).encode()
REMOTE_CODE = json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}})


@dataclass(frozen=True)
class Answer:
    """What the server says about one repository."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def served(body: bytes) -> Answer:
    return Answer(200, {"X-Repo-Commit": "a" * 40, "ETag": '"b0"'}, body)


ANSWERS = {
    "acme/good": served(CONFIG),
    "acme/renamed": Answer(307, {"Location": "/acme/good/resolve/main/config.json"}),
    "acme/broken": served(CONFIG[:-9]),
    "acme/huge": served(b" " * (5 << 20)),
    "acme/latin": served('{"model_type": "é"}'.encode("latin-1")),
    "acme/remote-code": served(REMOTE_CODE.encode()),
    "acme/gated": Answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}),
    "acme/gated-from-strangers": Answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Please log in."}),
    "acme/forbidden": Answer(403),
    "acme/bad-token": Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "acme/private": Answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}),
    "acme/missing": Answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "acme/no-config": Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}),
    "acme/no-main": Answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: main"}),
    "acme/failing": Answer(500),
    "acme/away": Answer(503),
    "acme/busy": Answer(429),
    "acme/portal": Answer(200, {"Content-Type": "text/html"}, b"<html>Log in to the network</html>"),
    "meta-llama/Lama-3.1-8B": Answer(404, {"X-Error-Code": "RepoNotFound"}),
}


class Handler(BaseHTTPRequestHandler):
    """Answers by repository and writes down what was asked for."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        found = ANSWERS.get("/".join(self.path.split("/")[1:3]), Answer(404))
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(found.body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Hub:
    """A running server and the requests it had."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.server.asked = self.asked  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as found:
        yield found


ASK = """
import json, sys
{before}
import vramcalc
answers = {{}}
for name in sys.argv[1:]:
    try:
        answers[name] = {{"params": vramcalc.estimate(name).total_params}}
    except vramcalc.VramcalcError as err:
        answers[name] = {{"error": type(err).__name__, "message": str(err)}}
print(json.dumps(answers))
"""


def ask_all(names: list[str], home: Path, endpoint: str, before: str = "", **env: str) -> dict[str, dict[str, Any]]:
    """What an interpreter that knows nothing yet answers to the names of repositories."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_")) and "PROXY" not in k.upper()
    }
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(before=before), *names], env=env, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    # The client prints a line of its own when its address is broken.
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def ask(name: str, home: Path, endpoint: str, before: str = "", **env: str) -> dict[str, Any]:
    return ask_all([name], home, endpoint, before, **env)[name]


EXPECTED_PARAMS = to_spec(CONFIGS["qwen3"], "expected").params_total

REFUSED: dict[str, tuple[str, str]] = {
    "acme/gated": ("HubGated", "acme/gated is gated: accept its terms on the hub and set HF_TOKEN"),
    "acme/gated-from-strangers": ("HubGated", "is gated: accept its terms on the hub and set HF_TOKEN"),
    "acme/forbidden": ("HubGated", "refuses access to acme/forbidden (HTTP 403): check HF_TOKEN"),
    "acme/bad-token": ("HubGated", "refuses access to acme/bad-token (HTTP 401): check HF_TOKEN"),
    "acme/private": ("HubMissing", "no acme/private with a config.json: check the name, log in if it is private"),
    "acme/missing": ("HubMissing", "no acme/missing with a config.json: check the name"),
    "acme/no-config": ("HubMissing", "no acme/no-config with a config.json: check the name"),
    "acme/no-main": ("HubMissing", "no acme/no-main with a config.json: check the name"),
    "acme/failing": ("HubError", "failed to give acme/failing (HTTP 500): try again later"),
    "acme/away": ("HubError", "failed to give acme/away (HTTP 503): try again later"),
    "acme/busy": ("HubError", "failed to give acme/busy (HTTP 429): try again later"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], list[str]]:
    with running() as hub:
        return ask_all(list(REFUSED), tmp_path_factory.mktemp("home"), hub.endpoint), hub.asked


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_its_own_error_a_remedy_and_costs_one_request(
    refusals: tuple[dict[str, dict[str, Any]], list[str]], name: str
) -> None:
    answers, asked = refusals
    error, message = REFUSED[name]
    assert answers[name]["error"] == error
    assert message in answers[name]["message"]
    assert PATH in answers[name]["message"]
    assert [line for line in asked if name + "/" in line] == [f"HEAD /{name}/resolve/main/config.json"]


def test_a_repository_is_read_once_and_then_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    assert ask("acme/good", tmp_path, hub.endpoint) == {"params": EXPECTED_PARAMS}
    asked = list(hub.asked)
    assert asked
    assert ask("acme/good", tmp_path, hub.endpoint) == {"params": EXPECTED_PARAMS}
    assert ask("acme/good", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1") == {"params": EXPECTED_PARAMS}
    assert hub.asked == asked


def test_a_repository_that_moved_is_followed(hub: Hub, tmp_path: Path) -> None:
    assert ask("acme/renamed", tmp_path, hub.endpoint) == {"params": EXPECTED_PARAMS}


def test_offline_and_not_in_the_cache_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    answer = ask("acme/good", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
    assert answer["error"] == "HubOffline"
    assert "not in the table nor in the local cache, and HF_HUB_OFFLINE is set: unset it" in answer["message"]
    assert PATH in answer["message"]
    assert hub.asked == []


def refusing_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("endpoint", [refusing_endpoint(), "no-address"], ids=["refusing", "no-address"])
def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, endpoint: str) -> None:
    answer = ask("acme/good", tmp_path, endpoint)
    assert answer["error"] == "HubOffline"
    assert f"{endpoint} cannot be reached: check the connection, {PATH}" in answer["message"]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[127.0.0.1"])
def test_an_endpoint_that_is_no_address_is_an_error_of_the_hub(tmp_path: Path, endpoint: str) -> None:
    answer = ask("acme/good", tmp_path, endpoint)
    assert answer["error"] == "HubOffline"
    assert "HF_ENDPOINT is no address" in answer["message"]
    assert f": correct it, {PATH}" in answer["message"]


def test_a_page_that_is_no_hub_is_not_taken_for_one(hub: Hub, tmp_path: Path) -> None:
    answer = ask("acme/portal", tmp_path, hub.endpoint)
    assert answer["error"] == "HubOffline"
    assert f"{hub.endpoint} does not answer as a hub does: check HF_ENDPOINT" in answer["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme/broken", "is not valid JSON"),
        ("acme/huge", "has more than 4,194,304 bytes"),
        ("acme/latin", "is not UTF-8 text"),
    ],
)
def test_a_broken_file_on_the_hub_is_named_by_its_repository(hub: Hub, tmp_path: Path, name: str, message: str) -> None:
    answer = ask(name, tmp_path, hub.endpoint)
    assert answer["error"] == "BadConfig"
    assert answer["message"].startswith(f"config.json of {name} {message}")


def test_remote_code_is_neither_fetched_nor_run(hub: Hub, tmp_path: Path) -> None:
    answer = ask("acme/remote-code", tmp_path, hub.endpoint)
    assert answer["error"] == "Unsupported"
    assert (
        f"'mine' is not modelled; its own code is never executed; supported: {', '.join(FAMILIES)}" in answer["message"]
    )
    assert {line.split()[1] for line in hub.asked} == {"/acme/remote-code/resolve/main/config.json"}


def test_a_misspelt_repository_is_offered_near_names(hub: Hub, tmp_path: Path) -> None:
    answer = ask("meta-llama/Lama-3.1-8B", tmp_path, hub.endpoint)
    assert answer["error"] == "HubMissing"
    assert "did you mean 'meta-llama/Llama-3.1-8B' or " in answer["message"]


def test_what_cannot_be_a_repository_is_refused_without_asking(hub: Hub, tmp_path: Path) -> None:
    names = ["-acme/good", "acme/good.", "acme/a--b", "acme/" + "x" * 100, "é/ü"]
    for name, answer in ask_all(names, tmp_path, hub.endpoint).items():
        assert answer["error"] == "HubMissing"
        assert f"'{name}' is not a repository name: expected owner/name, {PATH}" in answer["message"]
    assert hub.asked == []


def test_a_name_in_the_table_asks_nobody_and_needs_no_client(hub: Hub, tmp_path: Path) -> None:
    answer = ask("Qwen/Qwen3-0.6B", tmp_path, hub.endpoint, before=BLOCKED)
    assert answer == {"params": 596049920}
    assert hub.asked == []


BLOCKED = """
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "huggingface_hub":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_without_the_client_the_extra_is_named(hub: Hub, tmp_path: Path) -> None:
    answer = ask("acme/good", tmp_path, hub.endpoint, before=BLOCKED)
    assert answer["error"] == "HubError"
    assert "reading the hub needs the extra 'hub': pip install '.[hub]'" in answer["message"]
    assert PATH in answer["message"]
    assert hub.asked == []
