"""Launchers with stand-ins for gcloud, sbatch, kubectl and Python that write down how they were called.

What a dry run prints is given to a shell, and must call the same as the run itself.
"""

import os
import pathlib
import re
import subprocess
import time

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
ODD = '--config.data.ops=decode|randaugment(2, "x\\y")$HOME `id` & \'s ${name}${hosts} # data'
FLAGS = ["--config=configs/imagenet.py:B/16", "--workdir=gs://bucket/a b", ODD]
RECORDER = """#!/usr/bin/env bash
{ flock 9; printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } 9>> "$RECORD.lock" >> "$RECORD"
echo "${CUDA_VISIBLE_DEVICES-all}" >> "$RECORD.gpus"
"""
READ_BY_LAUNCHERS = ("CUDA_VISIBLE_DEVICES", "JAX_COMPILATION_CACHE_DIR", "SLURM_RESTART_COUNT")


class Stage:
  """A directory of stand-ins, first on the path, and what they were called with."""

  def __init__(self, path):
    self.path, self.record = path, path / "record"
    (path / "bin").mkdir()

  def add(self, name, then="exit 0", at="bin", recorder=RECORDER):
    file = self.path / at / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{recorder}{then}\n")
    file.chmod(0o755)
    return str(file)

  def environment(self, **more):
    inherited = {name: value for name, value in os.environ.items() if name not in READ_BY_LAUNCHERS}
    path = f"{self.path / 'bin'}:{os.environ['PATH']}"
    return {**inherited, "PATH": path, "RECORD": str(self.record), **more}

  def run(self, *command, cwd=ROOT, **more):
    return subprocess.run(
      [str(c) for c in command], env=self.environment(**more), cwd=cwd,
      capture_output=True, text=True, check=False,
    )  # fmt: skip

  def launch(self, script, *arguments, **environment):
    return self.run(LAUNCH / script, *arguments, cwd="/", **environment)

  def calls(self):
    """Returns the calls so far, each a list of words, and forgets them."""
    text = self.record.read_text() if self.record.exists() else ""
    self.record.unlink(missing_ok=True)
    return [call.rstrip("\0").split("\0") for call in text.split("\n\0") if call]

  def lines(self, name):
    """Returns the lines of a file below the directory, [] as long as it is absent."""
    file = self.path / name
    return file.read_text().splitlines() if file.exists() else []

  def wait_for_lines(self, name, count):
    deadline = time.monotonic() + 20
    while len(self.lines(name)) < count and time.monotonic() < deadline:
      time.sleep(0.05)


@pytest.fixture
def stage(tmp_path):
  return Stage(tmp_path)


def test_scripts_are_valid_and_executable():
  for script in [*LAUNCH.glob("*.sh"), LAUNCH / "train.sbatch"]:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK), script


def calls_of_both(stage, script, *arguments, **environment):
  """Returns the calls of a run, which those of its dry run's output equal."""
  printed = stage.launch(script, "--dry_run", *arguments, **environment)
  assert (printed.returncode, stage.calls()) == (0, []), printed.stderr
  assert stage.run("bash", "-c", printed.stdout, **environment).returncode == 0
  dry = stage.calls()
  assert stage.launch(script, *arguments, **environment).returncode == 0
  assert sorted(stage.calls()) == sorted(dry)
  return dry


def test_slurm_submits(stage):
  stage.add("sbatch")
  (call,) = calls_of_both(stage, "slurm.sh", "4", "8", "--partition=gpu", "--", *FLAGS)
  sizes = ["--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8"]
  assert call == ["sbatch", *sizes, "--partition=gpu", "launch/train.sbatch", *FLAGS]


@pytest.mark.parametrize(
  ("status", "restarts", "again"),
  [
    (0, 0, False), (1, 0, False), (2, 0, False), (130, 0, False), (75, 0, True), (134, 0, True),
    (137, 99, True), (137, 100, False), (143, 0, True),
  ],
)  # fmt: skip
def test_slurm_requeues_what_may_still_succeed(stage, status, restarts, again):
  stage.add("srun", f"exit {status}")
  stage.add("scontrol")
  slurm = dict(SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="6", SLURM_RESTART_COUNT=str(restarts))
  done = stage.run("bash", LAUNCH / "train.sbatch", *FLAGS, PYTHON="py", **slurm)
  first, *rest = stage.calls()
  assert done.returncode == status
  options = ["--kill-on-bad-exit=0", "--cpus-per-task=6"]
  assert first == [
    "srun",
    *options,
    "py",
    "train.py",
    "--distributed",
    "--wait_for_workdir",
    *FLAGS,
  ]
  assert rest == ([["scontrol", "requeue", "17"]] if again else [])


