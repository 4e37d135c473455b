"""A job in the server is as it would be alone: its files, folder, environment, threads and end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorasp import serve

ROOT = Path(__file__).parents[1]
# What both programs share: a server that imports torch alone, and jobs that say what they are.
JOBS = """
import json, os, signal, sys, time
from pathlib import Path
from lorasp import serve
serve.PRELOADED = ("torch",)
serve._warm_up = lambda: None

def work(arguments):
    import torch
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    match arguments:
        case ["tell", code]:
            told = {"folder": os.getcwd(), "mine": os.environ.get("MINE"), "pid": os.getpid(),
                    "threads": torch.get_num_threads(), "server": os.environ.get("LORASP_SERVER"),
                    "stdin": sys.stdin.read(), "parent": os.getppid()}
            print(json.dumps(told))
            print("aside", file=sys.stderr)
            return int(code)
        case ["wait", name, other]:
            Path(name).write_text(str(os.getpid()))
            while not Path(other).exists():
                time.sleep(0.02)
            return 0
        case ["sleep", name]:
            try:
                Path(f"{name}.new").write_text(str(os.getpid()))
                os.rename(f"{name}.new", name)
                time.sleep(600)
            finally:
                Path("cleaned").touch()
        case ["finish", name]:
            told = []
            signal.signal(signal.SIGTERM, lambda *_: told.append(1))
            Path(name).touch()
            while not (told and Path("enough").exists()):
                time.sleep(0.02)
            Path("cleaned").touch()
            return 143
        case ["spin"]:
            while time.process_time() < 0.2:
                pass
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return 0
"""
SERVER = JOBS + "sys.exit(serve.serve(sys.argv[1:], work))"
CLIENT = (
    JOBS
    + """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
code = serve.forward(sys.argv[1:])
sys.exit(work(sys.argv[1:]) if code is None else code)
"""
)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("server.py", SERVER), ("client.py", CLIENT)):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("LORASP_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def under_server(program: str) -> subprocess.CompletedProcess:
    """Run a program, in which `job` starts a client, with a server at its side."""
    prelude = """
import json, os, pathlib, signal, subprocess, sys, time
def job(*arguments, **options):
    return subprocess.Popen([sys.executable, os.path.abspath("client.py"), *arguments], **options)
def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "waited for a minute"
        time.sleep(0.02)
until(lambda: pathlib.Path(os.environ["LORASP_SERVER"]).exists())
"""
    command = [sys.executable, "server.py", sys.executable, "-c", prelude + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_job_is_what_it_would_be_alone(scripts: Path) -> None:
    (scripts / "elsewhere").mkdir()
    done = under_server("""
environment = {**os.environ, "MINE": "set here", "OMP_NUM_THREADS": "2"}
with open("out", "w") as out, open("err", "w") as err:
    process = job("tell", "7", cwd="elsewhere", env=environment, stdin=subprocess.PIPE,
                  stdout=out, stderr=err, text=True)
    process.communicate("asked")
print(process.pid)
sys.exit(process.returncode)
""")
    assert done.returncode == 7, done.stderr
    told = json.loads((scripts / "out").read_text())
    assert told["folder"] == str(scripts / "elsewhere")
    assert told["mine"] == "set here" and told["threads"] == 2 and told["stdin"] == "asked"
    assert told["server"] is None
    assert (scripts / "err").read_text() == "aside\n"
    # it did run in the server: a process other than the client
    assert told["pid"] != int(done.stdout)
    assert done.stderr == ""


def test_a_job_tells_what_it_took(scripts: Path) -> None:
    """Where it is asked to: its work alone, which another process's is no part of."""
    done = under_server("""
asked = {**os.environ, "LORASP_TIMES": "times.jsonl"}
sys.exit(job("tell", "7", env=asked, stdin=subprocess.DEVNULL).wait() - 7
         or job("spin", env=asked).wait() or job("spin").wait())
""")
    assert done.returncode == 0, done.stderr
    told, spun = map(json.loads, (scripts / "times.jsonl").read_text().splitlines())
    assert (told["command"], spun["command"]) == ("tell", "spin")
    assert set(spun) == {"command", "wall", "user", "system"}
    # process_time starts with the process, some milliseconds before the work
    assert spun["user"] + spun["system"] > 0.1 > told["user"] + told["system"]


