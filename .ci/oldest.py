"""Print pip constraints that pin every dependency to the oldest version allowed.

    python .ci/oldest.py > oldest.txt

reads the lower bounds of pyproject.toml, extras included.
"""

import pathlib
import re
import tomllib

PYPROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(project: dict) -> dict[str, str]:
    """Return the oldest version allowed of each package that `project` names."""
    requirements = [
        *project["dependencies"],
        *(
            each
            for extra in project["optional-dependencies"].values()
            for each in extra
        ),
    ]
    bounds = {}
    for requirement in requirements:
        name, version = re.match(
            r"([\w.-]+)(?:\[[\w,]+\])?(?:[>=]=([\w.]+))?", requirement
        ).groups()
        if name != project["name"]:
            if not version or bounds.get(name, version) != version:
                raise ValueError(f"{requirement}: no lower bound, or a second one")
            bounds[name] = version
    return bounds


if __name__ == "__main__":
    for name, version in lower_bounds(
        tomllib.loads(PYPROJECT.read_text())["project"]
    ).items():
        print(f"{name}=={version}")
