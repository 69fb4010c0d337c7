"""The launch section: accelerate's configuration, rendezvous, signals and failures."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
import yaml

from prefcli import cli, first_failure
from prefcli.cli.recipe_command import LocatedError
from prefcli.errors import DataError, PreemptedError, RecipeError
from prefcli.launcher.accelerate_config import accelerate_config, command_lines
from prefcli.launcher.rendezvous import Rendezvous, check_srun_tasks, find_rendezvous, first_host
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Launch

RECIPE = {
    "output_dir": "runs/x",
    "model": {"name_or_path": "m"},
    "dpo": {},
    "data": {"train": {"path": "a.jsonl"}},
}


def config_of(launch: dict, processes: int = 8, **model) -> dict:
    recipe = Recipe.model_validate({**RECIPE, "model": {"name_or_path": "m", **model}})
    launch = {"strategy": "ddp", **launch}
    return accelerate_config(recipe, Launch.model_validate(launch), processes)


def test_accelerate_config_ddp_is_multi_gpu():
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


def test_accelerate_config_fsdp2_saves_full_weights():
    config = config_of({"strategy": "fsdp2", "nodes": 2})
    assert (config["distributed_type"], config["num_processes"]) == ("FSDP", 16)
    fsdp = config["fsdp_config"]
    assert (fsdp["fsdp_version"], fsdp["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")


@pytest.mark.parametrize(("strategy", "stage"), [("zero2", 2), ("zero3", 3)])
def test_accelerate_config_zero_saves_full_weights_without_offload(strategy, stage):
    config = config_of({"strategy": strategy})
    assert config["distributed_type"] == "DEEPSPEED"
    assert config["deepspeed_config"]["zero_stage"] == stage
    assert config["deepspeed_config"]["offload_param_device"] == "none"
    assert config["deepspeed_config"]["zero3_save_16bit_model"] == (stage == 3)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("auto", "bf16"), ("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "no")],
)
def test_accelerate_config_precision_is_the_recipes(dtype, precision):
    assert config_of({}, dtype=dtype)["mixed_precision"] == precision


def test_command_lines_on_one_node():
    words = ["dpo", "my recipe.yaml", "dpo.beta=0.2"]
    assert command_lines(Launch(strategy="ddp"), 4, "l.yaml", words) == [
        "accelerate launch --config_file l.yaml -m prefcli dpo 'my recipe.yaml' dpo.beta=0.2",
        "torchrun --standalone --nproc-per-node 4 -m prefcli dpo 'my recipe.yaml' dpo.beta=0.2",
    ]


def test_command_lines_on_several_nodes_read_variables():
    (accelerate,) = command_lines(Launch(strategy="zero3", nodes=2), 8, "l.yaml", ["dpo", "r"])
    assert accelerate == (
        'accelerate launch --config_file l.yaml --machine_rank "$NODE_RANK" '
        '--main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m prefcli dpo r'
    )
    _, torchrun = command_lines(Launch(strategy="ddp", nodes=2), 8, "l.yaml", ["dpo", "r"])
    assert torchrun == (
        'torchrun --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" '
        '--master-port "$MASTER_PORT" --nproc-per-node 8 -m prefcli dpo r'
    )


# The command.


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Runs `prefcli launch r.yaml`; returns exit code, stdout and stderr."""

    def run(section: dict | None, *arguments: str):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(RECIPE | ({"launch": section} if section else {})))
        monkeypatch.setattr(sys, "argv", ["prefcli", "launch", str(path), *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_launch_prints_the_accelerate_config(launch):
    code, out, _ = launch({"strategy": "fsdp2", "processes": 4})
    assert code == 0
    assert yaml.safe_load(out) == config_of({"strategy": "fsdp2"}, 4)
    assert "# accelerate launch --config_file launch.yaml -m prefcli dpo " in out


def test_launch_override_changes_the_config(launch):
    code, out, _ = launch({"strategy": "ddp", "processes": 4}, "launch.processes=2", "--json")
    document = json.loads(out)
    assert (code, document["accelerate"]["num_processes"]) == (0, 2)
    assert document["commands"][1].endswith("launch.processes=2")


def test_launch_without_processes_is_an_error(launch):
    code, _, err = launch({"strategy": "zero2"})
    assert code == 2
    assert "launch.processes: is not set" in err
    assert "[ENV021]" in err


def test_launch_of_an_automatic_strategy_is_an_error(launch):
    code, _, err = launch({"processes": 8})
    assert code == 2
    assert "launch.strategy: is auto" in err
    assert "[RCP030]" in err


def test_launch_section_single_with_two_processes_is_an_error(launch):
    code, _, err = launch({"strategy": "single", "processes": 2})
    assert code == 2
    assert "launch.strategy single is one process, not 2" in err


# Rendezvous.

SLURM = {
    "SLURM_JOB_ID": "30001",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}


def test_find_rendezvous_from_slurm_variables():
    assert find_rendezvous(2, SLURM) == Rendezvous(1, "gpu007", 15_001, "30001")


def test_find_rendezvous_explicit_variables_override_slurm():
    variables = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}
    assert find_rendezvous(2, variables) == Rendezvous(0, "10.0.0.1", 29_500, "30001")


def test_find_rendezvous_step_on_fewer_nodes_uses_the_step():
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[002,007]", "SLURM_NNODES": "4"}
    assert find_rendezvous(2, SLURM | step).address == "gpu002"


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
def test_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


def test_find_rendezvous_missing_variables_are_named():
    with pytest.raises(RecipeError, match="NODE_RANK, MASTER_PORT are not set") as e:
        find_rendezvous(2, {"MASTER_ADDR": "a"})
    assert e.value.problems[0].code == "ENV005"


@pytest.mark.parametrize(
    ("nodes", "environment", "value"),
    [
        (4, SLURM, "the Slurm job has 2"),
        (2, {**SLURM, "NODE_RANK": "2"}, "NODE_RANK is 2"),
        (2, {**SLURM, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_find_rendezvous_contradicting_variables_are_an_error(nodes, environment, value):
    with pytest.raises(RecipeError, match=value) as e:
        find_rendezvous(nodes, environment)
    assert e.value.problems[0].code == "ENV005"


def test_check_srun_tasks_several_per_node_is_an_error():
    check_srun_tasks(2, {"SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(RecipeError, match="started prefcli 16 times on 2 nodes"):
        check_srun_tasks(2, {"SLURM_STEP_NUM_TASKS": "16"})


# Signals and failures.


def test_signal_forwarder_records_and_forwards():
    before = signal.getsignal(signal.SIGUSR1)
    signals = SignalForwarder()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert list(signals.received) == [signal.SIGUSR1]
        assert signals.interrupted is None
        worker_received = []
        signal.signal(signal.SIGUSR1, lambda number, frame: worker_received.append(number))
        signals.send_to([os.getpid()])  # a worker, late
        assert worker_received == [signal.SIGUSR1]
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signal_forwarder_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        signals = SignalForwarder()
        os.kill(os.getpid(), signal.SIGUSR1)
        signals.restore()
        assert not signals.received
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def rank_one(monkeypatch, tmp_path):
    """Makes this process rank 1 of two."""
    monkeypatch.setattr(first_failure.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def test_first_to_fail_is_true_once_per_machine(rank_one, monkeypatch):
    assert not first_failure.another_failed()
    assert first_failure.first_to_fail()
    assert not first_failure.first_to_fail()
    assert first_failure.another_failed()
    # The launcher reads it.
    monkeypatch.setattr(first_failure.os, "getpid", os.getppid)
    marker = first_failure.FailureMarker({"MASTER_PORT": "29500"})
    assert marker.rank == 1
    marker.create_for(0)
    assert marker.rank == 1
    marker.remove()
    assert not first_failure.another_failed()


def failing(monkeypatch, error: Exception) -> int:
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.main(fail, grace=0)
    return int(stop.value.code)


def test_main_error_on_another_rank_names_the_rank(rank_one, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefcli", "dpo", "r.yaml", "--json"])
    assert failing(monkeypatch, DataError("a row is wrong", code="DAT001")) == 4
    out, err = capsys.readouterr()
    assert err == "rank 1: error: a row is wrong [DAT001]\n"
    assert json.loads(out)["exit_code"] == 4
    assert failing(monkeypatch, DataError("a row is wrong", code="DAT001")) == 4
    assert capsys.readouterr() == ("", "")


def test_main_bug_on_another_rank_prints_its_traceback(rank_one, monkeypatch, capsys):
    assert failing(monkeypatch, ZeroDivisionError("here")) == 1
    err = capsys.readouterr().err
    assert err.startswith("rank 1: Traceback (most recent call last):")
    assert "ZeroDivisionError: here" in err


def test_main_bug_in_a_single_process_prints_its_traceback(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert failing(monkeypatch, ZeroDivisionError("here")) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "ZeroDivisionError: here" in err


def test_main_preemption_is_not_a_failure(rank_one, monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    # Commands wrap errors in LocatedError, which adds the places in the recipe.
    stop = LocatedError(PreemptedError("preempted at step 3", code="RUN001"), load(str(recipe), []))
    assert failing(monkeypatch, stop) == 75
    assert capsys.readouterr().err == ""
    assert not first_failure.another_failed()
    monkeypatch.setenv("RANK", "0")
    assert failing(monkeypatch, stop) == 75
    assert capsys.readouterr().err == "preempted at step 3 [RUN001]\n"
    assert not first_failure.another_failed()
