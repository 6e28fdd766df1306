"""The manifests: against the published API models of Kubernetes and Kubeflow Trainer, and the CLI."""

import re
import shlex
import string

import pytest
import yaml
from conftest import ROOT
from kubeflow_trainer_api import models
from torch.distributed.launcher.api import LaunchConfig

from distill_dynamics.cli.main import main
from distill_dynamics.runs.lease import BEAT_S, DEAD_S

MODELS = {
    "Job": models.IoK8sApiBatchV1Job,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}
FOLDER = ROOT / "docker" / "kubernetes"


def manifests(name: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pod_and_trainer(name: str) -> tuple[dict, dict, dict, int]:
    """The Job's spec, the pod's, what is run (args, resources) and on how many nodes."""
    if name == "job.yaml":
        (job,) = manifests(name)
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        return job["spec"], pod, {"args": container["args"], **container["resources"]}, 1
    runtime, job = manifests(name)
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    trainer = job["spec"]["trainer"]
    spec = replicated["template"]["spec"]
    run = {"args": trainer["args"], **trainer["resourcesPerNode"]}
    return spec, spec["template"]["spec"], run, trainer["numNodes"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_manifests_are_what_the_apis_know(path):
    """A field the models do not know, or one of another type, does not come back as it was given."""
    for manifest in manifests(path.name):
        model = MODELS[manifest["kind"]].from_dict(manifest)
        assert model.to_dict() == manifest


def test_the_comparison_sees_a_misspelt_field():
    (job,) = manifests("job.yaml")
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    assert MODELS["Job"].from_dict(job).to_dict() != job


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_the_command_is_one_that_fit_understands(name, capsys, monkeypatch):
    """And its paths, its devices and its memory are those of the pod that it runs in."""
    monkeypatch.chdir(ROOT)
    _, pod, run, nodes = pod_and_trainer(name)
    args = run["args"]
    with pytest.raises(SystemExit) as stopped:
        main([*args[args.index("distill_dynamics") + 1 :], "--print_config"])
    assert not stopped.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    data = config["data"]["init_args"]
    assert config["ckpt_path"] == "auto"
    assert config["name"]
    assert config["trainer"]["num_nodes"] == nodes

    gpus = int(run["limits"]["nvidia.com/gpu"])
    assert config["trainer"]["devices"] == "auto"
    assert config["trainer"]["accelerator"] == "gpu"  # or a pod without one would run on its CPUs
    assert data["global_batch"] % (gpus * nodes) == 0
    assert int(run["requests"]["cpu"]) >= gpus * (data["num_workers"] + 1)

    (container,) = pod["containers"]
    assert "command" not in container  # it would replace the entry point
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {
        "imagenet": f"/work/{data['data_dir']}",
        "runs": f"/work/{config['runs_dir']}",
        "shm": "/dev/shm",
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in manifests("storage.yaml")}
    assert {volumes[name]["persistentVolumeClaim"]["claimName"] for name in ("imagenet", "runs")} == claims
    # eight parts of batches ahead in each worker: bytes and the noise of erasing, in training and validation
    batch = min(data["batch_size"], data["global_batch"] // (gpus * nodes))
    part = -(-batch // data["num_workers"]) * 180_000
    ahead = 2 * gpus * data["num_workers"] * 8 * part
    shm = volumes["shm"]["emptyDir"]
    assert shm["medium"] == "Memory"
    room, memory = (
        int(size.removesuffix("Gi")) * 2**30 for size in (shm["sizeLimit"], run["limits"]["memory"])
    )
    assert ahead < room < memory  # what is in it counts as the container's memory


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_a_pod_whose_run_stands_still_is_ended(name):
    _, pod, run, _ = pod_and_trainer(name)
    (container,) = pod["containers"]
    (run_name,) = [word.partition("=")[2] for word in run["args"] if word.startswith("--name=")]
    environment = {}
    if name == "trainjob.yaml":
        environment = {v["name"]: v["value"] for v in manifests(name)[1]["spec"]["trainer"]["env"]}
    looks = int(re.findall(r"^sleep (\d+)$", (ROOT / "docker" / "alive.sh").read_text(), re.MULTILINE)[0])
    assert 2 * BEAT_S < looks < DEAD_S
    for probe, least, most in (("startupProbe", 1200, 3600), ("livenessProbe", 60, 300)):
        found = container[probe]
        command = shlex.split(found["exec"]["command"][-1]) if environment else found["exec"]["command"]
        script, folder = (string.Template(word).substitute(environment) for word in command)
        assert f"COPY docker/entrypoint.sh docker{script} /" in (ROOT / "docker/Dockerfile").read_text()
        assert folder == f"runs/{run_name}"
        assert found["timeoutSeconds"] > looks + 2
        assert least <= found["periodSeconds"] * found["failureThreshold"] <= most
        assert found["terminationGracePeriodSeconds"] < 30


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_a_pod_leaves_its_restart_to_the_job(name, monkeypatch):
    """podFailurePolicy is refused by the API server beside any other restartPolicy."""
    spec, pod, _, _ = pod_and_trainer(name)
    assert pod["restartPolicy"] == "Never"
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > 30  # the default: too short for a running validation
    if name == "trainjob.yaml":
        # torchrun waits as long for its workers, and is not killed before it has.
        (container,) = pod["containers"]
        (patience,) = [
            int(variable["value"])
            for variable in container["env"]
            if variable["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
        ]
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(patience))
        assert LaunchConfig(1, 1, 1).shutdown_timeout == patience
        assert 30 < patience < grace
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    names = {container["name"] for container in pod["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} <= names


def test_a_stopped_run_is_tried_again_and_a_mistake_is_not():
    (job,) = manifests("job.yaml")
    exits = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in exits}
    assert actions == {(75,): "Ignore", (2, 78): "FailJob"}


def test_a_failed_trainjob_starts_again_a_bounded_number_of_times():
    """The reason that is not counted is one that only a preempted pod's rule gives."""
    runtime, _ = manifests("trainjob.yaml")
    policy = runtime["spec"]["template"]["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == (
        "RestartJobSetAndIgnoreMaxRestarts",
        ["PodFailurePolicy"],
    )
    spec, _, _, _ = pod_and_trainer("trainjob.yaml")
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob"]
    assert "onPodConditions" in spec["podFailurePolicy"]["rules"][0]


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_pods_run_as_the_images_user(name):
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.M)[0]
    context = pod_and_trainer(name)[1]["securityContext"]
    assert {context["runAsUser"]} == {int(user)}
    assert {context["runAsGroup"], context["fsGroup"]} == {int(group)}


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_pods_meet_the_restricted_pod_security_standard(name):
    """kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, as the models read them."""
    model = models.IoK8sApiCoreV1PodSpec.from_dict(pod_and_trainer(name)[1])
    assert model.automount_service_account_token is False
    assert model.security_context.run_as_non_root is True
    assert model.security_context.run_as_user != 0
    assert model.security_context.seccomp_profile.type == "RuntimeDefault"
    assert not any([model.host_network, model.host_pid, model.host_ipc])
    for container in [*model.containers, *(model.init_containers or [])]:
        rights = container.security_context
        assert rights.allow_privilege_escalation is False
        assert rights.capabilities.drop == ["ALL"]
        assert not rights.capabilities.add
        assert not rights.privileged
        assert rights.run_as_non_root is not False
        assert rights.run_as_user != 0
        assert not any(port.host_port for port in container.ports or [])
    kinds = {kind for volume in model.volumes for kind in volume.to_dict()} - {"name"}
    assert kinds <= {
        "emptyDir",
        "persistentVolumeClaim",
        "configMap",
        "secret",
        "projected",
        "downwardAPI",
        "csi",
    }


def test_no_image_is_the_latest_whatever_that_is():
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    found = [
        (path.name, image)
        for path in FOLDER.glob("*.yaml")
        for image in re.findall(r"^\s*image: (\S+)", path.read_text(), re.MULTILINE)
    ]
    assert len(found) == 3
    assert {image.rpartition(":")[2] for _, image in found} == {released[0]}


def test_the_trainjob_runs_what_its_runtime_is_called():
    runtime, job = manifests("trainjob.yaml")
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    assert reference["apiGroup"] == runtime["apiVersion"].split("/")[0]
    trainer = job["spec"]["trainer"]
    assert trainer["numProcPerNode"] == int(trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"])
    assert f"--trainer.num_nodes={trainer['numNodes']}" in trainer["args"]
    assert re.fullmatch(r"[a-z0-9-]{1,63}", job["metadata"]["name"])
