"""Launchers with stand-ins for gcloud, sbatch, kubectl and Python that write down how they were called.

What a dry run prints is given to a shell, and must call the same as the run itself.
"""

import os
import pathlib
import subprocess
import time

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster

from mixer_jax.tools.planning import topology

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
ODD = '--config.data.ops=decode|randaugment(2, "x\\y")$HOME `id` & \'s ${name}${hosts} # data'
FLAGS = ["--config=configs/imagenet.py:B/16", "--workdir=gs://bucket/a b", ODD]
RECORDER = """#!/usr/bin/env bash
{ flock 9; printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } 9>> "$RECORD.lock" >> "$RECORD"
echo "$BASHPID ${CUDA_VISIBLE_DEVICES-all}" >> "$RECORD.places"
"""

READ = (
  "CUDA_VISIBLE_DEVICES",
  "JAX_COMPILATION_CACHE_DIR",
  "SLURM_RESTART_COUNT",
)  # by the launchers
UNRECORDED = "#!/usr/bin/env bash\n"


class Stage:
  """A directory of stand-ins, first on the path, and what they were called with."""

  def __init__(self, path):
    self.path, self.record = path, path / "record"
    (path / "bin").mkdir()

  def add(self, name, then="exit 0", at=None, recorder=RECORDER):
    file = (at or self.path / "bin") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{recorder}{then}\n")
    file.chmod(0o755)
    return file

  def environment(self, **more):
    path = f"{self.path / 'bin'}:{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name not in READ}
    return {**inherited, "PATH": path, "RECORD": str(self.record), **more}

  def run(self, *command, cwd="/", **more):
    return subprocess.run(
      [str(c) for c in command], env=self.environment(**more), cwd=cwd,
      capture_output=True, text=True, check=False,
    )  # fmt: skip

  def calls(self):
    """Returns the calls so far, each a list of words, and forgets them."""
    text = self.record.read_text() if self.record.exists() else ""
    self.record.unlink(missing_ok=True)
    return [call.rstrip("\0").split("\0") for call in text.split("\n\0") if call]


@pytest.fixture
def stage(tmp_path):
  return Stage(tmp_path)


def test_scripts_are_valid_and_executable():
  for script in [*LAUNCH.glob("*.sh"), LAUNCH / "train.sbatch"]:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK), script


def both(stage, script, *arguments, **environment):
  """Returns the calls of a run, which those of its dry run's output equal."""
  printed = stage.run(LAUNCH / script, "--dry-run", *arguments, **environment)
  assert printed.returncode == 0, printed.stderr
  assert stage.calls() == []
  assert stage.run("bash", "-c", printed.stdout, cwd=ROOT, **environment).returncode == 0
  dry = stage.calls()
  assert stage.run(LAUNCH / script, *arguments, **environment).returncode == 0
  wet = stage.calls()
  assert dry == wet
  return wet


def test_slurm(stage):
  stage.add("sbatch")
  (call,) = both(stage, "slurm.sh", "4", "8", "--partition=gpu", "--", *FLAGS)
  sizes = ["--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8"]
  assert call == ["sbatch", *sizes, "--partition=gpu", "launch/train.sbatch", *FLAGS]
  assert stage.run(LAUNCH / "slurm.sh", "4", "--", *FLAGS).returncode == 2
  assert stage.run(LAUNCH / "slurm.sh", "4", "8", "--partition=gpu").returncode == 2
  assert stage.calls() == []


def batch(stage, status, **more):
  """Returns the batch script's end and calls, if srun ends with `status`."""
  stage.add("srun", f"exit {status}")
  stage.add("scontrol")
  slurm = dict(SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="6", **more)
  return stage.run("bash", LAUNCH / "train.sbatch", *FLAGS, PYTHON="py", **slurm), stage.calls()


