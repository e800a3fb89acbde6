"""sbatch, squeue, srun and scontrol of a cluster that exists in a folder only.

Each command is this file under another name. `queue/<job>` in the folder holds a job's state and reason; sbatch adds
them, and a test decides what becomes of them: `FakeSlurm.run` runs a task as a node would.
"""
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "srun", "scontrol")


class FakeSlurm:
    """Puts the commands into `folder`/bin, and that on PATH.

    Attributes:
        queue: the folder of the jobs' states.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.queue = Path(folder), Path(folder) / "queue"
        (self.folder / "bin").mkdir(parents=True)
        self.queue.mkdir()
        for name in COMMANDS:
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{__file__}" "{self.folder}" {name} "$@"\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{self.folder / 'bin'}:{os.environ['PATH']}")

    def set(self, job, state, reason="None"):
        (self.queue / job).write_text(f"{state}|{reason}")

    def forget(self):
        """As Slurm does some minutes after a job has ended."""
        for path in self.queue.iterdir():
            path.unlink()

    def jobs(self):
        return sorted(path.name for path in self.queue.iterdir())

    def script(self, job):
        """The batch script that a job was submitted with."""
        return (self.folder / f"{job.split('_')[0]}.sh").read_text()

    def run(self, job, starts=0):
        """Run a task's batch script to its end, as a node does. Returns its exit status."""
        array, _, task = job.partition("_")
        environment = {**os.environ, "SLURM_JOB_ID": str(1000 + int(task or 0)), "SLURM_CPUS_PER_TASK": "1"}
        if task:
            environment |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        else:
            environment["SLURM_JOB_ID"] = array
        if starts:
            environment["SLURM_RESTART_COUNT"] = str(starts)
        self.set(job, "RUNNING")
        code = subprocess.run(["bash", self.folder / f"{array}.sh"], env=environment, check=False).returncode
        self.set(job, "FAILED" if code else "COMPLETED", "NonZeroExitCode" if code else "None")
        return code


# ---- the commands ----
def sbatch(folder, words):
    text = Path(words[-1]).read_text()
    number = len(list(folder.glob("*.sh"))) + 1
    (folder / f"{number}.sh").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for job in [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]:
        (folder / "queue" / job).write_text("PENDING|Priority")
    print(f"Submitted batch job {number}")


def squeue(folder, words):
    for path in sorted((folder / "queue").iterdir()):
        print(f"{path.name}|{path.read_text()}")


def srun(folder, words):
    """Run the command that follows srun's own options, its prints where they ask for."""
    names = {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID"}
    for option, number in (("--output", 1), ("--error", 2)):
        path = words[words.index(option) + 1].replace("%t", "0")
        for short, name in names.items():
            path = path.replace(short, os.environ.get(name, ""))
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    program = next(i for i, word in enumerate(words) if os.path.isabs(word) and os.access(word, os.X_OK)
                   and not os.path.isdir(word) and not words[i - 1].startswith("--"))
    os.execv(words[program], words[program:])


def scontrol(folder, words):
    (folder / "queue" / words[1]).write_text("PENDING|BeginTime")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
