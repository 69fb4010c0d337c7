"""To the hub, after saving: against a hub of a few lines, and against none."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefcli.checkpoints.push_to_hub import check_push
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import PushError, RecipeError
from prefcli.training.run import train

TOKEN = "hf_" + "x" * 34


class Hub(BaseHTTPRequestHandler):
    """Takes every file within the commit itself; keeps what it was sent in `server.files`."""

    def do_GET(self):
        if self.path.endswith("/whoami-v2"):
            return self._answer({"name": "me", "type": "user", "orgs": []})
        return self._answer({"id": "me/tiny", "private": self.server.private, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            return self._answer({"url": f"{self.server.url}/me/tiny"})
        if "/preupload/" in self.path:
            paths = [each["path"] for each in json.loads(body)["files"]]
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

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.private, server.created = {}, [], True, None
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


def test_a_failed_push_costs_nothing_and_is_tried_again(recipe, hub, monkeypatch):
    run = RunDir(recipe.output_dir)
    with monkeypatch.context() as without:
        without.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(
            PushError, match=r"is saved in .*model, but not pushed to me/tiny"
        ) as no:
            train(recipe, recipe.dpo)
    assert no.value.exit_code == 6
    assert f"`hf upload me/tiny {run.model} . --private`" in str(no.value)
    said = run.read_run()
    assert said["status"] == "finished"
    assert said["push_to_hub"].items() >= {"status": "failed", "repo_id": "me/tiny"}.items()
    assert not hub.asked

    assert train(recipe, recipe.dpo).already_finished
    assert hub.created["visibility"] == "private"
    names = {path.name for path in run.model.iterdir()}
    assert hub.files.keys() == names >= {"model.safetensors", "config.json", "tokenizer.json"}
    weights = run.model / "model.safetensors"
    assert hub.files["model.safetensors"] == weights.read_bytes()
    entry = run.read_run()["push_to_hub"]
    assert (entry["status"], entry["url"]) == ("done", f"{hub.url}/me/tiny/commit/abc")
    assert TOKEN not in run.run.read_text("utf-8")

    hub.asked.clear()
    train(recipe, recipe.dpo)
    assert not hub.asked


def test_what_got_worse_is_not_pushed(recipe, hub):
    run = RunDir(recipe.output_dir)
    train(recipe, recipe.dpo)
    hub.asked.clear()
    worse = {"first": {"eval_loss": 0.69}, "last": {"eval_loss": 1.05}}
    told = {key: value for key, value in run.read_run().items() if key != "push_to_hub"}
    run.write_run({**told, "eval": worse})
    with pytest.raises(PushError, match=r"its eval_loss is 1\.05, and was 0\.69 before"):
        train(recipe, recipe.dpo)
    assert not hub.asked


def test_a_repository_that_is_public_is_no_private_one(recipe, hub):
    hub.private = False
    with pytest.raises(PushError, match="is public"):
        train(recipe, recipe.sft)
    assert not hub.files


def test_what_can_be_known_before_training_is(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RecipeError, match="nobody is logged in"):
        train(recipe, recipe.dpo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="this machine is offline"):
        check_push(recipe)
    assert not Path(recipe.output_dir).exists()


def test_a_dry_run_tells_where_it_goes(recipe_data, dry_run, hub, monkeypatch):
    recipe_data["push_to_hub"] = {"repo_id": "me/tiny", "revision": "dpo", "private": False}
    code, _, said = dry_run(recipe_data, "dpo", "--sample", "8")
    assert code == 0, said
    assert (
        f"push_to_hub: once it is finished, to {hub.url}/me/tiny (PUBLIC, branch dpo), as me"
        in said
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, found, _ = dry_run(recipe_data, "dpo", "--sample", "8")
    assert code == 2
    assert "the hub does not know this user" in json.dumps(found)
