"""The files of `cluster/`: each is read by the tool that will read it, and none may drift from the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
SCRIPTS = [*sorted(CLUSTER.glob("*.sh")), *(ROOT / ".ci" / name for name in ("check", "run"))]
LAUNCHERS = ("aws.yaml", "gcp.yaml")


def tool(name: str) -> str:
    """A linter of the `test` extra: beside the interpreter, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    assert found is not None, f"{name} is missing: pip install -e '.[test]'"
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, **options
    )


# Ray's cluster launcher.


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a config before it calls the cloud; raises where `ray up` would."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(deepcopy(config))
    validate_config(filled)
    return filled


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launcher_takes_its_files(name: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    filled = prepared(config)
    for kind in ("head", "worker"):
        commands = " ".join(filled[f"{kind}_setup_commands"] + filled[f"{kind}_start_ray_commands"])
        assert "ray-wheels" not in commands, "the launcher's defaults would install a nightly Ray"
    assert filled["available_node_types"][filled["head_node_type"]]["resources"] == {"CPU": 0}
    assert not any(
        "REPLACE" in command for command in config["setup_commands"] + config["head_setup_commands"]
    )
    assert "/mnt/storage/rayrl-dt" in " ".join(config["initialization_commands"])
    assert any("/mnt/storage/rayrl-dt:/shared" in option for option in config["docker"]["run_options"])
    assert any("RAY_AUTH_MODE=" in option for option in config["docker"]["run_options"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.update(max_worker=3),
        lambda config: config.update(head_node_type="boss"),
        lambda config: config["available_node_types"]["rollout"].pop("node_config"),
        lambda config: config["available_node_types"]["rollout"].update(min_workers=100),
        lambda config: config["docker"].update(shm_size="8g"),
    ],
)
def test_the_launchers_validation_can_fail(damage: Any) -> None:
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(config)


# Kubernetes.

_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"}
_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_NATURAL = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with no other fields: Kubernetes drops or refuses those that it does not know."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


_ENV = {
    "type": "array",
    "items": closed("name value", name={"type": "string"}, value={"type": "string"}),
}
_AMOUNTS = {"type": "object", "additionalProperties": _QUANTITY}
_MOUNTS = {
    "type": "array",
    "items": closed("name mountPath", name=_NAME, mountPath={"type": "string", "pattern": "^/"}),
}
_POD = closed(
    "containers",
    securityContext=closed("", fsGroup=_NATURAL, runAsUser=_NATURAL, runAsGroup=_NATURAL),
    containers={
        "type": "array",
        "minItems": 1,
        "items": closed(
            "name image resources",
            name=_NAME,
            image={"type": "string"},
            env=_ENV,
            resources=closed("requests limits", requests=_AMOUNTS, limits=_AMOUNTS),
            ports={
                "type": "array",
                "items": closed("containerPort", containerPort=_NATURAL, name={**_NAME, "maxLength": 15}),
            },
            volumeMounts=_MOUNTS,
        ),
    },
    initContainers={
        "type": "array",
        "items": closed(
            "name image",
            name=_NAME,
            image={"type": "string"},
            command={"type": "array", "items": {"type": "string"}},
            securityContext=closed("", runAsUser=_NATURAL),
            volumeMounts=_MOUNTS,
        ),
    },
    volumes={
        "type": "array",
        "items": closed(
            "name",
            name=_NAME,
            persistentVolumeClaim=closed("claimName", claimName=_NAME),
            emptyDir=closed("", medium={"enum": ["", "Memory"]}, sizeLimit=_QUANTITY),
        ),
    },
)
_TEMPLATE = closed("spec", spec=_POD)
# The fields that are used here of ray.io/v1 RayJob, with the types of its definition.
_RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name=_NAME, namespace=_NAME, labels=_STRINGS),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint={"type": "string"},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=_NATURAL,
        backoffLimit=_NATURAL,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        rayClusterSpec=closed(
            "rayVersion headGroupSpec",
            rayVersion={"type": "string"},
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed("", env=_ENV),
            headGroupSpec=closed("rayStartParams template", rayStartParams=_STRINGS, template=_TEMPLATE),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    "groupName minReplicas maxReplicas rayStartParams template",
                    groupName=_NAME,
                    replicas=_NATURAL,
                    minReplicas=_NATURAL,
                    maxReplicas=_NATURAL,
                    rayStartParams=_STRINGS,
                    template=_TEMPLATE,
                ),
            },
        ),
    ),
)
_CLAIM = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "v1"},
    kind={"const": "PersistentVolumeClaim"},
    metadata=closed("name", name=_NAME),
    spec=closed(
        "accessModes resources",
        accessModes={"const": ["ReadWriteMany"]},
        storageClassName={"type": "string"},
        resources=closed("requests", requests=closed("storage", storage=_QUANTITY)),
    ),
)


