"""The files of `configs/`: found by name and read."""

import difflib
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from freeadv_jax.config import unknown_field
from freeadv_jax.errors import InputError, one_line, shortened

_PACKAGE = pathlib.Path(__file__).parent
# The wheel holds `configs/` inside the package; a clone has it beside the package.
_INSTALLED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_OWN = pathlib.Path("configs")


def find_config(name: str) -> pathlib.Path:
    """Return the configuration file `name`: a path, or the name of a file of `configs/`.

    A name is looked up in `configs/` of the working directory, then in the `configs/`
    that are installed with the package. Raise InputError, with the nearest names, where
    there is no such file.
    """
    folders = (_OWN, *_INSTALLED)
    typed = pathlib.Path(name).expanduser()
    for path in (typed, *(folder / f"{name}.py" for folder in folders)):
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    near = difflib.get_close_matches(typed.stem, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"--config={name}: there is no such file and no configuration of this name; "
        f"{hint}allowed: a file, {shortened(known)}"
    )


def read_config(path: pathlib.Path) -> ConfigDict:
    """Return what `get_config()` of the file returns.

    Raise InputError with the file's own error, or where the result is no configuration.
    """
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if get_config else None
    except Exception as fault:  # A configuration file may raise anything.
        if field := re.search(r'[Kk]ey "([\w.]+)" does not exist', str(fault)):
            reason = unknown_field(field[1])
        else:
            reason = f"{type(fault).__name__}: {one_line(fault)}"
        raise InputError(f"{path} fails: {reason}") from fault
    if not get_config:
        raise InputError(f"{path}: must define a function get_config()")
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{path}: get_config() must return the ConfigDict of base_config(), not "
            f"{type(config).__name__}"
        )
    return config