@pytest.mark.parametrize(
  ("status", "again"),
  [
    (0, False),
    (1, False),
    (2, False),
    (130, False),
    (75, True),
    (134, True),
    (137, True),
    (143, True),
  ],
)
def test_slurm_queues_a_stopped_job_again(stage, status, again):
  done, (first, *rest) = batch(stage, status)
  assert done.returncode == status
  options = ["--kill-on-bad-exit=0", "--cpus-per-task=6"]
  assert first == ["srun", *options, "py", "train.py", "--distributed", *FLAGS]
  assert rest == ([["scontrol", "requeue", "17"]] if again else [])
  head = (LAUNCH / "train.sbatch").read_text()
  assert "#SBATCH --signal=TERM@120" in head
  assert "#SBATCH --requeue" in head
  assert "#SBATCH --cpus-per-task=" in head  # without, Slurm does not set the variable


def test_slurm_gives_up(stage):
  assert batch(stage, 137, SLURM_RESTART_COUNT="99")[1][1:] == [["scontrol", "requeue", "17"]]
  done, (_, *rest) = batch(stage, 137, SLURM_RESTART_COUNT="100")
  assert done.returncode == 137
  assert "after 100 restarts" in done.stderr
  assert rest == []


def test_tpu_pod_setup(stage):
  stage.add("gcloud")
  stage.add("git")
  printed = stage.run(LAUNCH / "tpu_pod.sh", "--dry-run", "setup", "pod", "zone")
  assert printed.returncode == 0
  assert stage.run(LAUNCH / "tpu_pod.sh", "setup", "pod", "zone").returncode == 0
  git, copy, install, check = stage.calls()
  assert git[:3] == ["git", "archive", "--format=tar.gz"]
  assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
  assert copy[6:] == ["pod:mixer-jax.tar.gz", "--zone=zone", "--worker=all"]
  for call in (install, check):
    assert call[:8] == [
      "gcloud",
      "compute",
      "tpus",
      "tpu-vm",
      "ssh",
      "pod",
      "--zone=zone",
      "--worker=all",
    ]
    subprocess.run(["bash", "-n", "-c", call[8].removeprefix("--command=")], check=True)


def on_host(stage, call):
  """Runs there the command that gcloud would have brought to a host."""
  return stage.run("bash", "-c", call[8].removeprefix("--command="), cwd=stage.path)


def test_tpu_pod_trains_on_every_host_what_was_asked(stage):
  """The command that reaches a host is run there, with a stand-in for its Python."""
  stage.add("gcloud")
  everywhere, first = both(stage, "tpu_pod.sh", "train", "pod", "zone", *FLAGS)
  assert (everywhere[7], first[7]) == ("--worker=all", "--worker=0")
  (stop,) = both(stage, "tpu_pod.sh", "stop", "pod", "zone")
  stopping = "trap 'echo saved; kill $!; exit 143' TERM\necho started\nsleep 60 & wait"
  stage.add("python", stopping, at=stage.path / "mixer-jax/.venv/bin")
  assert on_host(stage, everywhere).returncode == 0
  log = stage.path / "mixer-jax/train.log"
  deadline = time.monotonic() + 20
  while "started" not in _lines(log) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert stage.calls() == [["python", "train.py", "--distributed", *FLAGS]]
  again = on_host(stage, everywhere)
  assert again.returncode == 1
  assert "stop it first" in again.stderr
  assert on_host(stage, stop).returncode == 0
  shown = on_host(stage, first)
  assert (shown.stdout, shown.returncode) == ("started\nsaved\n", 143)
  assert "exit status 143" in shown.stderr
  late = on_host(stage, stop)
  assert late.returncode == 1
  assert "no training is running" in late.stderr
  assert stage.run(LAUNCH / "tpu_pod.sh", "start", "pod", "zone").returncode == 2
  assert stage.run(LAUNCH / "tpu_pod.sh", "train", "pod", "zone").returncode == 2