_SELECTOR = closed(
    "",
    matchLabels=_STRINGS,
    matchExpressions={
        "type": "array",
        "items": closed("key operator", key={"type": "string"}, operator={"enum": ["Exists"]}),
    },
)
_PEER = closed("podSelector", podSelector=_SELECTOR, namespaceSelector=_SELECTOR)
_POLICY = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "networking.k8s.io/v1"},
    kind={"const": "NetworkPolicy"},
    metadata=closed("name", name=_NAME),
    spec=closed(
        "podSelector policyTypes ingress",
        podSelector=_SELECTOR,
        policyTypes={"const": ["Ingress"]},
        ingress={
            "type": "array",
            "items": closed(
                "from",
                **{"from": {"type": "array", "items": _PEER}},
                ports={"type": "array", "items": closed("port", port=_NATURAL)},
            ),
        },
    ),
)


def kubernetes() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    claim, policy, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return claim, policy, job


def test_the_ray_job_has_the_fields_of_its_definition() -> None:
    claim, policy, job = kubernetes()
    jsonschema.validate(claim, _CLAIM)
    jsonschema.validate(policy, _POLICY)
    jsonschema.validate(job, _RAY_JOB)
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    scales = any(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert cluster.get("enableInTreeAutoscaling", False) == scales, "nobody else starts workers"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert {volume["name"] for volume in pod["volumes"]} == {"shared", "shm"}
        (container,) = pod["containers"]
        assert "RAY_AUTH_MODE" in {variable["name"] for variable in container["env"]}
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
        assert claim["metadata"]["name"] in claims


def test_the_schema_of_the_ray_job_can_fail() -> None:
    *_, job = kubernetes()
    for damage in (
        lambda job: job["spec"].update(shutDownAfterJobFinishes=True),
        lambda job: job["spec"].update(activeDeadlineSeconds="2d"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
    ):
        damaged = deepcopy(job)
        damage(damaged)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(damaged, _RAY_JOB)


# Shell and Docker.


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_the_shell_and_shellcheck(script: Path) -> None:
    assert os.access(script, os.X_OK)
    parsed = run("bash", "-n", script)
    assert parsed.returncode == 0, parsed.stderr
    checked = run(tool("shellcheck"), script)
    assert checked.returncode == 0, checked.stdout


def test_shellcheck_finds_an_unquoted_path(tmp_path: Path) -> None:
    script = tmp_path / "bad.sh"
    script.write_text("#!/usr/bin/env bash\nrm -r $1/*\n")
    assert run(tool("shellcheck"), script).returncode != 0


def test_the_dockerfile_passes_hadolint_and_pins_what_the_package_asks_for(tmp_path: Path) -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    checked = run(tool("hadolint"), CLUSTER / "Dockerfile")
    assert checked.returncode == 0, checked.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text(text + "RUN pip install numpy\n")
    assert run(tool("hadolint"), bad).returncode != 0
    required = {
        requirement.name: requirement
        for requirement in map(Requirement, metadata.requires("rayrl_dt") or [])
        if requirement.marker is None
    }
    match = re.search(r"^ARG RAY_VERSION=(\S+)$", text, re.MULTILINE)
    assert match is not None and match[1] in required["ray"].specifier
    torch = re.search(r'"(torch[^"]+)"', text)
    assert torch is not None and Requirement(torch[1]).specifier == required["torch"].specifier
    assert kubernetes()[2]["spec"]["rayClusterSpec"]["rayVersion"] == match[1]
    for source in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path


def test_the_page_names_the_clients_that_the_launcher_needs_beside_a_user() -> None:
    (line,) = re.findall(
        r"^RUN pip install --no-cache-dir \. (.+)$", (CLUSTER / "Dockerfile").read_text(), re.M
    )
    clients = [Requirement(each.strip('"')).name for each in line.split()]
    page = (CLUSTER / "README.md").read_text()
    named = " ".join(re.findall(r"^\| .* `pip install ([\w -]+)`, `ray up ", page, re.MULTILINE))
    assert clients and named.split() == clients


def test_all_nodes_get_the_same_version_of_the_package() -> None:
    text = "".join((CLUSTER / name).read_text() for name in (*LAUNCHERS, "rayjob.yaml"))
    tags = set(re.findall(r"rayrl-dt:(\d[\w.]*)", text))
    assert tags == {metadata.version("rayrl_dt")}


# SLURM: the real script, in a job whose two commands of SLURM run their command right here.

_STUBS = {
    "scontrol": "echo node-0; echo node-1",
    "srun": '[[ "$*" == *--cpus-per-task=16* || "$*" == *hostname* ]] || exit 5\n'
    "while [[ $1 == --* ]]; do shift; done\n"
    '[[ -n ${SIGNAL_WHEN:-} && $1 != hostname ]] || exec "$@"\n'
    # As Slurm before the end of the time: what it has started, and none of its processes.
    '"$@" & until [[ -e $SIGNAL_WHEN ]]; do sleep 0.05; done; kill -TERM $!; wait $!',
    "hostname": "echo ${ADDRESS-192.0.2.7} 172.17.0.1",
}


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """Returns a function that runs `slurm.sh` with what `ray` and `rayrl-dt` do there."""

    def submit(*arguments: str, ray: str, command: str = "exit 0", **environment: str) -> Any:
        binaries = tmp_path / "bin"
        binaries.mkdir(exist_ok=True)
        for name, body in {**_STUBS, "ray": ray, "rayrl-dt": command}.items():
            (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (binaries / name).chmod(0o755)
        job = {
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node-[0-1]",
            "SLURM_CPUS_ON_NODE": "16",
        }
        path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, **job, "PATH": path, "RECORD": str(tmp_path / "record"), **environment}
        return run("bash", CLUSTER / "slurm.sh", *arguments, env=env, cwd=ROOT)

    return submit


# What `ray symmetric-run` does on the head: the command after --, whatever came before.
_RUNS = """
[[ $RAY_AUTH_MODE == token && $(stat -c %a "$RAY_AUTH_TOKEN_PATH") == 600 ]] || exit 3
[[ $(wc -c < "$RAY_AUTH_TOKEN_PATH") == 64 ]] || exit 4
echo "$* $RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" >> "$RECORD"
while [[ $1 != -- ]]; do shift; done
shift
"$@"
"""
_COMMAND = 'echo "rayrl-dt $* $RAY_ADDRESS" >> "$RECORD"'


def test_slurm_runs_the_command_on_one_ray_over_all_nodes(slurm: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "smoke"
    arguments = ("tune", "tune_configs/smoke.yaml", str(out), "--samples", "4")
    done = slurm(*arguments, ray=_RUNS, command=_COMMAND)
    assert done.returncode == 0, done.stderr
    ray, doctor, tune = (tmp_path / "record").read_text().splitlines()
    address = "192.0.2.7:23456"
    assert f"symmetric-run --address {address} --min-nodes 2 --num-cpus=16 --num-gpus=0" in ray
    assert ray.endswith(" 300")
    assert doctor == f"rayrl-dt doctor --address {address} --storage {out.parent} {address}"
    assert tune == (
        f"rayrl-dt tune tune_configs/smoke.yaml --out {out} --samples 4 --address {address} {address}"
    )
    # The nodes' second address, where the first is that of a network for management.
    assert slurm(*arguments, ray=_RUNS, command=_COMMAND, HEAD_IP="172.").returncode == 0
    assert "--address 172.17.0.1:23456" in (tmp_path / "record").read_text().splitlines()[3]
    refused = slurm(*arguments, ray=_RUNS, command=_COMMAND, HEAD_IP="10.")
    assert refused.returncode == 2 and "no address that begins with HEAD_IP=10." in refused.stderr
    # Again, with something in the folder: it resumes.
    out.mkdir()
    (out / "trial").touch()
    assert slurm("finetune", "runs/dt", str(out), ray=_RUNS, command=_COMMAND).returncode == 0
    last = (tmp_path / "record").read_text().splitlines()[-1]
    assert last == f"rayrl-dt finetune runs/dt --out {out} --resume {address}"
    assert [path.name for path in out.parent.iterdir()] == ["smoke"], "no traces"


@pytest.mark.parametrize(
    ("command", "left"), [("finetune", "files.json"), ("tune", "sweep.yaml"), ("finetune", None)]
)
def test_a_uri_is_kept_as_it_is_and_resumed(
    slurm: Any, tmp_path: Path, command: str, left: str | None
) -> None:
    uri = f"file://{tmp_path}/bucket/run"
    if left is not None:
        (tmp_path / "bucket" / "run").mkdir(parents=True)
        (tmp_path / "bucket" / "run" / left).touch()
    done = slurm(command, "what", uri, ray=_RUNS, command=_COMMAND)
    assert done.returncode == 0, done.stderr
    doctor, started = (tmp_path / "record").read_text().splitlines()[1:]
    assert f" --storage {uri} " in doctor and f" --out {uri} " in started
    assert ("--resume" in started) == (left is not None)
    assert not (ROOT / "file:").exists()


@pytest.mark.parametrize(
    ("ray", "command", "environment", "message"),
    [
        # A failed `ray start`: echoed, status 0.
        ("exit 0", "exit 0", {}, "did not finish"),
        (_RUNS, "[[ $1 != doctor ]]", {}, ""),
        (_RUNS, "[[ $1 != tune ]]", {}, ""),
        (_RUNS, "exit 0", {"SLURM_NTASKS": "4"}, "4 tasks on 2 nodes"),
        (_RUNS, "exit 0", {"ADDRESS": "127.0.1.1"}, "no address but '127.0.1.1'"),
        (_RUNS, "exit 0", {"SLURM_JOB_ID": ""}, "there is no SLURM job"),
    ],
)
def test_slurm_does_not_call_a_failure_a_success(
    slurm: Any, tmp_path: Path, ray: str, command: str, environment: dict[str, str], message: str
) -> None:
    done = slurm("tune", "smoke.yaml", str(tmp_path / "out"), ray=ray, command=command, **environment)
    assert done.returncode != 0 and message in done.stderr


_SAVES = """
[[ $1 != doctor ]] || exit 0
trap 'sleep 0.3; echo saved >> "$RECORD"; exit 1' TERM
touch "$SIGNAL_WHEN"
for _ in {1..30}; do sleep 0.1; done
"""


def test_slurms_signal_reaches_the_run_which_saves(slurm: Any, tmp_path: Path) -> None:
    arguments = ("tune", "smoke.yaml", str(tmp_path / "out"))
    done = slurm(*arguments, ray=_RUNS, command=_SAVES, SIGNAL_WHEN=str(tmp_path / "up"))
    assert done.returncode != 0
    assert (tmp_path / "record").read_text().splitlines()[-1] == "saved"
    assert not Path("/tmp/ray-123456.pid").exists()


def test_slurms_signal_leaves_nodes_without_the_run_alone(slurm: Any, tmp_path: Path) -> None:
    elsewhere = 'echo up > "$SIGNAL_WHEN"; sleep 0.3; echo goes on >> "$RECORD"'
    slurm("tune", "x.yaml", str(tmp_path / "out"), ray=elsewhere, SIGNAL_WHEN=str(tmp_path / "up"))
    assert (tmp_path / "record").read_text() == "goes on\n"
