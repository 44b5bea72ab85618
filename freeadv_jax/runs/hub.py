"""Model folders on the Hugging Face hub: the only module that knows huggingface_hub."""

import re
import shlex

from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import AnyPath, BucketPath, files_below, local_folder

_SITE = "https://huggingface.co"


def check_repository(name: str) -> None:
    """Raise InputError unless `name` is that of a repository, OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{name!r} is no repository of the hub: must be OWNER/NAME")


def hub():
    """Return the client of the hub; raise InputError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as fault:
        raise InputError(
            "huggingface_hub is not installed: pip install 'freeadv_jax[hub]'"
        ) from fault
    return huggingface_hub.HfApi()


def push(folder: AnyPath, name: str, client) -> str:
    """Upload a folder to the repository `name` and return its address.

    `client` is that of `hub`, and logged in. A repository that does not exist yet is made,
    private. Raise InputError where the hub refuses.
    """
    try:
        client.create_repo(name, repo_type="model", private=True, exist_ok=True)
        with local_folder(folder) as files:
            client.upload_folder(repo_id=name, folder_path=files, repo_type="model")
    except Exception as fault:  # The client raises errors of the libraries below it.
        raise InputError(
            f"{folder} is written, but the hub refused {name}: {one_line(fault)}; "
            f"`{_again(folder, name)}` sends it again"
        ) from fault
    return f"{_SITE}/{name}"


def _again(folder, name):
    """Return the command that sends a folder; the first copies it from a bucket."""
    files = folder.name if isinstance(folder, BucketPath) else folder
    return f"hf upload {name} {shlex.quote(str(files))} --private"


def plan(folder: AnyPath, name: str) -> str:
    """Return which files `push` would send, and where, as lines."""
    files = sorted(files_below(folder))
    lines = [
        f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes" for path in files
    ]
    head = f"would go to {_SITE}/{name}, private if it is new:"
    return "\n".join([head, *lines, "nothing was sent (--dry_run)"])
