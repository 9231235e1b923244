"""What lies in deploy/ is held to what exists for it: schemas, linters, the project itself, and a real S3 server."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import jsonschema
import kubernetes_validate
import pytest
import s3fs
import yaml
from ledger_rows import FINGERPRINT, annotation, error
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.authentication.authentication_token_setup import _get_default_token_path
from ray.autoscaler._private.command_runner import DockerCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_command
from s3server import S3Server

from mlb_batch.chain.metrics import METRICS
from mlb_batch.ledger import Lease, Ledger, RunFolder, compact, publish, read_current, verify
from mlb_batch.source import inspect, videos
from mlb_batch.spec import JobSpec
from mlb_batch.video import version_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.37"
RAY_FILES = ("rayjob.yaml", "raycronjob.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")) if one]


def ray_job(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents(name)[0]["spec"]
    return spec.get("jobTemplate", spec)


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that any file makes."""
    for name in RAY_FILES:
        yield f"{name} submitter", ray_job(name)["submitterPodTemplate"]
        cluster = ray_job(name)["rayClusterSpec"]
        yield f"{name} head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]
    yield "cronjob.yaml submitter", documents("cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]


PODS = dict(pod_templates())


@pytest.mark.parametrize("name", ["access.yaml", "cronjob.yaml"])
def test_kubernetes_knows_every_field(name: str) -> None:
    for one in documents(name):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_sound_and_hold_no_more_than_they_need(name: str) -> None:
    template = copy.deepcopy(PODS[name])
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod", **template["metadata"]}}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        assert re.fullmatch(r"registry\.example\.com/mlb-batch:[0-9.]+", container["image"]), "pinned, no latest"
        for variable in container.get("env", ()):
            secret = re.search("TOKEN|SECRET|KEY|PASSWORD", variable["name"])
            assert not secret or "value" not in variable, "a secret comes by reference"


@pytest.mark.parametrize("name", [name for name in PODS if name.endswith((" head", " captioners"))])
def test_who_fetches_the_models_has_room_for_them(name: str) -> None:
    """The driver, on the head, does too. Beside them lie logs, and what Ray spills."""
    sizes = runpy.run_path(str(DEPLOY / "sizing.py"))["memory"]()
    models = sizes["weights"] + 2 * sizes["the pair's weights"]  # as it is published: in float32
    (container,) = (one for one in PODS[name]["spec"]["containers"] if one["name"].startswith("ray-"))
    room = container["resources"]["limits"]["ephemeral-storage"]
    assert int(room.removesuffix("Gi")) << 30 > 2 * models
    assert f"some {models / 1e9:.0f} GB with a pair" in (DEPLOY / "README.md").read_text(encoding="utf-8")


# Of KubeRay's own CRDs, the fields that these files use: an unknown one would be dropped in silence by the server.
KUBERAY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["entrypoint", "rayClusterSpec"],
    "properties": {
        "entrypoint": {"type": "string"},
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
        "backoffLimit": {"type": "integer", "minimum": 0},
        "submitterPodTemplate": {"type": "object"},
        "rayClusterSpec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "authOptions": {"const": {"mode": "token"}},
                "enableInTreeAutoscaling": {"type": "boolean"},
                "autoscalerOptions": {
                    "additionalProperties": False,
                    "properties": {
                        "version": {"enum": ["v1", "v2"]},
                        "idleTimeoutSeconds": {"type": "integer"},
                        "resources": {"type": "object"},
                    },
                },
                "headGroupSpec": {
                    "additionalProperties": False,
                    "required": ["template"],
                    "properties": {"rayStartParams": {"$ref": "#/$defs/texts"}, "template": {"type": "object"}},
                },
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "additionalProperties": False,
                        "required": ["groupName", "maxReplicas", "minReplicas", "template"],
                        "properties": {
                            "groupName": {"type": "string", "pattern": "^[a-z0-9-]+$"},
                            "replicas": {"type": "integer"},
                            "minReplicas": {"type": "integer"},
                            "maxReplicas": {"type": "integer"},
                            "rayStartParams": {"$ref": "#/$defs/texts"},
                            "template": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
    "$defs": {"texts": {"type": "object", "additionalProperties": {"type": "string"}}},
}


@pytest.mark.parametrize("name", RAY_FILES)
def test_kuberay_knows_every_field(name: str) -> None:
    top = documents(name)[0]
    assert top["apiVersion"] == "ray.io/v1" and top["kind"] == {"rayjob.yaml": "RayJob"}.get(name, "RayCronJob")
    job = ray_job(name)
    jsonschema.validate(job, KUBERAY)
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] == group["maxReplicas"], (
            "a run takes what is there at its start"
        )


def test_every_night_is_the_same_job() -> None:
    nightly = documents("raycronjob.yaml")[0]["spec"]
    assert nightly.keys() == {"schedule", "timeZone", "suspend", "jobTemplate"}
    assert nightly["jobTemplate"] == ray_job("rayjob.yaml")


def test_the_job_in_the_files_is_one_that_fits_its_cluster() -> None:
    access = {one["kind"]: one for one in documents("access.yaml")}
    text = access["ConfigMap"]["data"]["job.yaml"]
    spec = JobSpec.from_dict(yaml.safe_load(text))
    jsonschema.validate(yaml.safe_load(text), json.loads((DEPLOY / "job.schema.json").read_text()))
    named = (spec.input.manifest, spec.model.id, spec.prune.feature_model)
    assert all(str(uri).startswith("s3://INPUT_BUCKET/") for uri in named), "what it reads lies beside the videos"
    cluster = ray_job("rayjob.yaml")["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    readers = groups["readers"]["replicas"] * int(limits["readers"]["cpu"]) / spec.cluster.read.num_cpus
    assert spec.cluster.read.concurrency[1] <= readers and limits["captioners"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    mounted = cluster["headGroupSpec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert (
        mounted == access["ConfigMap"]["metadata"]["name"]
        and "/etc/mlb-batch/job.yaml" in ray_job("rayjob.yaml")["entrypoint"]
    )
    for template in PODS.values():
        account = template["spec"].get("serviceAccountName")
        assert account in (None, access["ServiceAccount"]["metadata"]["name"])


def test_the_network_policy_lets_in_whoever_submits() -> None:
    policy = next(one["spec"] for one in documents("access.yaml") if one["kind"] == "NetworkPolicy")
    guarded = policy["podSelector"]["matchLabels"].items()
    admitted = [(rule.get("ports"), source) for rule in policy["ingress"] for source in rule["from"]]
    dashboard = {"protocol": "TCP", "port": 8265}
    knock = [source["podSelector"]["matchLabels"] for ports, source in admitted if ports == [dashboard]]
    for name, pod in PODS.items():
        labels = pod["metadata"]["labels"].items()
        if name.endswith("submitter"):
            assert any(wanted.items() <= labels for wanted in knock) and not guarded <= labels
        else:
            assert guarded <= labels
    operators = [source["namespaceSelector"]["matchLabels"] for ports, source in admitted
                 if ports is None and "namespaceSelector" in source]  # fmt: skip
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert operators and all(f"`{one['kubernetes.io/metadata.name']}`" in readme for one in operators)


def test_versions_agree() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert ray_job("rayjob.yaml")["rayClusterSpec"]["rayVersion"] == pins["ray"]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    images = set(re.findall(r"/mlb-batch:(\S+)", "".join(p.read_text() for p in DEPLOY.glob("*.yaml"))))
    assert images == {version[1]} and f"-t REGISTRY/mlb-batch:{version[1]} ." in (DEPLOY / "README.md").read_text()


def brought(name: str, extras: tuple[str, ...], seen: set[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """The distributions that installing one brings along here, and all of theirs."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    yield name
    with contextlib.suppress(metadata.PackageNotFoundError):  # listed since this environment was made
        for wanted in map(Requirement, metadata.requires(name) or []):
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": one}) for one in ("", *extras)):
                yield from brought(canonicalize_name(wanted.name), tuple(sorted(wanted.extras)), seen)


def test_everything_that_is_installed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    needed = set(brought("mlb-batch", ("test",), set())) - {"mlb-batch", "setuptools"}
    on_cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}  # torch's own pins
    assert len(needed) > 80 and needed - on_cuda <= pinned, sorted(needed - on_cuda - pinned)


def test_the_cluster_launcher_takes_its_file() -> None:
    config = prepare_config(documents("cluster-aws.yaml")[0])
    validate_config(config)
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0 and kinds["captioners"]["resources"]["GPU"] == 1
    assert sum(kind["max_workers"] for kind in kinds.values()) == config["max_workers"]


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.M))


def calls_of_the_launcher(config: dict[str, Any]) -> list[str]:
    """What Ray's own code runs on a fresh node to bring our container up there."""
    made: list[str] = []

    def run(command: str, **_: Any) -> bytes:
        made.append(command)
        environment = [f"{name}={value}" for name, value in image_environment().items()]
        return json.dumps(environment).encode() if "json .Config.Env" in command else b"docker"

    node = {"log_prefix": "", "node_id": "", "provider": None, "process_runner": None, "use_internal_ip": True}
    runner = DockerCommandRunner(
        config["docker"], auth_config=config["auth"], cluster_name=config["cluster_name"], **node
    )
    runner.ssh_command_runner = SimpleNamespace(run=run, ssh_user="ubuntu", cluster_name=config["cluster_name"])
    mounts = {**config["file_mounts"], "~/ray_bootstrap_config.yaml": "made/by/ray"}
    runner.run_init(as_head=True, file_mounts=mounts, sync_run_yet=True)
    return made


def test_the_token_is_where_ray_looks_for_it_in_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    config = documents("cluster-aws.yaml")[0]
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    monkeypatch.setenv("HOME", image_environment()["HOME"])
    started = next(one for one in calls_of_the_launcher(config) if one.startswith("docker run"))
    assert re.search(rf"-v \S+/~/\.ray/auth_token:{_get_default_token_path()} ", started)


def test_the_image_has_what_the_launcher_calls_in_it() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    inside = [one for one in calls_of_the_launcher(documents("cluster-aws.yaml")[0]) if "docker exec" in one]
    assert any(one.startswith("rsync -e 'docker exec -i'") for one in inside)
    installed = re.search(r"apt-get install (.+)", text)
    assert installed and {"rsync", "openssh-client"} <= set(installed[1].split())
    assert re.search(r"pip install .* boto3 ", text), "Ray's provider for AWS, on the head"
    assert f'"PATH={image_environment()["PATH"].replace("$", chr(92) + "$")}" > /etc/profile.d/' in text, "login shells"


def test_the_launchers_commands_are_ones_it_knows() -> None:
    lines = re.findall(r"^#   (ray .+?)(?: {3,}.*)?$", (DEPLOY / "cluster-aws.yaml").read_text(), re.M)
    given: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, *arguments in (shlex.split(line)[1:] for line in lines):
        given[name].append(ray_command.commands[name].make_context(name, arguments).params)
        assert given[name][-1].get("cluster_config_file", "deploy/cluster-aws.yaml") == "deploy/cluster-aws.yaml"
    assert list(given) == ["get-auth-token", "up", "exec", "rsync-up", "down"]
    _, run, status = (shlex.split(one["cmd"]) for one in given["exec"])
    assert run[:4] == ["RAY_AUTH_MODE=token", "ray", "job", "submit"] and "--no-wait" in run, "it outlives the session"
    assert run[run.index("--") + 1 :] == ["mlb-batch", "run", given["rsync-up"][0]["target"]], "the job file is there"
    assert status[:2] == ["mlb-batch", "status"]


def test_the_dockerfile_is_clean_and_copies_what_is_there() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint comes with the [test] extra"
    subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], check=True)
    text = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)
              for name in line.split()[:-1] if not name.startswith("--")]  # fmt: skip
    assert copied and all((ROOT / name).exists() and f"!{name}\n" in ignored for name in copied)
    assert re.search(r"^USER 1000:1000$", text, re.M) and not re.search(r":latest|TOKEN=|SECRET", text)


def test_a_wheel_holds_all_that_runs(tmp_path: Path) -> None:
    """What the image installs is not this folder: data files that setuptools doesn't know of would be missing. And
    where it is built, an empty package was when its dependencies were installed, which is newer than the code.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path / "w"]
    stand_in = re.search(r"RUN mkdir mlb_batch && (touch \S+).*?pip uninstall --yes mlb-batch && ([^\n]+)",
                         (DEPLOY / "Dockerfile").read_text(), re.S)  # fmt: skip
    assert stand_in
    (tmp_path / "mlb_batch").mkdir()
    subprocess.run(["sh", "-c", stand_in[1]], cwd=tmp_path, check=True)
    subprocess.run([*build, tmp_path], check=True)
    subprocess.run(["sh", "-c", stand_in[2]], cwd=tmp_path, check=True)
    shutil.copytree(ROOT / "mlb_batch", tmp_path / "mlb_batch", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*build, tmp_path], check=True)
    ours = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "mlb_batch").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    with ZipFile(next((tmp_path / "w").glob("*.whl"))) as wheel:
        assert ours.keys() - set(wheel.namelist()) == set()
        assert [name for name, path in ours.items() if wheel.read(name) != path.read_bytes()] == []


def board() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana.json").read_text()))


def queries() -> list[str]:
    return [target["expr"] for panel in board()["panels"] for target in panel["targets"]]


def test_the_board_asks_for_what_a_run_exports() -> None:
    names = set(re.findall(r"ray_mlb_batch_([a-z_]+)", "".join(queries())))
    assert names <= METRICS.keys()
    for name, label in re.findall(
        r"ray_mlb_batch_([a-z_]+)\{[^}]*run_id=~\"\$run_id\", ([a-z_]+)=", "".join(queries())
    ):
        assert METRICS[name][1] == label
    for expression in queries():
        for grouped in re.findall(r"by \(([a-z_, ]+)\)", expression):
            metrics = re.findall(r"ray_mlb_batch_([a-z_]+)", expression)
            known = {"job_name", "run_id"} | {METRICS[name][1] for name in metrics}
            assert not metrics or set(grouped.split(", ")) <= known


def test_the_board_is_one_that_grafana_draws() -> None:
    panels = board()["panels"]
    cells = [(x, y) for panel in panels for at in [panel["gridPos"]]
             for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]  # fmt: skip
    assert len(set(cells)) == len(cells), "no panel lies over another"
    assert max(x for x, _ in cells) < 24 and len({panel["id"] for panel in panels}) == len(panels)
    names = {variable["name"] for variable in board()["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z_]+)\}?", json.dumps(board()))) - {"__all"} <= names | {"__all"}
    assert all(
        panel["title"] and panel["description"] and panel["datasource"]["uid"] == "${datasource}" for panel in panels
    )


def test_prometheus_takes_every_query_of_the_board(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (Debian: prometheus)")
    rules = [{"record": f"query:{n}", "expr": re.sub(r"\$[a-z_]+", ".*", one)} for n, one in enumerate(queries())]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    subprocess.run([promtool, "check", "rules", path], check=True, capture_output=True)


# What S3 wants allowed for each call.
ACTIONS = {"ListObjectsV2": "s3:ListBucket", "HeadBucket": "s3:ListBucket", "GetObject": "s3:GetObject",
           "HeadObject": "s3:GetObject", "PutObject": "s3:PutObject", "DeleteObject": "s3:DeleteObject"}  # fmt: skip


def allowed(name: str, bucket: str) -> set[str]:
    statements = json.loads((DEPLOY / "iam" / name).read_text())["Statement"]
    asked = [one["Action"] for one in statements if bucket in one["Resource"]]
    return {action for one in asked for action in ([one] if isinstance(one, str) else one)}


def calls(caplog: pytest.LogCaptureFixture, bucket: str) -> set[str]:
    """The names of the calls that were made to a bucket, as the client itself logs them."""
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Making request for")]
    return {ACTIONS[re.findall(r"OperationModel\(name=(\w+)\)", one)[0]] for one in said if bucket in one}


def test_the_rights_are_what_the_job_uses_and_no_more(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    source, target = s3.make_bucket(), s3.make_bucket()
    output = f"s3://{target}/annotations/nightly"
    s3fs.S3FileSystem().pipe_file(f"{source}/videos/a.mp4", b"not really a video")
    s3fs.S3FileSystem.clear_instance_cache()
    with caplog.at_level(logging.DEBUG, "botocore.endpoint"), caplog.at_level(logging.DEBUG, "aiobotocore.endpoint"):
        prompts = [{"id": "caption", "kind": "caption", "text": "Describe it."}]
        job = {"input": {"videos": f"s3://{source}/videos/*.mp4"}, "output": output, "prompts": prompts}
        spec = JobSpec.from_dict(job)
        for video in videos(spec, inspect(spec)):
            version_of(video.uri)
            s3fs.S3FileSystem().cat_file(video.uri)
        run_id = f"20260101T000000Z-{uuid.uuid4().hex[:6]}"
        with Lease(output, run_id) as lease:
            ledger = Ledger(output, FINGERPRINT, run_id, lease=lease)
            RunFolder(output, run_id).write_json("progress", {})
            for n in range(3):
                ledger.commit([annotation(n)], [error(10 + n)])
            publish(output, FINGERPRINT, run_id)
        compact(output, f"{run_id}-compact", 256, 0.0)
        assert read_current(output) and verify(output) == []
    assert calls(caplog, source) == allowed("run.json", "INPUT_BUCKET")
    assert calls(caplog, target) == allowed("run.json", "OUTPUT_BUCKET")
    assert allowed("read.json", "OUTPUT_BUCKET") == {"s3:ListBucket", "s3:GetObject"}


def test_the_readme_has_the_numbers_that_its_script_prints() -> None:
    script = [sys.executable, DEPLOY / "sizing.py"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    table, memory = printed.split("\n\n")
    assert table in readme and ", ".join(memory.splitlines()) in " ".join(readme.split())


def test_the_readme_names_every_file_and_no_other() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([^`]+)` \|", readme.split("\n## ")[0], re.M))
    assert {name.rstrip("/") for name in named} | {"README.md", "Dockerfile.dockerignore"} == {
        path.name for path in DEPLOY.iterdir() if path.name != "__pycache__"
    }
