"""Job files: their options, their command lines, and the exit codes of the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.slurm.resources import format_duration, parse_time_limit
from prefcli.slurm.sbatch import quote

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
if [ -n "${SRUN_PIPES:-}" ]; then
    echo started >started.pipe
    read -r _ <finish.pipe
fi
exit "${SRUN_CODE:-0}"
"""
SCONTROL = """\
#!/bin/bash
echo "$@" >scontrol.argv
exit "${SCONTROL_CODE:-0}"
"""


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A folder with a recipe and with stubs of Slurm's commands."""
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


def test_job_file_single_process_requests_one_gpu(job):
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
    assert "# prefcli dpo, time limit 4 h." in text


@pytest.mark.parametrize(
    ("argv", "nodes", "gres"),
    [
        (["launch.processes=8"], 1, "gpu:8"),
        (["launch.processes=8", "launch.nodes=4"], 4, "gpu:8"),
        (["launch.nodes=2", "--gpus", "4"], 2, "gpu:4"),
        (["launch.processes=2", "--gpus", "2", "launch.strategy=zero3"], 1, "gpu:2"),
        (["launch.processes=2", "--gpus", "0"], 1, None),
        (["--gpus", "0"], 1, None),
        (["--gpus", "8"], 1, "gpu:8"),
        (["launch.strategy=single"], 1, "gpu:1"),
    ],
)
def test_job_file_launch_section_sets_nodes_and_gpus(job, argv, nodes, gres):
    lines = options(job(*argv))
    assert f"--nodes={nodes}" in lines
    assert [line for line in lines if "gpu" in line] == ([f"--gres={gres}"] if gres else [])


def test_job_file_several_nodes_wait_for_each_other(job):
    run(job("launch.processes=8", "launch.nodes=2", "--grace", "600", "--cpus-per-task", "96"))
    assert srun_words() == [
        *("--export=ALL", "--cpus-per-task=96", "--kill-on-bad-exit=0", "--wait=600"),
        *("prefcli", "dpo", "r.yaml", "launch.processes=8", "launch.nodes=2"),
    ]


def test_job_file_of_a_sweep_is_an_array_with_a_command_for_each_run(slurm, job):
    text = job("beta=0.1,0.5", "--sweep", "--jobs", "2", method="dpo,ipo")
    assert "--array=0-3%2" in options(text)
    assert "--output=runs/zephyr-sweep/zephyr-sweep-%A_%a.log" in options(text)
    assert run(text, SLURM_ARRAY_TASK_ID=3) == (0, "")
    folder = 'output_dir="runs/zephyr-sweep/ipo-beta=0.5"'
    words = ["ipo", "r.yaml", "ipo={}", "reference.precompute=true", "ipo.beta=0.5", folder]
    assert srun_words() == ["--export=ALL", "prefcli", *words]
    drawn = job("beta=0.1..0.5", "--sweep", "--random", "3", "--seed", "1")
    assert "--array=0-2" in options(drawn)
    code, _, err = slurm("--time", "1:00:00", "--random", "3")
    assert (code, "[RCP025]" in err) == (2, True)


def test_job_file_check_sft_is_a_single_process(job):
    text = job("launch.processes=8", "launch.nodes=4", method="check-sft")
    assert {"--nodes=1", "--gres=gpu:1", "--output=runs/zephyr-check-sft-%j.log"} <= {
        *options(text)
    }
    run(text)
    assert srun_words()[1:3] == ["prefcli", "check-sft"]


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--gpus", "4", "launch.processes=8"], "ENV020", ["8 processes", "--gpus is 4"]),
        (["--gpus", "2", "launch.strategy=single"], "ENV020", ["--gpus 2", "is single"]),
        (["launch.nodes=2"], "ENV021", ["launch.processes", "--gpus N"]),
        (["launch.nodes=2", "--gpus", "0"], "ENV021", ["launch.processes", "--gpus is 0"]),
        (["launch.strategy=fsdp2", "--gpus", "0"], "ENV022", ["launch.strategy", "fsdp2"]),
        (["--grace", "14400"], "ENV024", ["--grace 14400", "--time 4:00:00 (4 h)"]),
        (["--mount", "/a:/b"], "ENV025", ["--mount"]),
        (["--container-runtime", "pyxis"], "ENV025", ["--container-runtime"]),
        (["--container", "i", "--container-runtime", "docker"], "ENV025", ["docker"]),
        (["--container", "i", "--venv", "v"], "ENV025", ["--venv", "--container"]),
        (["--sbatch=--nodes=3"], "ENV026", ["--sbatch --nodes=3"]),
        (["--sbatch=-N3"], "ENV026", ["--sbatch -N3"]),
        (["--partition", "a\n#SBATCH --nodes=9"], "ENV026", []),
        (["dpo.bta=1"], "", ["dpo.bta"]),
    ],
)
def test_slurm_contradicting_options_are_refused(slurm, argv, code, parts):
    exit_code, out, err = slurm(*argv, "--time", "4:00:00")
    assert (exit_code, out) == (2, "")
    assert all(part in err for part in [code, *parts]), err


@pytest.mark.parametrize("command", ["kto", "merge"])
def test_slurm_method_that_the_recipe_lacks_is_refused(slurm, command):
    code, out, err = slurm("--time", "90", method=command)
    assert (code, out) == (2, "")
    assert command in err


def test_slurm_without_time_limit_is_refused(slurm):
    code, _, err = slurm()
    assert code == 2
    assert "--time" in err


