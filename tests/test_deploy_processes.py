"""The commands of the ready templates run here, as processes, on a shared database."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from dse.audit import audit
from dse.storage import Storage
from dse.trial import State
from tests.command_line import study_text
from tests.postgresql import Server
from tests.test_deploy import DEPLOY, JOB, PASSWORDS, ROOT, SERVICES, interpolated

pytestmark = pytest.mark.slow


@dataclass
class Machine:
    """A folder, a database, and `dse` and `ssh` on the path; ends what it started."""

    folder: Path
    url: str
    study: str = "tiny"
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("DSE_")},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HOME": str(self.folder / "home"),
            "DSE_STORAGE": self.url,
            "DSE_STUDY": self.study,
            "DSE_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        done = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**more),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.processes.append(done)
        return done

    def run(self, *command: str, **more: str) -> str:
        process = self.start(*command, **more)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        return out

    def started(self, n_trials: int) -> None:
        """A study with its first trials, and more of them asked for."""
        self.run("dse", "run", "study.yaml", "--quiet")
        with Storage(self.url) as storage:
            storage.update_n_trials(self.study, n_trials)


@pytest.fixture
def machine(tmp_path: Path, postgresql: Server) -> Iterator[Machine]:
    database = postgresql.new_database()
    found = Machine(tmp_path, postgresql.url(database))
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "study.yaml").write_text(study_text())
    commands = {
        "dse": f'exec {sys.executable} -m dse.cli "$@"',
        "ssh": 'host=$1; shift; echo "$host" >>"$HOME/hosts"; exec bash -c "$*"',
    }
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    yield found
    for process in found.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
    postgresql.drop(database)


def until(holds: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def check_whole(url: str, n_trials: int) -> None:
    with Storage.open_readonly(url) as storage:
        trials = storage.trials("tiny")
        assert sum(t.state.finished and not t.served for t in trials) == n_trials
        assert not [t for t in trials if t.state in (State.RUNNING, State.WAITING, State.FAILED)]
        assert [found.found for found in audit(storage) if found.kind == "broken"] == []


def test_slurm_kubernetes_and_ssh_workers_share_a_study(machine: Machine) -> None:
    machine.started(10)
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    values = {"DSE_STUDY": "tiny", "POD_NAME": "dse-worker-x1"}
    arguments = [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], text) for text in container["args"]]
    slurm = machine.start(
        str(DEPLOY / "slurm.sh"),
        SLURM_ARRAY_JOB_ID="7",
        SLURM_ARRAY_TASK_ID="3",
        SLURM_CPUS_PER_TASK="1",
        CUDA_VISIBLE_DEVICES="0",
    )
    pod = machine.start(*container["command"], *arguments, DSE_STORAGE=machine.url)
    out = machine.run(str(DEPLOY / "ssh.sh"), "start", "lab1 --slot board=nucleo")
    assert out.strip() == "lab1: start"
    for process in (slurm, pod):
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
    log = machine.folder / "home" / ".dse" / "tiny.log"
    until(lambda: "the study is finished" in log.read_text())
    check_whole(machine.url, 10)
    with Storage.open_readonly(machine.url) as storage:
        slots = [dict(worker.slot) for worker in storage.workers("tiny")]
    for slot in ({"task": "7_3", "gpu": "0"}, {"pod": "dse-worker-x1"}, {"board": "nucleo"}):
        assert slot in slots
    assert (machine.folder / "home" / "hosts").read_text() == "lab1\n"


def test_a_preempted_worker_hands_its_trial_back(machine: Machine) -> None:
    """By Slurm's signal to the script, and by `ssh.sh stop`."""
    machine.started(500)

    def live() -> int:
        with Storage.open_readonly(machine.url) as storage:
            return sum(worker.live for worker in storage.workers("tiny"))

    slurm = machine.start(str(DEPLOY / "slurm.sh"))
    machine.run(str(DEPLOY / "ssh.sh"), "start", "lab1", "lab2")
    until(lambda: live() == 3)
    slurm.send_signal(signal.SIGTERM)
    assert slurm.wait(120) == 130
    machine.run(str(DEPLOY / "ssh.sh"), "stop", "lab2")
    until(lambda: live() == 1)
    with Storage.open_readonly(machine.url) as storage:
        held = {n for worker in storage.workers("tiny") for n in worker.holds}
        running = [t.number for t in storage.trials("tiny") if t.state is State.RUNNING]
        assert set(running) <= held
        left = [worker.ending for worker in storage.workers("tiny")]
    assert left.count("left") == 3  # with the one that started the study
    pids = [process for process in _processes() if f"--study {machine.study}" in process[1]]
    for number, _ in pids:
        os.kill(number, signal.SIGTERM)
    until(lambda: live() == 0)


def _processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_text().replace("\0", " ")
        except OSError:
            continue


def test_the_services_of_compose_run_as_processes(machine: Machine) -> None:
    """Their commands, environments and health checks, with servers of ours for the two images."""
    import boto3

    found = interpolated(dict(SERVICES), {**PASSWORDS, "DSE_STUDY": "tiny"})
    (machine.folder / "tiny.yaml").write_text(study_text({"n_trials": 6}))
    with ExitStack() as stack:
        store = ThreadedMotoServer("127.0.0.1", port=0)
        store.start()
        stack.callback(store.stop)
        endpoint = "http://{}:{}".format(*store.get_host_and_port())
        assert found["study"]["environment"]["DSE_STORAGE"].endswith("@database/dse")
        given = {"DSE_STORAGE": machine.url, "AWS_ENDPOINT_URL": endpoint}
        given["DSE_CACHE"] = str(machine.folder / "cache")
        secrets = {
            "aws_access_key_id": "dse",
            "aws_secret_access_key": PASSWORDS["DSE_STORE_PASSWORD"],
        }
        assert found["bucket"]["entrypoint"][-1] == "store/dse"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **secrets)
        client.create_bucket(Bucket="dse")

        def service(name: str, *changes: tuple[str, str]) -> subprocess.Popen[str]:
            entry = found[name]
            command = [*entry.get("entrypoint", ["dse"]), *entry["command"]]
            for old, new in changes:
                command = [part.replace(old, new) for part in command]
            return machine.start(*command, **{**entry["environment"], **given})

        study = service("study", ("/studies/", f"{machine.folder}/"))
        browser = service("browser", ("0.0.0.0", "127.0.0.1"), ("8050", "0"))
        address = next(line for line in browser.stdout or [] if "http://" in line)
        (port,) = re.findall(r"http://127.0.0.1:(\d+)/", address)
        health = [part.replace("8050", port) for part in found["browser"]["healthcheck"]["test"]]
        assert health[0] == "CMD"
        machine.run(*health[1:])
        until(lambda: _there(machine.url))
        workers = [service("worker") for _ in range(2)]
        machine.run(*found["worker"]["healthcheck"]["test"][1:])
        for process in (study, *workers):
            told, _ = process.communicate(timeout=300)
            assert process.returncode == 0, told
            assert PASSWORDS["DSE_STORE_PASSWORD"] not in told
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**found["worker"]["environment"], **given}.items():
                patch.setenv(name, value)
            check_whole(machine.url, 6)
            with Storage.open_readonly(machine.url) as storage:
                assert storage.artifact("tiny", 0, "graph")
        kept = client.list_objects_v2(Bucket="dse")["Contents"]
        assert all(entry["Key"].startswith("artifacts/") for entry in kept)


def _there(url: str) -> bool:
    with Storage.open_readonly(url) as storage:
        return bool(storage.studies())