def test_tpu_pod_setup(stage):
  stage.add("gcloud")
  stage.add("git")
  assert stage.launch("tpu_pod.sh", "setup", "pod", "zone").returncode == 0
  _, copy, *commands = stage.calls()
  assert copy[4:] == ["scp", copy[5], "pod:mixer-jax.tar.gz", "--zone=zone", "--worker=all"]
  for call in commands:
    assert call[4:8] == ["ssh", "pod", "--zone=zone", "--worker=all"]
    subprocess.run(["bash", "-n", "-c", call[8].removeprefix("--command=")], check=True)


def on_host(stage, call):
  """Runs there the command that gcloud would have brought to a host."""
  return stage.run("bash", "-c", call[8].removeprefix("--command="), cwd=stage.path)


def test_tpu_pod_trains_until_it_is_stopped(stage):
  """The command that reaches a host is run there, with a stand-in for its Python."""
  stage.add("gcloud")
  everywhere, first = calls_of_both(stage, "tpu_pod.sh", "train", "pod", "zone", *FLAGS)
  assert (everywhere[7], first[7]) == ("--worker=all", "--worker=0")
  (stop,) = calls_of_both(stage, "tpu_pod.sh", "stop", "pod", "zone")
  training = "trap 'echo saved; kill $!; exit 143' TERM\necho started\nsleep 60 & wait"
  stage.add("python", training, at="mixer-jax/.venv/bin")
  assert on_host(stage, everywhere).returncode == 0
  stage.wait_for_lines("mixer-jax/train.log", 1)
  assert stage.calls() == [["python", "train.py", "--distributed", "--wait_for_workdir", *FLAGS]]
  assert on_host(stage, everywhere).returncode == 1  # one is running
  assert on_host(stage, stop).returncode == 0
  shown = on_host(stage, first)
  assert (shown.stdout, shown.returncode) == ("started\nsaved\n", 143)
  assert on_host(stage, stop).returncode == 1  # none is running


@pytest.mark.parametrize("status", [0, 75])
def test_tpu_pod_ends_as_the_training_does(stage, status):
  stage.add("gcloud")
  cache = dict(JAX_COMPILATION_CACHE_DIR="gs://bucket/the cache")
  everywhere, first = calls_of_both(stage, "tpu_pod.sh", "train", "pod", "zone", *FLAGS, **cache)
  training = f'echo "$JAX_COMPILATION_CACHE_DIR"; sleep 0.3; echo last; exit {status}'
  stage.add("python", training, at="mixer-jax/.venv/bin")
  assert on_host(stage, everywhere).returncode == 0
  shown = on_host(stage, first)
  assert (shown.stdout, shown.returncode) == ("gs://bucket/the cache\nlast\n", status)
  stage.add("gcloud", f"[[ $* == *--worker=all* ]] || exit {status}")
  assert stage.launch("tpu_pod.sh", "train", "pod", "zone", *FLAGS).returncode == status


@pytest.mark.parametrize(
  ("processes", "visible", "gpus"),
  [
    (1, None, ["all"]),
    (1, "4,5", ["4,5"]),
    (2, None, ["0,1", "2,3"]),
    (2, "7,6,5,4", ["5,4", "7,6"]),
    (2, "GPU-8a,GPU-3b", ["GPU-3b", "GPU-8a"]),
  ],
)
def test_gpus_are_shared_out(stage, processes, visible, gpus):
  listed = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})\\n" for i in range(4))
  mig = "  MIG 1g.10gb Device 0: (UUID: MIG-1)\\n"  # a part of a GPU is not one
  stage.add("nvidia-smi", f"printf '{listed}{mig}'", recorder="#!/usr/bin/env bash\n")
  environment = dict(PYTHON=stage.add("py"), PORT="5")
  if visible:
    environment["CUDA_VISIBLE_DEVICES"] = visible
  calls = calls_of_both(stage, "gpus.sh", f"--processes={processes}", *FLAGS, **environment)
  assert sorted(stage.lines("record.gpus")) == sorted(2 * gpus)  # dry and wet
  several = ["--distributed", "--coordinator=localhost:5", f"--num_processes={processes}"]
  assert calls == [
    ["py", "train.py", *FLAGS, *([*several, f"--process_id={i}"] if processes > 1 else [])]
    for i in range(processes)
  ]