def test_without_a_server_a_command_runs_by_itself(
    scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone() -> dict:
        client = [sys.executable, "client.py", "tell", "3"]
        with subprocess.Popen(client, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            told = json.load(process.stdout)
        assert process.returncode == 3 and told["pid"] == process.pid
        return told

    alone()
    monkeypatch.setenv("LORASP_SERVER", str(scripts / "nobody-listens"))
    monkeypatch.setenv("LORASP_SERVER_PREFIX", sys.prefix)
    alone()


def test_a_job_in_another_environment_runs_by_itself(scripts: Path) -> None:
    """A container's Python, or conda's: the server has other packages."""
    done = under_server("""
other = {**os.environ, "LORASP_SERVER_PREFIX": "/opt/another"}
asked = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
for process in (job("tell", "0", **asked), job("tell", "0", env=other, **asked)):
    print(json.load(process.stdout)["pid"] == process.pid)
""")
    assert done.stdout.splitlines() == ["False", "True"], done.stderr


def test_two_jobs_at_once_and_the_end_of_a_killed_one(scripts: Path) -> None:
    """Each of the first two waits for the other; the client of the third is killed.

    That the last ones are no processes of their own shows that the server has outlived the first.
    """
    done = under_server("""
both = [job("wait", "a", "b"), job("wait", "b", "a")]
print([process.wait(60) for process in both])
sleeper = job("sleep", "pid")
until(pathlib.Path("pid").exists)
sleeper.kill()
sleeper.wait()
pid = int(pathlib.Path("pid").read_text())
def gone():
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
until(gone)
print(pathlib.Path("cleaned").exists(), pid != sleeper.pid)
crashed = job("crash")
print(crashed.wait(60))
""")
    assert done.stdout.splitlines() == ["[0, 0]", "True True", "1"], done.stderr


def test_nothing_is_left_of_the_server(scripts: Path) -> None:
    done = under_server("""
print(os.environ["LORASP_SERVER"])
process = job("tell", "0", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
print(json.load(process.stdout)["parent"])
""")
    socket, server = done.stdout.split()
    assert done.returncode == 0 and not Path(socket).parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), signal.SIGCONT)


def test_a_caller_that_is_told_to_end_passes_it_on_and_waits(scripts: Path) -> None:
    """As in training, where the job takes a checkpoint first: its exit code is the caller's."""
    done = under_server("""
patient = job("finish", "pid")
until(pathlib.Path("pid").exists)
patient.terminate()
time.sleep(0.2)
print(patient.poll())
patient.terminate()
pathlib.Path("enough").touch()
print(patient.wait(60), pathlib.Path("cleaned").exists())
""")
    assert done.stdout.splitlines() == ["None", "143 True"], done.stderr


def test_sigterm_reaches_all_that_the_command_has_started(tmp_path: Path) -> None:
    """As in a container that is stopped: snakemake itself would wait for its jobs."""
    job = "import signal, sys, time, pathlib; " + (
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(143))); "
        "pathlib.Path('begun').touch(); time.sleep(60)"
    )
    command = f"trap '' TERM; {sys.executable} -c \"{job}\"; echo $? > code"
    main = "import signal, sys; from lorasp.serve import run_to_its_end; " + (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        "run_to_its_end(['bash', '-c', sys.argv[1]], None)"
    )
    process = subprocess.Popen([sys.executable, "-c", main, command], cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "code").read_text() == "143\n"


def test_a_caller_that_dies_while_it_asks(tmp_path: Path) -> None:
    """Its job ends: half a request is followed by nothing."""
    ours, theirs = socket.socketpair()
    if (job := os.fork()) == 0:
        ours.close()
        serve._receive(theirs)
        os._exit(0)
    theirs.close()
    ours.sendall(b'{"arguments": ')
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) == 1


def test_the_server_ends_with_a_killed_parent(scripts: Path) -> None:
    program = """
process = job("tell", "0", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
print(json.load(process.stdout)["parent"], flush=True)
os.kill(os.getppid(), signal.SIGKILL)
"""
    done = under_server(program)
    server = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent by a minute")


def test_a_command_that_does_not_exist(scripts: Path) -> None:
    command = [sys.executable, "server.py", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'no-such-command'\n"