@pytest.mark.parametrize(
    ("text", "length", "duration"),
    [
        ("90", 5400, "1 h 30 min"),
        ("4:00", 240, "4 min"),
        ("04:00:00", 14400, "4 h"),
        ("1-12", 129600, "1 d 12 h"),
        ("2-0:30", 174600, "2 d 30 min"),
        ("1-00:00:05", 86405, "1 d 5 s"),
    ],
)
def test_time_limit_in_slurms_forms_is_parsed(text, length, duration):
    assert (parse_time_limit(text), format_duration(length)) == (length, duration)


@pytest.mark.parametrize("text", ["", "0", "0:00", "4h", "1:2:3:4", "-5", "UNLIMITED", "1-", "٣"])
def test_time_limit_in_another_form_is_refused(slurm, text):
    code, _, err = slurm(f"--time={text}")
    assert code == 2
    assert "[ENV023]" in err


def test_job_file_arguments_reach_the_command_unchanged(job):
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
UNPRINTABLE = ["a\nb", "\r\x1b[0m", "$'\n'", "\udcff1", "\u202e"]


def test_quote_keeps_any_word_on_one_line():
    line = " ".join(map(quote, PLAIN + UNPRINTABLE))
    assert line.isprintable()
    result = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
    )
    assert result.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in PLAIN + UNPRINTABLE]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 137])
def test_job_other_exit_code_is_passed_on(job, code):
    assert run(job(), SRUN_CODE=code) == (code, "")
    assert not Path("scontrol.argv").exists()


def test_job_exit_code_75_is_requeued(job):
    code, out = run(job(), SRUN_CODE=75, SLURM_RESTART_COUNT=19)
    assert code == 75
    assert Path("scontrol.argv").read_text() == "requeue 7\n"
    assert out == "preempted: requeueing job 7\n"


@pytest.mark.parametrize(("argv", "count"), [([], 20), (["--max-requeues", "3"], 3)])
def test_job_after_max_requeues_is_not_requeued(job, argv, count):
    code, out = run(job(*argv), SRUN_CODE=75, SLURM_RESTART_COUNT=count)
    assert code == 75
    assert f"requeued {count} times" in out
    assert not Path("scontrol.argv").exists()


def test_job_with_max_requeues_0_is_not_requeued(job):
    text = job("--max-requeues", "0")
    assert "--no-requeue" in options(text)
    assert run(text, SRUN_CODE=75) == (75, "")
    assert not Path("scontrol.argv").exists()


def test_job_failed_requeue_names_the_command(job):
    code, out = run(job(), SRUN_CODE=75, SCONTROL_CODE=1)
    assert code == 75
    assert "sbatch this file again" in out


def test_job_signal_to_the_shell_waits_for_the_command(job):
    for name in ("started.pipe", "finish.pipe"):
        os.mkfifo(name)
    process = start(job(), SRUN_CODE=75, SRUN_PIPES=1)
    assert Path("started.pipe").read_text() == "started\n"
    process.send_signal(signal.SIGTERM)
    Path("finish.pipe").write_text("\n")
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert Path("scontrol.argv").exists()


def test_job_setup_lines_run_before_the_command(job):
    activate = Path("my env/bin/activate")
    activate.parent.mkdir(parents=True)
    activate.write_text("echo activated$UNSET\n")
    code, out = run(job("--venv", "my env", "--setup", "echo $SLURM_JOB_ID", "--setup", "false"))
    assert (code, out) == (1, "activated\n7\n")
    assert not Path("srun.argv").exists()


def test_job_file_with_modules_uses_a_login_shell(job):
    text = job("--module", "cuda/12.9", "--module", "a b")
    assert text.startswith("#!/bin/bash -l\n")
    assert "\nmodule load cuda/12.9\nmodule load 'a b'\n" in text


def test_job_file_container_runs_the_command_inside(job):
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


def test_job_file_offline_sets_the_environment(job):
    text = job("--offline", "dpo.beta=0.2")
    assert "#   prefcli download r.yaml dpo.beta=0.2\n" in text
    text = text.replace("trap : TERM", "env | grep -c _OFFLINE=1\ntrap : TERM")
    assert run(text) == (0, "3\n")
    assert srun_words()[1:] == ["prefcli", "dpo", "r.yaml", "dpo.beta=0.2", "--offline"]


def test_job_file_flag_is_passed_to_the_command(job, slurm):
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
    "special-characters": ['output_dir=runs/it\'s "x" #5', "dpo.beta=\n0.2"],
    "sweep": ["dpo.beta=0.1,0.5", "--sweep", "--jobs", "2"],
}


def test_job_files_and_scripts_pass_bash_and_shellcheck(job):
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
    """Runs the script with stubs of `prefcli` and `sbatch`, and returns its output lines."""
    quickstart = ROOT / "recipes" / "quickstart"
    _program(here / "bin" / "python3", f'#!/bin/bash\nexec {quote(sys.executable)} "$@"\n')

    def run(*argv: str, prefcli: str) -> list[str]:
        _program(here / "bin" / "prefcli", f"#!/bin/bash\n{prefcli}\n")
        recipes = [str(quickstart / "sft.yaml"), str(quickstart / "dpo.yaml")]
        result = subprocess.run(
            ["bash", PIPELINE, *argv, *recipes, "--time", "1:00:00", "--gpus", "0"],
            env=os.environ | {"PATH": f"{here / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return run


@pytest.mark.slow
def test_pipeline_print_submits_nothing(pipeline, here):
    python = quote(sys.executable)
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


def test_pipeline_submits_jobs_with_dependencies(pipeline, here):
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