def test_gpus_stops_the_others_if_one_fails(stage):
  failing = "for a; do [[ $a == --process_id=1 ]] && exit 3; done; sleep 60 & wait"
  python = stage.add("py", f"trap 'kill $!; exit 143' TERM\n{failing}")
  begin = time.monotonic()
  two = dict(PYTHON=python, CUDA_VISIBLE_DEVICES="0,1")
  assert stage.launch("gpus.sh", "--processes=2", *FLAGS, **two).returncode == 3
  assert time.monotonic() - begin < 50


def test_gpus_passes_a_signal_on_once(stage):
  """Two would end train.py before it has saved."""
  training = "trap 'echo TERM >> \"$RECORD.signals\"; kill $!; exit 143' TERM\nsleep 60 & wait"
  two = dict(PYTHON=stage.add("py", training), CUDA_VISIBLE_DEVICES="0,1")
  command = [LAUNCH / "gpus.sh", "--processes=2", *FLAGS]
  process = subprocess.Popen(command, env=stage.environment(**two), start_new_session=True)
  stage.wait_for_lines("record.gpus", 2)
  time.sleep(0.3)  # until the traps are set
  process.terminate()
  assert process.wait(timeout=40) == 143
  assert stage.lines("record.signals") == ["TERM", "TERM"]  # one each


def gke_manifest(stage, topology, *options, **environment):
  printed = stage.launch(
    "gke.sh", "--dry_run", *options, "b16", "gcr.io/p/mixer:1", topology, *FLAGS, **environment
  )
  assert printed.returncode == 0, printed.stderr
  return yaml.safe_load(printed.stdout)