@pytest.mark.parametrize("status", [0, 75])
def test_tpu_pod_shows_the_log_until_the_training_ends(stage, status):
  stage.add("gcloud")
  cache = dict(JAX_COMPILATION_CACHE_DIR="gs://bucket/the cache")
  everywhere, first = both(stage, "tpu_pod.sh", "train", "pod", "zone", *FLAGS, **cache)
  training = f'echo "$JAX_COMPILATION_CACHE_DIR"; sleep 0.3; echo last; exit {status}'
  stage.add("python", training, at=stage.path / "mixer-jax/.venv/bin")
  assert on_host(stage, everywhere).returncode == 0
  shown = on_host(stage, first)
  assert (shown.stdout, shown.returncode) == ("gs://bucket/the cache\nlast\n", status)
  stage.add("gcloud", f"[[ $* == *--worker=all* ]] || exit {status}")
  assert stage.run(LAUNCH / "tpu_pod.sh", "train", "pod", "zone", *FLAGS).returncode == status


@pytest.mark.parametrize(
  ("processes", "visible", "places"),
  [
    (1, None, ["all"]),
    (1, "4,5", ["4,5"]),
    (2, None, ["0,1", "2,3"]),
    (4, None, ["0", "1", "2", "3"]),
    (2, "7,6,5,4", ["5,4", "7,6"]),
    (2, "GPU-8a,GPU-3b", ["GPU-3b", "GPU-8a"]),
  ],
)
def test_gpus(stage, processes, visible, places):
  python = str(stage.add("py"))
  # As it prints GPUs, one of which is divided.
  listed = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})\\n" for i in range(4))
  stage.add(
    "nvidia-smi", f"printf '{listed}  MIG 1g.10gb Device 0: (UUID: MIG-1)\\n'", recorder=UNRECORDED
  )
  environment = dict(PYTHON=python, PORT="5")
  if visible:
    environment["CUDA_VISIBLE_DEVICES"] = visible
  arguments = [f"--processes={processes}", *FLAGS]
  printed = stage.run(LAUNCH / "gpus.sh", "--dry-run", *arguments, **environment)
  assert stage.run("bash", "-c", printed.stdout, cwd=ROOT, **environment).returncode == 0
  dry = stage.calls()
  (stage.path / "record.places").unlink()
  assert stage.run(LAUNCH / "gpus.sh", *arguments, **environment).returncode == 0
  assert sorted(stage.calls()) == sorted(dry)
  found = (stage.path / "record.places").read_text().splitlines()
  assert sorted(line.split()[1] for line in found) == places
  several = [
    [
      "--distributed",
      "--coordinator=localhost:5",
      f"--num_processes={processes}",
      f"--process_id={i}",
    ]
    for i in range(processes)
  ]
  expected = [["py", "train.py", *FLAGS, *(more if processes > 1 else [])] for more in several]
  assert dry == expected


TWO = dict(CUDA_VISIBLE_DEVICES="0,1")


def test_gpus_stops_the_others_if_one_fails(stage):
  failing = "for a; do [[ $a == --process_id=1 ]] && exit 3; done; sleep 60 & wait"
  python = stage.add("py", f"trap 'kill $!; exit 143' TERM\n{failing}")
  begin = time.monotonic()
  done = stage.run(LAUNCH / "gpus.sh", "--processes=2", *FLAGS, PYTHON=str(python), **TWO)
  assert done.returncode == 3
  assert time.monotonic() - begin < 50


def test_gpus_passes_a_signal_on_once(stage):
  """Two would end train.py before it has saved."""
  python = stage.add(
    "py", "trap 'echo TERM >> \"$RECORD.signals\"; kill $!; exit 143' TERM\nsleep 60 & wait"
  )
  process = subprocess.Popen(
    [LAUNCH / "gpus.sh", "--processes=2", *FLAGS],
    env=stage.environment(PYTHON=str(python), **TWO), start_new_session=True,
  )  # fmt: skip
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline and len(_lines(stage.path / "record.places")) < 2:
    time.sleep(0.05)
  time.sleep(0.3)  # until the traps are set
  process.terminate()
  assert process.wait(timeout=40) == 143
  assert _lines(stage.path / "record.signals") == ["TERM", "TERM"]  # one each


