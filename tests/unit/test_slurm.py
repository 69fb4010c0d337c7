"""Job files: what they ask for, what they run, and what becomes of each exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.slurm.times import in_words, seconds
from prefcli.slurm.words import quoted

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "scripts" / "slurm" / "pipeline.sh"
RECIPE = """\
output_dir: runs/zephyr
model: {name_or_path: m}
dpo: {}
data: {train: {path: d.jsonl}}
"""
SRUN = """\
#!/bin/bash
printf '%s\\0' "$@" >srun.argv
sleep "${SRUN_SLEEP:-0}"
exit "${SRUN_CODE:-0}"
"""
SCONTROL = """\
#!/bin/bash
echo "$@" >scontrol.argv
exit "${SCONTROL_CODE:-0}"
"""


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A folder with a recipe, and with Slurm's commands as the job finds them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        _program(tmp_path / "bin" / name, text)
    return tmp_path


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def slurm(monkeypatch, capsys, here):
    def run(*argv: str, method: str = "dpo") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefcli", "slurm", "r.yaml", "--method", method, *argv])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def job(slurm):
    def text(*argv: str, method: str = "dpo") -> str:
        code, out, err = slurm(*argv, "--time", "4:00:00", method=method)
        assert (code, err) == (0, "")
        return out

    return text


def start(text: str, **variables: object) -> subprocess.Popen[str]:
    Path("job.sbatch").write_text(text)
    for name in ("srun.argv", "scontrol.argv"):
        Path(name).unlink(missing_ok=True)
    names = {"SLURM_JOB_ID": "7", **{k: str(v) for k, v in variables.items()}}
    path = f"{Path('bin').absolute()}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "job.sbatch"],
        env=os.environ | names | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(text: str, **variables: object) -> tuple[int, str]:
    process = start(text, **variables)
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


def srun_words() -> list[str]:
    return Path("srun.argv").read_text().split("\0")[:-1]


def options(text: str) -> list[str]:
    return [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_one_process_on_one_gpu(job):
    text = job("--partition", "gpu", "--account", "lab", "--qos", "long", "--mem", "64G")
    assert options(text) == [
        "--job-name=zephyr",
        "--partition=gpu",
        "--account=lab",
        "--qos=long",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gres=gpu:1",
        "--mem=64G",
        "--time=4:00:00",
        "--signal=TERM@300",
        "--output=runs/zephyr-%j.log",
        "--open-mode=append",
        "--requeue",
    ]
    assert run(text) == (0, "")
    assert srun_words() == ["--export=ALL", "prefcli", "dpo", "r.yaml"]
    made = "prefcli slurm r.yaml --method dpo --partition gpu --account lab --qos long --mem 64G"
    assert f"#   {made} --time 4:00:00 > dpo.sbatch\n#   mkdir -p runs && sbatch dpo.sbatch" in text
    assert "# prefcli dpo, 4 h at most." in text


@pytest.mark.parametrize(
    ("argv", "nodes", "gres"),
    [
        (["launch.processes=8"], 1, "gpu:8"),
        (["launch.processes=8", "launch.nodes=4"], 4, "gpu:8"),
        (["launch.nodes=2", "--gpus", "4"], 2, "gpu:4"),
        (["launch.processes=2", "--gpus", "2", "launch.strategy=zero3"], 1, "gpu:2"),
        (["launch.processes=2", "--gpus", "0"], 1, None),
        (["--gpus", "0"], 1, None),
    ],
)
def test_nodes_and_gpus_are_those_of_launch(job, argv, nodes, gres):
    found = options(job(*argv))
    assert f"--nodes={nodes}" in found
    assert [o for o in found if "gpu" in o] == ([f"--gres={gres}"] if gres else [])


def test_several_nodes_wait_for_each_other(job):
    run(job("launch.processes=8", "launch.nodes=2", "--grace", "600", "--cpus-per-task", "96"))
    assert srun_words() == [
        *("--export=ALL", "--cpus-per-task=96", "--kill-on-bad-exit=0", "--wait=600"),
        *("prefcli", "dpo", "r.yaml", "launch.processes=8", "launch.nodes=2"),
    ]


def test_the_gate_is_one_process(job):
    text = job("launch.processes=8", "launch.nodes=4", method="check-sft")
    assert {"--nodes=1", "--gres=gpu:1", "--output=runs/zephyr-check-sft-%j.log"} <= {
        *options(text)
    }
    run(text)
    assert srun_words()[1:3] == ["prefcli", "check-sft"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--gpus", "4", "launch.processes=8"], ["8 processes", "--gpus is 4"]),
        (["--gpus", "2"], ["--gpus 2", "launch.processes=2"]),
        (["launch.nodes=2"], ["launch.processes", "--gpus N"]),
        (["launch.nodes=2", "--gpus", "0"], ["launch.processes", "--gpus is 0"]),
        (["launch.strategy=fsdp2", "--gpus", "0"], ["launch.strategy", "fsdp2", "--gpus is 0"]),
        (["--grace", "14400"], ["--grace 14400", "--time 4:00:00 (4 h)"]),
        (["--mount", "/a:/b"], ["--mount has no effect without --container"]),
        (["--container-runtime", "pyxis"], ["--container-runtime has no effect"]),
        (["--container", "i", "--container-runtime", "docker"], ["docker: pyxis or apptainer"]),
        (["--container", "i", "--venv", "v"], ["--venv and --container"]),
        (["--sbatch=--nodes=3"], ["--sbatch --nodes=3", "--nodes of its own"]),
        (["--sbatch=-N3"], ["--sbatch -N3", "long form"]),
        (["--partition", "a\n#SBATCH --nodes=9"], ["no line break"]),
        (["dpo.bta=1"], ["dpo.bta", "no such key"]),
    ],
)
def test_what_contradicts_is_told(slurm, argv, told):
    code, out, err = slurm(*argv, "--time", "4:00:00")
    assert (code, out) == (2, "")
    assert all(part in err for part in told), err


@pytest.mark.parametrize("command", ["kto", "merge"])
def test_only_what_the_recipe_can_do(slurm, command):
    code, out, err = slurm("--time", "90", method=command)
    assert (code, out) == (2, "")
    assert command in err


def test_a_time_limit_must_be_given(slurm):
    code, _, err = slurm()
    assert code == 2
    assert "--time" in err


@pytest.mark.parametrize(
    ("text", "length", "words"),
    [
        ("90", 5400, "1 h 30 min"),
        ("4:00", 240, "4 min"),
        ("04:00:00", 14400, "4 h"),
        ("1-12", 129600, "1 d 12 h"),
        ("2-0:30", 174600, "2 d 30 min"),
        ("1-00:00:05", 86405, "1 d 5 s"),
    ],
)
def test_time_limits_are_slurms(text, length, words):
    assert (seconds(text), in_words(length)) == (length, words)


@pytest.mark.parametrize("text", ["", "0", "0:00", "4h", "1:2:3:4", "-5", "UNLIMITED", "1-", "٣"])
def test_other_time_limits_are_refused(slurm, text):
    code, _, err = slurm(f"--time={text}")
    assert code == 2
    assert f"--time {text}: no time limit" in err


def test_what_is_typed_arrives(job):
    typed = ['output_dir=runs/it\'s $HOME "x" `id` 5%', "dpo.beta=\n0.2", "data.max_length= 64"]
    text = job(*typed)
    assert run(text)[0] == 0
    assert srun_words() == ["--export=ALL", "prefcli", "dpo", "r.yaml", *typed]
    assert "--job-name=it-s-HOME-x-id-5" in options(text)
    log = "'--output=runs/it'\"'\"'s $HOME \"x\" `id` 5%%-%j.log'"
    assert log in options(text)
    head = text[: text.index("#SBATCH")].splitlines()
    assert all(line.startswith("#") for line in head)


PLAIN = ["", "a b", "$HOME", "it's", '"', "\\", "é", "#", "~", "*"]
ODD = ["a\nb", "\r\x1b[0m", "$'\n'", "\udcff1", "\u202e"]


def test_any_word_is_one_word_on_one_line():
    line = " ".join(map(quoted, PLAIN + ODD))
    assert line.isprintable()
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
    )
    assert found.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in PLAIN + ODD]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 137])
def test_an_exit_code_is_passed_on(job, code):
    assert run(job(), SRUN_CODE=code) == (code, "")
    assert not Path("scontrol.argv").exists()


def test_75_goes_back_into_the_queue(job):
    code, out = run(job(), SRUN_CODE=75, SLURM_RESTART_COUNT=19)
    assert code == 75
    assert Path("scontrol.argv").read_text() == "requeue 7\n"
    assert out == "pre-empted: job 7 goes back into the queue\n"


@pytest.mark.parametrize(("argv", "count"), [([], 20), (["--max-requeues", "3"], 3)])
def test_but_not_for_ever(job, argv, count):
    code, out = run(job(*argv), SRUN_CODE=75, SLURM_RESTART_COUNT=count)
    assert code == 75
    assert f"started again {count} times already" in out
    assert not Path("scontrol.argv").exists()


def test_never_where_it_is_not_wanted(job):
    text = job("--max-requeues", "0")
    assert "--no-requeue" in options(text)
    assert run(text, SRUN_CODE=75) == (75, "")
    assert not Path("scontrol.argv").exists()


def test_where_slurm_refuses_it_says_what_to_do(job):
    code, out = run(job(), SRUN_CODE=75, SCONTROL_CODE=1)
    assert code == 75
    assert "sbatch the same file again" in out


def test_the_shell_outlives_a_signal_to_the_whole_job(job):
    process = start(job(), SRUN_CODE=75, SRUN_SLEEP=0.5)
    while not Path("srun.argv").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert Path("scontrol.argv").exists()


def test_a_virtual_environment_and_lines_of_setup(job):
    activate = Path("my env/bin/activate")
    activate.parent.mkdir(parents=True)
    activate.write_text("echo activated$UNSET\n")
    code, out = run(job("--venv", "my env", "--setup", "echo $SLURM_JOB_ID", "--setup", "false"))
    assert (code, out) == (1, "activated\n7\n")
    assert not Path("srun.argv").exists()


def test_modules_need_a_login_shell(job):
    text = job("--module", "cuda/12.9", "--module", "a b")
    assert text.startswith("#!/bin/bash -l\n")
    assert "\nmodule load cuda/12.9\nmodule load 'a b'\n" in text


def test_containers(job):
    image = ["--container", "my image.sqsh", "--mount", "/data:/data"]
    run(job(*image))
    here = os.getcwd()
    assert srun_words()[1:] == [
        "--container-image=my image.sqsh",
        f"--container-mounts={here}:{here},/data:/data",
        f"--container-workdir={here}",
        *("prefcli", "dpo", "r.yaml"),
    ]
    run(job(*image, "--container-runtime", "apptainer"))
    assert srun_words()[1:] == [
        *("apptainer", "exec", "--nv", "--bind", here, "--pwd", here, "--bind", "/data:/data"),
        *("my image.sqsh", "prefcli", "dpo", "r.yaml"),
    ]
    run(job(*image, "--container-runtime", "apptainer", "--gpus", "0"))
    assert "--nv" not in srun_words()


def test_offline(job):
    text = job("--offline", "dpo.beta=0.2")
    assert "#   prefcli download r.yaml dpo.beta=0.2\n" in text
    text = text.replace("trap : TERM", "env | grep -c _OFFLINE=1\ntrap : TERM")
    assert run(text) == (0, "3\n")
    assert srun_words()[1:] == ["prefcli", "dpo", "r.yaml", "dpo.beta=0.2", "--offline"]


def test_flags_are_passed_on(job, slurm):
    run(job("--allow-unusual"))
    assert srun_words()[1:] == ["prefcli", "dpo", "r.yaml", "--allow-unusual"]
    code, _, err = slurm("--allow-unusual", "--time", "90", method="check-sft")
    assert (code, "--allow-unusual has no effect on check-sft" in err) == (2, True)


VARIANTS = {
    "plain": [],
    "nodes": ["launch.processes=8", "launch.nodes=2", "--cpus-per-task", "64"],
    "cpu": ["--gpus", "0"],
    "never": ["--max-requeues", "0"],
    "offline": ["--offline", "--sbatch=--constraint=a100|h100"],
    "setup": ["--module", "cuda", "--venv", "/opt/v", "--setup", "ulimit -l unlimited"],
    "pyxis": ["--container", "a b.sqsh", "--mount", "/d:/d"],
    "apptainer": ["--container", "a.sif", "--container-runtime", "apptainer", "--mount", "/d"],
    "nasty": ['output_dir=runs/it\'s "x" #5', "dpo.beta=\n0.2"],
}


def test_shells_have_nothing_to_say(job):
    paths = [Path(f"{name}.sbatch").absolute() for name in VARIANTS]
    for path, argv in zip(paths, VARIANTS.values(), strict=True):
        path.write_text(job(*argv))
    scripts = [*paths, *sorted((ROOT / "scripts").rglob("*.sh"))]
    assert PIPELINE in scripts
    for path in scripts:
        subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    check = ["shellcheck", "--external-sources", *scripts]
    assert subprocess.run(check, capture_output=True, text=True, cwd=ROOT).stdout == ""


@pytest.fixture
def pipeline(here):
    """The script, beside a `prefcli` and a `sbatch`; its output, a line each."""
    quickstart = ROOT / "recipes" / "quickstart"
    _program(here / "bin" / "python3", f'#!/bin/bash\nexec {quoted(sys.executable)} "$@"\n')

    def run(*argv: str, prefcli: str) -> list[str]:
        _program(here / "bin" / "prefcli", f"#!/bin/bash\n{prefcli}\n")
        recipes = [str(quickstart / "sft.yaml"), str(quickstart / "dpo.yaml")]
        found = subprocess.run(
            ["bash", PIPELINE, *argv, *recipes, "--time", "1:00:00", "--gpus", "0"],
            env=os.environ | {"PATH": f"{here / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.splitlines()

    return run


def test_the_pipeline_shows_what_it_would_submit(pipeline, here):
    python = quoted(sys.executable)
    lines = pipeline("--print", prefcli=f'exec {python} -m prefcli "$@"')
    submitted = [line.split()[2:] for line in lines if line.startswith("+ sbatch")]
    assert submitted == [
        ["--parsable", "jobs/sft.sbatch"],
        [
            *("--parsable", "--dependency=afterok:\\<sft\\>", "--kill-on-invalid-dep=yes"),
            "jobs/check-sft.sbatch",
        ],
        [
            *("--parsable", "--dependency=afterok:\\<check-sft\\>", "--kill-on-invalid-dep=yes"),
            "jobs/dpo.sbatch",
        ],
    ]
    assert [line.split()[-1] for line in lines if line.startswith("#SBATCH --job-name")] == [
        "--job-name=quickstart-sft",
        "--job-name=quickstart-dpo-check-sft",
        "--job-name=quickstart-dpo",
    ]
    assert not (here / "jobs").exists()
    assert not (here / "runs").exists()


def test_the_pipeline_submits_in_order(pipeline, here):
    sbatch = (
        '#!/bin/bash\necho "$@" >>sbatch.argv\necho "$((100 + $(wc -l <sbatch.argv)));cluster"\n'
    )
    _program(here / "bin" / "sbatch", sbatch)
    lines = pipeline(prefcli="echo prefcli $*")
    assert lines[-3:] == ["sft: job 101", "check-sft: job 102", "dpo: job 103"]
    assert [line.split()[1] for line in lines if line.startswith("prefcli")] == [
        *("download", "download", "prepare")
    ]
    assert (here / "sbatch.argv").read_text().splitlines() == [
        "--parsable jobs/sft.sbatch",
        "--parsable --dependency=afterok:101 --kill-on-invalid-dep=yes jobs/check-sft.sbatch",
        "--parsable --dependency=afterok:102 --kill-on-invalid-dep=yes jobs/dpo.sbatch",
    ]
    assert (here / "runs").is_dir()