@pytest.mark.parametrize(
  ("topology", "accelerator", "hosts"),
  [
    ("v4:2x2x4", "tpu-v4-podslice", 4),
    ("v5e:1x1", "tpu-v5-lite-podslice", 1),
    ("v5e:2x4", "tpu-v5-lite-podslice", 2),
    ("v5p:8x16x16", "tpu-v5p-slice", 512),
    ("v6e:8x8", "tpu-v6e-slice", 16),
    ("tpu7x:2x2x1", "tpu7x", 1),
  ],
)
def test_gke_job_has_a_pod_for_each_host(stage, topology, accelerator, hosts):
  """What Kubernetes and JobSet require, and GKE of TPU slices."""
  manifest = gke_manifest(stage, topology)
  (replicated,) = manifest["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert job["parallelism"] == job["completions"] == hosts
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
  }
  chips = {"google.com/tpu": 1 if topology == "v5e:1x1" else 4}
  assert container["resources"]["limits"] == container["resources"]["requests"] == chips
  assert container["image"] == "gcr.io/p/mixer:1"
  assert container["command"] == ["python", "train.py", "--distributed", "--wait_for_workdir"]
  assert container["args"] == FLAGS
  assert int(cloud_tpu_cluster.coordinator_port) in [p["containerPort"] for p in container["ports"]]
  # One lost host restarts all, but for what would fail again.
  assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
  (rule,) = job["podFailurePolicy"]["rules"]
  final = {"containerName": container["name"], "operator": "In", "values": [1, 2]}
  assert (rule["action"], rule["onExitCodes"]) == ("FailJob", final)
  (rule,) = manifest["spec"]["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_gke_applies_the_manifest_of_the_dry_run(stage):
  stage.add("kubectl", 'cat > "$RECORD.manifest"')
  assert stage.launch("gke.sh", "b16", "gcr.io/p/mixer:1", "v5e:4x4", *FLAGS).returncode == 0
  assert stage.calls() == [["kubectl", "apply", "--filename=-"]]
  applied = yaml.safe_load((stage.path / "record.manifest").read_text())
  assert applied == gke_manifest(stage, "v5e:4x4")


def gke_pod(stage, *options, **environment):
  """Returns the template of the job's pods."""
  (job,) = gke_manifest(stage, "v5e:4x4", *options, **environment)["spec"]["replicatedJobs"]
  return job["template"]["spec"]["template"]


@pytest.mark.parametrize("bucket", ["some-data.1", "2026"])
def test_gke_mounts_the_bucket_of_the_data(stage, bucket):
  """As the driver's documentation has it: the pod's annotation, and a volume inside its specification."""
  pod = gke_pod(stage, f"--data_bucket={bucket}")
  assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  _, data = pod["spec"]["volumes"]
  assert data["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
  assert data["csi"]["volumeAttributes"]["bucketName"] == bucket
  _, mount = pod["spec"]["containers"][0]["volumeMounts"]
  assert mount == {"name": data["name"], "mountPath": "/mnt/data", "readOnly": True}
  without = gke_pod(stage)
  assert "metadata" not in without and len(without["spec"]["volumes"]) == 1


@pytest.mark.parametrize("place", ["gs://bucket/cache", 'gs://bucket/the "cache" \\1', ""])
def test_gke_passes_the_place_of_the_compilation_cache_on(stage, place):
  (container,) = gke_pod(stage, JAX_COMPILATION_CACHE_DIR=place)["spec"]["containers"]
  wanted = [{"name": "JAX_COMPILATION_CACHE_DIR", "value": place}] if place else None
  assert container.get("env") == wanted


GKE = "--dry_run", "b16", "image"


@pytest.mark.parametrize(
  ("command", "named"),
  [
    (("slurm.sh", "4", "--", *FLAGS), "usage"),
    (("slurm.sh", "4", "8", "--partition=gpu"), "flags are missing"),
    (("tpu_pod.sh", "start", "pod", "zone"), "usage"),
    (("tpu_pod.sh", "train", "pod", "zone"), "flags are missing"),
    (("gpus.sh", "--processes=0", *FLAGS), "--processes=0"),
    (("gpus.sh", "--processes=3", *FLAGS), "4 GPUs"),
    (("gke.sh", "--data_bucket=gs://b", *GKE, "v5e:4x4", "--config=c"), "--data_bucket=gs://b"),
    (("gke.sh", "--data_bucket=", *GKE, "v5e:4x4", "--config=c"), "--data_bucket="),
    (("gke.sh", "--dry_run", "B16", "image", "v5e:4x4", "--config=c"), "NAME B16"),
    (("gke.sh", "--dry_run", "b16", "im age", "v5e:4x4", "--config=c"), "IMAGE im age"),
    (("gke.sh", *GKE, "v3:4x4", "--config=c"), "TOPOLOGY v3:4x4"),
    (("gke.sh", *GKE, "v5e:4", "--config=c"), "TOPOLOGY v5e:4: GKE's slices of v5e are 1x1 2x2"),
    (("gke.sh", *GKE, "v5e:4x$(id)", "--config=c"), "TOPOLOGY v5e:4x$(id)"),
    (("gke.sh", *GKE, "v5e:4x4"), "usage"),
  ],
)  # fmt: skip
def test_bad_arguments_are_named_and_nothing_is_started(stage, command, named):
  for name in ("sbatch", "gcloud", "kubectl"):
    stage.add(name)
  environment = dict(PYTHON=stage.add("py"), CUDA_VISIBLE_DEVICES="0,1,2,3")
  done = stage.launch(*command, **environment)
  assert (done.returncode, stage.calls()) == (2, [])
  assert named in done.stderr


@pytest.mark.parametrize("visible", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_gpus_that_are_not_there_cannot_be_shared_out(stage, visible):
  stage.add("nvidia-smi", "exit 9", recorder="#!/usr/bin/env bash\n")
  done = stage.launch("gpus.sh", "--processes=2", *FLAGS, PYTHON=stage.add("py"), **visible)
  assert (done.returncode, stage.calls()) == (2, [])
  assert "CUDA_VISIBLE_DEVICES" in done.stderr


def test_the_image_has_the_versions_that_are_tested():
  def pins(path):
    lines = path.read_text().splitlines()
    return dict(line.split()[0].split("==") for line in lines if re.match(r"[\w.-]+==", line))

  tested, image = pins(ROOT / "requirements.txt"), pins(LAUNCH / "requirements.txt")
  assert tested.items() <= image.items()
  assert image["libtpu"]
