"""A checkpoint under its final name is complete, whenever the process is killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefcli.checkpoints import atomic, atomic_checkpoints
from prefcli.checkpoints.completeness import fault_of, is_complete
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import pairs, small_recipe, write_jsonl

KILLED = RuntimeError("killed")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """Train four steps with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("checkpoints")
    data = small_recipe(tiny_model, folder)
    data["training"] |= {"max_steps": 4, "save_steps": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load(str(folder / "recipe.yaml")).recipe
    train(recipe, recipe.dpo)
    return RunDir(recipe.output_dir)


FILES = {
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "files.json",
}


def test_checkpoint_contains_a_list_of_its_files(finished):
    checkpoint = finished.path / "checkpoint-4"
    assert {path.name for path in checkpoint.iterdir()} == FILES
    assert json.loads((checkpoint / "files.json").read_text()).keys() == FILES - {"files.json"}
    assert not (finished.path / ".saving").exists()
    assert finished.last_checkpoint() == (checkpoint, [])


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("harm", ["shortened", "removed", "flipped"])
def test_checkpoint_with_a_damaged_file_is_incomplete(finished, tmp_path, name, harm):
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(finished.path / "checkpoint-4", checkpoint)
    assert is_complete(checkpoint)
    file = checkpoint / name
    if harm == "removed":
        file.unlink()
    elif harm == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(file.read_bytes()[:-2])
    # Without the list, as in an earlier prefcli, the files that transformers writes decide.
    assert is_complete(checkpoint) == (name == "files.json" and harm == "removed")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_checkpoint_without_a_list_and_with_a_damaged_file_is_incomplete(finished, tmp_path, name):
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(finished.path / "checkpoint-4", checkpoint)
    (checkpoint / "files.json").unlink()
    file = checkpoint / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert not is_complete(checkpoint)
    file.unlink()
    assert not is_complete(checkpoint)


def test_checkpoint_listed_by_an_earlier_version_is_complete(finished, tmp_path):
    checkpoint = Path(shutil.copytree(finished.path / "checkpoint-4", tmp_path / "checkpoint-4"))
    listed = json.loads((checkpoint / "files.json").read_text())
    sizes = {name: entry["size"] for name, entry in listed.items()}
    (checkpoint / "files.json").write_text(json.dumps(sizes))
    assert is_complete(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert fault_of(checkpoint) == "optimizer.pt has another size than when it was written"


def test_resume_with_a_flipped_byte_continues_from_the_checkpoint_before(
    recipe_data, make_recipe, finished, tmp_path, capsys
):
    run = RunDir(str(shutil.copytree(finished.path, tmp_path / "run", dirs_exist_ok=True)))
    run.write_run({**run.read_run(), "status": "running"})
    shutil.rmtree(run.model)
    weights = run.path / "checkpoint-4" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 64
    weights.write_bytes(content)
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    # The recipe of the fixture, with its data.
    recipe_data["data"] = yaml.safe_load((finished.path / "recipe.yaml").read_text())["data"]
    recipe_data["output_dir"] = yaml.safe_load(run.recipe.read_text())["output_dir"]
    text = run.recipe.read_text().replace(recipe_data["output_dir"], str(run.path))
    run.recipe.write_text(text)
    recipe = make_recipe(recipe_data | {"output_dir": str(run.path)}).recipe

    train(recipe, recipe.dpo)
    output = capsys.readouterr().out
    assert "resuming from" in output
    assert "checkpoint-2" in output
    assert "checkpoint-4 is removed, since model.safetensors has changed" in output
    one, other = (load_file(f.model / "model.safetensors") for f in (run, finished))
    assert all(torch.equal(one[name], other[name]) for name in other)

    # The model of the finished run is gone: it is saved again from the last checkpoint.
    shutil.rmtree(run.model)
    train(recipe, recipe.dpo)
    again = load_file(run.model / "model.safetensors")
    assert all(torch.equal(again[name], one[name]) for name in one)
    for folder in (run.model, *run.path.glob("checkpoint-*")):
        shutil.rmtree(folder)
    with stops_with("RUN017", RecipeError):
        train(recipe, recipe.dpo)


def test_checkpoint_killed_before_its_move_is_removed_on_resume(
    recipe_data, make_recipe, finished, monkeypatch, capsys
):
    """Kill the run after the last byte and before the move: it resumes from the one before."""
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(recipe_data).recipe
    run = RunDir(recipe.output_dir)
    real = atomic.place

    def killed_at_4(written: Path, final: Path) -> None:
        if final.name == "checkpoint-4":
            # The error handler must not find files to remove, as after a kill.
            shutil.move(written.parent, run.path / "moved-aside")
            raise KILLED
        real(written, final)

    monkeypatch.setattr(atomic_checkpoints, "place", killed_at_4)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, recipe.dpo)
    (run.path / "moved-aside").rename(run.path / ".saving")
    assert run.last_checkpoint() == (run.path / "checkpoint-2", [])
    assert (run.path / ".saving" / "checkpoint-4" / "trainer_state.json").exists()

    monkeypatch.setattr(atomic_checkpoints, "place", real)
    capsys.readouterr()
    train(recipe, recipe.dpo)
    output = capsys.readouterr().out
    assert "warning: checkpoint-4 was cut short while it was written; it is removed" in output
    assert "checkpoint-2" in output
    assert not (run.path / ".saving").exists()
    one, other = (load_file(f.model / "model.safetensors") for f in (run, finished))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_save_total_limit_keeps_the_best_checkpoint(recipe_data, tmp_path, make_recipe):
    """Check a run whose loss grows, so that its last checkpoint is not the best."""
    recipe_data["training"] |= {
        "max_steps": 8,
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 2,
        "early_stopping": {"patience": 8},
    }
    # Train on swapped sides, so that each step makes the eval loss worse.
    rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(24)]
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "swapped.jsonl", rows))
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    left = sorted(path.name for path in run.path.glob("checkpoint-*"))
    state = json.loads((run.path / "checkpoint-8" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.parent == run.path
    assert best.name != "checkpoint-8"
    assert left == sorted([best.name, "checkpoint-8"])
    assert all(is_complete(run.path / name) for name in left)


def test_remove_renames_the_folder_before_deletion(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "weights").write_text("w")
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda path, **kwargs: None)
    atomic.remove(folder)
    assert not folder.exists()
    assert (tmp_path / ".saving" / "removed-checkpoint-2" / "weights").exists()


def test_place_replaces_an_older_folder(tmp_path):
    for name, text in (("checkpoint-2", "old"), (".saving/checkpoint-2", "new")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(text)
    atomic.place(tmp_path / ".saving" / "checkpoint-2", tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "weights").read_text() == "new"
    assert list((tmp_path / ".saving").iterdir()) == []
