"""Ready templates: they parse, ask for every secret, and their very commands run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
JOB: Mapping[str, Any] = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
SERVICES: Mapping[str, Any] = COMPOSE["services"]
PASSWORDS = {"DSE_DB_PASSWORD": "database-word", "DSE_STORE_PASSWORD": "store-word"}


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """As `docker compose config` does it: ${NAME:-default}, ${NAME:?message} and $$."""
    if isinstance(value, dict):
        return {key: interpolated(found, variables) for key, found in value.items()}
    if isinstance(value, list):
        return [interpolated(found, variables) for found in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, kind, rest = match[1], match[2], match[3]
        if name in variables:
            return variables[name]
        assert kind == ":-", f"{name} is required: {rest}"
        return str(rest)

    return re.sub(r"\$\$|\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", put, value)


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    checker = Path(sys.executable).with_name("shellcheck")  # of the development extra
    found = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("missing", ["DSE_STORAGE", "DSE_STUDY"])
def test_scripts_say_what_is_not_set(missing: str) -> None:
    given = {"DSE_STORAGE": "sqlite:///x.db", "DSE_STUDY": "x", "PATH": os.environ["PATH"]}
    del given[missing]
    for command in ([str(DEPLOY / "slurm.sh")], [str(DEPLOY / "ssh.sh"), "start", "nowhere"]):
        told = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert told.returncode != 0
        assert f"{missing}: is not set" in told.stderr


def test_every_password_is_asked_for_and_has_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in re.findall(r"\$\{(\w*PASSWORD)", text):
        assert name in PASSWORDS
    assert not re.findall(r"\$\{\w*PASSWORD(?!:\?)", text)
    for name in PASSWORDS:
        others = {key: word for key, word in PASSWORDS.items() if key != name}
        with pytest.raises(AssertionError, match=f"{name} is required"):
            interpolated(dict(COMPOSE), others)


def test_compose_is_whole() -> None:
    found = interpolated(dict(COMPOSE), PASSWORDS)
    published = [
        port for service in found["services"].values() for port in service.get("ports", [])
    ]
    assert published == ["127.0.0.1:8050:8050"]
    for name, service in found["services"].items():
        for other, how in service.get("depends_on", {}).items():
            assert other in found["services"]
            if how["condition"] == "service_healthy":
                assert "healthcheck" in found["services"][other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in found["volumes"]
    for name in ("database", "store", "worker", "browser"):
        assert "healthcheck" in found["services"][name]
        assert found["services"][name].get("restart") != "no"
    assert not {"container_name", "ports"} & set(found["services"]["worker"])  # it is scaled


def test_compose_agrees_where_the_client_has_it() -> None:
    """The plugin is not on every machine; the test above reads the file without it."""
    known = shutil.which("docker") is not None
    known = (
        known
        and subprocess.run(
            ["docker", "compose", "version"], check=False, capture_output=True
        ).returncode
        == 0
    )
    if not known:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "--project-directory", str(ROOT), "config"]
    done = subprocess.run(
        command, env={**os.environ, **PASSWORDS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    given = {k: v for k, v in os.environ.items() if k not in PASSWORDS}
    assert subprocess.run(command, env=given, capture_output=True, check=False).returncode != 0


def test_the_image_has_a_variant_for_gpus_and_no_superuser() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "ARG TORCH=cpu" in text
    assert "whl/${TORCH}" in text
    assert re.search(r"^USER dse$", text, re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    assert {name for line in copied for name in line.split()} == set(kept)
    assert all((ROOT / name).exists() for name in kept)


def test_the_job_takes_its_url_from_a_secret_and_ends_by_signal() -> None:
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    by_name = {entry["name"]: entry for entry in container["env"]}
    assert by_name["DSE_STORAGE"]["valueFrom"] == {
        "secretKeyRef": {"name": "dse", "key": "storage"}
    }
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
