"""Read the text that `--help` of a command prints."""

import re


def unexplained_options(text):
    """Return the options that lack a meaning, or a default where none is required."""
    options = re.split(r"\n  (?=-)", text.partition("\noptions:")[2])[1:]
    assert options[0].startswith("-h, --help")
    found = []
    for lines in options[1:]:
        option = " ".join(lines.split())
        # An option without a meaning ends after its own name and value.
        explained = len(option.split()) > 3
        if not explained or not re.search(r"\b(required|default: \S)", option):
            found.append(option)
    return found
