"""The launch section, short of starting anything."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
import yaml

from prefcli import cli, first_failure
from prefcli.cli.app import LocatedError
from prefcli.errors import DataError, PreemptedError, RecipeError
from prefcli.launcher.accelerate_config import accelerate_config, command_lines
from prefcli.launcher.rendezvous import Rendezvous, first_host, meeting, refuse_copies
from prefcli.launcher.signal_forwarding import Signals
from prefcli.recipe import load
from prefcli.recipe.launch import Launch
from prefcli.recipe.schema import Recipe

RECIPE = {
    "output_dir": "runs/x",
    "model": {"name_or_path": "m"},
    "dpo": {},
    "data": {"train": {"path": "a.jsonl"}},
}


def config_of(launch: dict, processes: int = 8, **model) -> dict:
    recipe = Recipe.model_validate({**RECIPE, "model": {"name_or_path": "m", **model}})
    return accelerate_config(recipe, Launch.model_validate(launch), processes)


def test_ddp_is_accelerates_multi_gpu():
    assert config_of({}) == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": 8,
        "machine_rank": 0,
        "mixed_precision": "bf16",
        "use_cpu": False,
        "main_process_port": 0,
    }


def test_fsdp2_saves_whole_weights():
    config = config_of({"strategy": "fsdp2", "nodes": 2})
    assert (config["distributed_type"], config["num_processes"]) == ("FSDP", 16)
    fsdp = config["fsdp_config"]
    assert (fsdp["fsdp_version"], fsdp["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")


@pytest.mark.parametrize(("strategy", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero_offloads_nothing_and_saves_whole_weights(strategy, stage):
    config = config_of({"strategy": strategy})
    assert config["distributed_type"] == "DEEPSPEED"
    assert config["deepspeed_config"]["zero_stage"] == stage
    assert config["deepspeed_config"]["offload_param_device"] == "none"
    assert config["deepspeed_config"]["zero3_save_16bit_model"] == (stage == 3)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("auto", "bf16"), ("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "no")],
)
def test_the_recipe_says_the_precision(dtype, precision):
    assert config_of({}, dtype=dtype)["mixed_precision"] == precision


def test_commands_on_one_machine():
    words = ["dpo", "my recipe.yaml", "dpo.beta=0.2"]
    assert command_lines(Launch(), 4, "l.yaml", words) == [
        "accelerate launch --config_file l.yaml -m prefcli dpo 'my recipe.yaml' dpo.beta=0.2",
        "torchrun --standalone --nproc-per-node 4 -m prefcli dpo 'my recipe.yaml' dpo.beta=0.2",
    ]


def test_commands_on_several_machines_take_their_place_from_variables():
    (accelerate,) = command_lines(Launch(strategy="zero3", nodes=2), 8, "l.yaml", ["dpo", "r"])
    assert accelerate == (
        'accelerate launch --config_file l.yaml --machine_rank "$NODE_RANK" '
        '--main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m prefcli dpo r'
    )
    _, torchrun = command_lines(Launch(nodes=2), 8, "l.yaml", ["dpo", "r"])
    assert torchrun == (
        'torchrun --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" '
        '--master-port "$MASTER_PORT" --nproc-per-node 8 -m prefcli dpo r'
    )


# The command.


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """`prefcli launch dpo r.yaml`; (exit code, stdout, stderr)."""

    def run(section: dict | None, *more: str):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(RECIPE | ({"launch": section} if section else {})))
        monkeypatch.setattr(sys, "argv", ["prefcli", "launch", "dpo", str(path), *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_what_is_printed_is_the_file(launch):
    code, out, _ = launch({"strategy": "fsdp2", "processes": 4})
    assert code == 0
    assert yaml.safe_load(out) == config_of({"strategy": "fsdp2"}, 4)
    assert "# accelerate launch --config_file launch.yaml -m prefcli dpo " in out


def test_an_override_changes_it(launch):
    code, out, _ = launch({"processes": 4}, "launch.processes=2", "--json")
    found = json.loads(out)
    assert (code, found["accelerate"]["num_processes"]) == (0, 2)
    assert found["commands"][1].endswith("launch.processes=2")


def test_without_a_number_it_can_not_be_written_down(launch):
    code, _, err = launch({"strategy": "zero2"})
    assert code == 2
    assert "launch.processes: left out, it is the number of GPUs" in err


def test_without_a_section_there_is_nothing_to_start(launch):
    code, _, err = launch(None)
    assert code == 2
    assert "no launch section" in err


# Where machines meet.

SLURM = {
    "SLURM_JOB_ID": "30001",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}


def test_slurm_tells_where():
    assert meeting(2, SLURM) == Rendezvous(1, "gpu007", 15_001, "30001")


def test_variables_go_before_slurm():
    told = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}
    assert meeting(2, told) == Rendezvous(0, "10.0.0.1", 29_500, "30001")


def test_a_step_on_fewer_nodes_than_its_job():
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[002,007]", "SLURM_NNODES": "4"}
    assert meeting(2, SLURM | step).address == "gpu002"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-005,009],big1", "gpu003"),
        ("rack[1-2]-n[04,06]", "rack1-n04"),
        ("n[10-12]-ib,other", "n10-ib"),
    ],
)
def test_the_first_host(nodes, first):
    assert first_host(nodes) == first


def test_what_is_missing_is_named():
    with pytest.raises(RecipeError, match="NODE_RANK, MASTER_PORT are not set"):
        meeting(2, {"MASTER_ADDR": "a"})


@pytest.mark.parametrize(
    ("machines", "environment", "message"),
    [
        (4, SLURM, "asks for 4 machines, and the Slurm job has 2"),
        (2, {**SLURM, "NODE_RANK": "2"}, "this is machine 2 by NODE_RANK"),
        (2, {**SLURM, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_machines_that_do_not_fit(machines, environment, message):
    with pytest.raises(RecipeError, match=message):
        meeting(machines, environment)


def test_a_launcher_for_each_task_is_too_many():
    refuse_copies(2, {"SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(RecipeError, match="started prefcli 16 times on 2 machines"):
        refuse_copies(2, {"SLURM_STEP_NUM_TASKS": "16"})


# Signals and failures.


def test_signals_are_kept_and_passed_on():
    before = signal.getsignal(signal.SIGUSR1)
    signals = Signals()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert list(signals.received) == [signal.SIGUSR1]
        assert signals.interrupted is None
        heard = []
        signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        signals.send_to([os.getpid()])  # a worker, late
        assert heard == [signal.SIGUSR1]
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        signals = Signals()
        os.kill(os.getpid(), signal.SIGUSR1)
        signals.restore()
        assert not signals.received
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def rank_one(monkeypatch, tmp_path):
    """This process, as one of two."""
    monkeypatch.setattr(first_failure.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def test_one_of_a_launchers_processes_speaks(rank_one, monkeypatch):
    assert not first_failure.another_failed()
    assert first_failure.first_to_fail()
    assert not first_failure.first_to_fail()
    assert first_failure.another_failed()
    # The launcher reads it.
    monkeypatch.setattr(first_failure.os, "getpid", os.getppid)
    claim = first_failure.FailureMarker({"MASTER_PORT": "29500"})
    assert claim.rank == 1
    claim.make_for(0)
    assert claim.rank == 1
    claim.remove()
    assert not first_failure.another_failed()


def failing(monkeypatch, error: Exception) -> int:
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "_FOR_THE_CAUSE", 0)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code)


def test_another_rank_says_which_it_is(rank_one, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefcli", "dpo", "r.yaml", "--json"])
    assert failing(monkeypatch, DataError("a row is wrong")) == 4
    out, err = capsys.readouterr()
    assert err == "rank 1: error: a row is wrong\n"
    assert json.loads(out)["exit_code"] == 4
    assert failing(monkeypatch, DataError("a row is wrong")) == 4
    assert capsys.readouterr() == ("", "")


def test_a_bug_of_another_rank_keeps_its_traceback_and_ends(rank_one, monkeypatch, capsys):
    assert failing(monkeypatch, ZeroDivisionError("here")) == 1
    err = capsys.readouterr().err
    assert err.startswith("rank 1: Traceback (most recent call last):")
    assert "ZeroDivisionError: here" in err


def test_alone_a_bug_keeps_its_traceback_too(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert failing(monkeypatch, ZeroDivisionError("here")) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "ZeroDivisionError: here" in err


def test_to_be_preempted_is_not_to_fail(rank_one, monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    # As a method's command passes it on: with the recipe's places, in a class of its own.
    stop = LocatedError(PreemptedError("pre-empted at step 3"), load(str(recipe), []))
    assert failing(monkeypatch, stop) == 75
    assert capsys.readouterr().err == ""
    assert not first_failure.another_failed()
    monkeypatch.setenv("RANK", "0")
    assert failing(monkeypatch, stop) == 75
    assert capsys.readouterr().err == "pre-empted at step 3\n"
    assert not first_failure.another_failed()
