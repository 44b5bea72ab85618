"""Stand-ins for commands of clouds and clusters that record their arguments."""

import os
import pathlib
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
# The only real commands that the scripts can find: no command of a cloud is among them.
TOOLS = [
    "bash",
    "cat",
    "date",
    "dirname",
    "env",
    "git",
    "grep",
    "gzip",
    "head",
    "hostname",
    "kill",
    "mkdir",
    "mktemp",
    "rm",
    "seq",
    "setsid",
    "sleep",
    "tail",
    "tar",
    "touch",
    "uname",
]
_ARGUMENT, _CALL = "\x1f", "\x1e"


class Desk:
    """Hold a clone of the launchers, stand-ins for commands, and a record of their calls."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.repository = folder / "repository"
        self.commands = folder / "commands"
        self.commands.mkdir()
        self.started = []
        self.environment = {"PATH": str(self.commands), "HOME": str(folder)}
        for tool in TOOLS:
            (self.commands / tool).symlink_to(shutil.which(tool))
        shutil.copytree(ROOT / "launch", self.repository / "launch")
        (self.repository / "configs").mkdir()
        (self.repository / "configs" / "tiny.py").touch()

    def commit(self):
        git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
            subprocess.run([*git, *command], cwd=self.repository, check=True)

    def put(self, name: str, text: str) -> None:
        """Write the file `name` whole: a script that polls it never reads half of it."""
        path = self.folder / name
        part = path.with_name(f"{path.name}.part")
        part.write_text(text)
        part.rename(path)

    def stand_in(self, name: str, script: str = "") -> None:
        """Add a command that records its arguments and then runs `script` in bash."""
        path = self.commands / name
        path.write_text(
            f"#!{shutil.which('bash')}\n"
            # A single write, because several workers write to the record.
            f"""record=$(printf '%s{_ARGUMENT}' {name} "$@")\n"""
            f"""printf '%s{_CALL}' "$record" >>{self.folder}/calls\n{script}\n"""
        )
        path.chmod(0o755)

    def calls(self, *names: str) -> list[list[str]]:
        """Return the arguments of every call so far, of all commands or of `names`."""
        record = self.folder / "calls"
        text = record.read_text() if record.exists() else ""
        calls = [call.split(_ARGUMENT)[:-1] for call in text.split(_CALL)[:-1]]
        return [call for call in calls if not names or call[0] in names]

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            cwd=self.repository,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **environment)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


def eventually(condition, seconds: float = 20):
    """Call `condition` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return answer


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True