def _lines(path):
  return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("arguments", [["--processes=0"], ["--processes=3"], ["--processes=x"]])
def test_gpus_cannot_be_shared_out(stage, arguments):
  python = str(stage.add("py"))
  visible = dict(CUDA_VISIBLE_DEVICES="0,1,2,3")
  done = stage.run(LAUNCH / "gpus.sh", *arguments, *FLAGS, PYTHON=python, **visible)
  assert done.returncode == 2
  assert stage.calls() == []


@pytest.mark.parametrize("visible", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_gpus_that_are_not_there_cannot_be_shared_out(stage, visible):
  python = str(stage.add("py"))
  failure = "echo 'NVIDIA-SMI has failed'; exit 9"
  stage.add("nvidia-smi", failure, recorder=UNRECORDED)
  done = stage.run(LAUNCH / "gpus.sh", "--processes=2", *FLAGS, PYTHON=python, **visible)
  assert done.returncode == 2
  assert "CUDA_VISIBLE_DEVICES=0,1" in done.stderr
  assert stage.calls() == []


GKE = {
  "v4:2x2x4": ("tpu-v4-podslice", 4),
  "v5e:4x4": ("tpu-v5-lite-podslice", 4),
  "v5e:1x1": ("tpu-v5-lite-podslice", 1),
  "v5e:2x4": ("tpu-v5-lite-podslice", 2),
  "v5p:2x2x2": ("tpu-v5p-slice", 2),
  "v5p:8x16x16": ("tpu-v5p-slice", 512),
  "v6e:8x8": ("tpu-v6e-slice", 16),
  "tpu7x:2x2x1": ("tpu7x", 1),
}


@pytest.mark.parametrize("name", GKE)
def test_gke_manifest(stage, name):
  """What Kubernetes (batch/v1, core/v1) and JobSet (v1alpha2) require, and GKE of TPU slices."""
  printed = stage.run(LAUNCH / "gke.sh", "--dry-run", "b16", "gcr.io/p/mixer:1", name, *FLAGS)
  assert printed.returncode == 0, printed.stderr
  manifest = yaml.safe_load(printed.stdout)
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert manifest["metadata"]["name"] == "b16"
  (replicated,) = manifest["spec"]["replicatedJobs"]
  assert replicated["name"]
  assert replicated["replicas"] == 1
  job = replicated["template"]["spec"]
  accelerator, hosts = GKE[name]
  assert job["parallelism"] == job["completions"] == hosts
  assert job["backoffLimit"] == 0  # one lost host restarts all
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": name.partition(":")[2],
  }
  assert not pod.get("hostNetwork")  # whose pods have the node's service account
  (volume,) = pod["volumes"]
  assert volume["emptyDir"] == {"medium": "Memory"}
  (container,) = pod["containers"]
  assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
  assert int(cloud_tpu_cluster.coordinator_port) in [p["containerPort"] for p in container["ports"]]
  assert container["image"] == "gcr.io/p/mixer:1"
  assert container["command"] == ["python", "train.py", "--distributed"]
  assert container["args"] == FLAGS
  chips = topology.parse(name).num_chips
  resources = container["resources"]
  assert resources["limits"] == resources["requests"] == {"google.com/tpu": chips // hosts}
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [1, 2],
  }
  (rule,) = manifest["spec"]["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  stage.add("kubectl", 'cat > "$RECORD.manifest"')
  assert stage.run(LAUNCH / "gke.sh", "b16", "gcr.io/p/mixer:1", name, *FLAGS).returncode == 0
  assert stage.calls() == [["kubectl", "apply", "--filename=-"]]
  assert yaml.safe_load((stage.path / "record.manifest").read_text()) == manifest


def gke_pod(stage, *arguments, **environment):
  """Returns the annotations and the specification of the dry run's pods."""
  printed = stage.run(
    LAUNCH / "gke.sh", "--dry-run", *arguments, "b16", "image", "v5e:4x4", *FLAGS, **environment
  )
  assert printed.returncode == 0, printed.stderr
  (replicated,) = yaml.safe_load(printed.stdout)["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]
  assert pod["spec"]["containers"][0]["args"] == FLAGS
  return pod.get("metadata", {}).get("annotations", {}), pod["spec"]


def test_gke_mounts_the_bucket_of_the_data(stage):
  """As the driver's documentation has it: the pod's annotation, and a volume inside its specification."""
  annotations, pod = gke_pod(stage, "--data-bucket=some-data.1")
  assert annotations == {"gke-gcsfuse/volumes": "true"}
  shm, data = pod["volumes"]
  assert data["csi"] == {
    "driver": "gcsfuse.csi.storage.gke.io",
    "readOnly": True,
    "volumeAttributes": {"bucketName": "some-data.1", "mountOptions": "implicit-dirs"},
  }
  mounts = pod["containers"][0]["volumeMounts"]
  assert mounts == [
    {"name": shm["name"], "mountPath": "/dev/shm"},
    {"name": data["name"], "mountPath": "/mnt/data", "readOnly": True},
  ]
  digits = gke_pod(stage, "--data-bucket=2026")[1]["volumes"][1]
  assert digits["csi"]["volumeAttributes"]["bucketName"] == "2026"
  assert gke_pod(stage)[0] == {}


def test_gke_passes_the_place_of_the_compilation_cache_on(stage):
  for place in ("gs://bucket/cache", 'gs://bucket/the "cache" \\1'):
    _, pod = gke_pod(stage, JAX_COMPILATION_CACHE_DIR=place)
    variable = {"name": "JAX_COMPILATION_CACHE_DIR", "value": place}
    assert pod["containers"][0]["env"] == [variable]
  assert "env" not in gke_pod(stage)[1]["containers"][0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--data-bucket=gs://b", "b16", "image", "v5e:4x4", "--config=c"], "without gs://"),
    (["--data-bucket=data/tfds", "b16", "image", "v5e:4x4", "--config=c"], "without a directory"),
    (["--data-bucket=", "b16", "image", "v5e:4x4", "--config=c"], "--data-bucket="),
    (["B16", "image", "v5e:4x4", "--config=c"], "NAME B16"),
    (["b16", "im age", "v5e:4x4", "--config=c"], "IMAGE im age"),
    (["b16", "image", "v3:4x4", "--config=c"], "TOPOLOGY v3:4x4"),
    (
      ["b16", "image", "v5e:4", "--config=c"],
      "TOPOLOGY v5e:4: GKE's slices of v5e are 1x1 2x2 2x4",
    ),
    (["b16", "image", "v5e:3x3", "--config=c"], "TOPOLOGY v5e:3x3: GKE's slices"),
    (["b16", "image", "v5e:2x2x2", "--config=c"], "TOPOLOGY v5e:2x2x2: GKE's slices"),
    (["b16", "image", "v6e:2x2 2x4", "--config=c"], "TOPOLOGY v6e:2x2 2x4: GKE's slices"),
    (["b16", "image", "v4:4x4", "--config=c"], "2x4x4, or XxYxZ of multiples of 4"),
    (["b16", "image", "v5p:8x4x4", "--config=c"], "TOPOLOGY v5p:8x4x4: GKE's slices"),
    (["b16", "image", "tpu7x:2x2x8", "--config=c"], "TOPOLOGY tpu7x:2x2x8: GKE's slices"),
    (["b16", "image", "v4:4x4x4x4", "--config=c"], "TOPOLOGY v4:4x4x4x4: GKE's slices"),
    (["b16", "image", "v5e:4x$(id)", "--config=c"], "TOPOLOGY v5e:4x"),
    (["b16", "image", "v5e:4x4"], "usage"),
  ],
)
def test_gke_refuses(stage, arguments, message):
  done = stage.run(LAUNCH / "gke.sh", "--dry-run", *arguments)
  assert done.returncode == 2
  assert message in done.stderr
