"""The push to the hub after saving: to a small local server, and without one."""

from __future__ import annotations

import base64
import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from transformers import TrainerCallback

from prefcli.checkpoints.push_to_hub import check_push
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import PushError
from prefcli.training.run import train
from tests.support.problems import stops_with

TOKEN = "hf_" + "x" * 34


class AtTheEnd(TrainerCallback):
    """Calls a function when training ends."""

    def __init__(self, function):
        self.function = function

    def on_train_end(self, args, state, control, **kwargs):
        self.function()


class Hub(BaseHTTPRequestHandler):
    """Accepts every file inline in the commit, and stores it in `server.files`."""

    def do_GET(self):
        if self.server.rejects:
            return self._answer({"error": "Invalid user token."}, status=401)
        if self.path.endswith("/whoami-v2"):
            return self._answer({"name": "me", "type": "user", "orgs": []})
        return self._answer({"id": "me/tiny", "private": self.server.private, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(self.path)
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            return self._answer({"url": f"{self.server.url}/me/tiny"})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self._answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.url}/me/tiny/commit/abc"
            return self._answer({"success": True, "commitOid": "abc", "commitUrl": url})
        return self._answer({})

    def _answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.requests, server.private, server.created = {}, [], True, None
    server.rejects = False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(recipe_data, make_recipe):
    return make_recipe(recipe_data | {"push_to_hub": {"repo_id": "me/tiny"}}).recipe


def test_push_failure_leaves_saved_model_and_is_tried_again(recipe, hub, monkeypatch):
    run = RunDir(recipe.output_dir)
    unreachable = functools.partial(
        monkeypatch.setattr, "huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"
    )
    with stops_with("RUN005", PushError) as no:
        train(recipe, recipe.dpo, callbacks=[AtTheEnd(unreachable)])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    assert no.value.exit_code == 6
    assert f"`hf upload me/tiny {run.model} . --private`" in str(no.value)
    record = run.read_run()
    assert record["status"] == "finished"
    assert record["push_to_hub"].items() >= {"status": "failed", "repo_id": "me/tiny"}.items()
    assert not hub.requests

    assert train(recipe, recipe.dpo).already_finished
    assert hub.created["visibility"] == "private"
    names = {path.name for path in run.model.iterdir()}
    assert hub.files.keys() == names >= {"model.safetensors", "config.json", "tokenizer.json"}
    weights = run.model / "model.safetensors"
    assert hub.files["model.safetensors"] == weights.read_bytes()
    entry = run.read_run()["push_to_hub"]
    assert (entry["status"], entry["url"]) == ("done", f"{hub.url}/me/tiny/commit/abc")
    assert TOKEN not in run.run.read_text("utf-8")

    hub.requests.clear()
    train(recipe, recipe.dpo)
    assert not hub.requests


def test_push_of_worse_model_is_refused(recipe, hub):
    run = RunDir(recipe.output_dir)
    train(recipe, recipe.dpo)
    hub.requests.clear()
    worse = {"first": {"eval_loss": 0.69}, "last": {"eval_loss": 1.05}}
    record = {key: value for key, value in run.read_run().items() if key != "push_to_hub"}
    run.write_run({**record, "eval": worse})
    with pytest.raises(PushError, match=r"its eval_loss is 1\.05, and was 0\.69 before"):
        train(recipe, recipe.dpo)
    assert not hub.requests


def test_push_of_private_model_to_public_repository_is_refused(recipe, hub):
    hub.private = False
    with pytest.raises(PushError, match="is public"):
        train(recipe, recipe.sft)
    assert not hub.files


def test_run_without_login_does_not_start(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with stops_with("ENV057"):
        train(recipe, recipe.dpo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with stops_with("ENV056"):
        check_push(recipe)
    assert not RunDir(recipe.output_dir).run.exists()


def test_run_with_rejected_login_does_not_start(recipe, hub):
    hub.rejects = True
    with stops_with("ENV057"):
        train(recipe, recipe.dpo)
    assert not RunDir(recipe.output_dir).run.exists()


def test_dry_run_shows_target_and_user(recipe_data, dry_run, hub, monkeypatch):
    recipe_data["push_to_hub"] = {"repo_id": "me/tiny", "revision": "dpo", "private": False}
    code, _, printed = dry_run(recipe_data, "dpo", "--sample", "8")
    assert code == 0, printed
    assert f"push_to_hub: to {hub.url}/me/tiny (PUBLIC, branch dpo) as me, when" in printed


def test_dry_run_without_network_is_inconclusive(recipe_data, dry_run, hub, monkeypatch):
    recipe_data["push_to_hub"] = {"repo_id": "me/tiny"}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, document, _ = dry_run(recipe_data, "dpo", "--sample", "8")
    assert (code, document["will_run"]) == (2, None)
    assert [problem["code"] for problem in document["unchecked"]] == ["ENV058"]
