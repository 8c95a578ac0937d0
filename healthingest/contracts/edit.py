"""Change keys of a client's YAML as a person would: its comments, order and quotes stay, so that the diff is small.

Whole or not at all: the new text is loaded as a config first, and takes the old one's place at once.
"""

import io
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from healthingest.contracts import strict_yaml
from healthingest.errors import ConfigError

#: Lines stay as long as they were: a diff shows what was changed, and nothing else.
_WIDTH = 4096
#: Text that every YAML reader takes for text without quotes; the rest gets them.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null|none)$)[a-z_][\w./ -]*", re.IGNORECASE)


#: Put in a value's place, it takes the key or item out.
REMOVED = object()


def edited(text: str, values: Mapping[tuple[str | int, ...], Any]) -> str:
    """The text of a YAML mapping with the value at each path put in, or taken out; mappings on the way are made.

    What is taken out goes last, and items of a list from its end, so that all paths are those of the given text.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, _WIDTH
    if re.search(r"^[^\s#-].*:\s*(#.*)?\n(\s*#.*\n)*  +- ", text, re.MULTILINE):  # lists stand indented in this file
        yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    for path, value in values.items():
        if value is not REMOVED:
            _put_at(document, path, value)
    _take_out(document, values)
    out = io.StringIO()
    yaml.dump(document, out)
    _require_same(text, out.getvalue(), values)
    return out.getvalue()


def _require_same(before: str, after: str, values: Mapping[tuple[str | int, ...], Any]) -> None:
    """Refuse a text that says anything else than before but for what was put in.

    Raises:
        ConfigError: it does; some ways of writing YAML do not survive.
    """
    here = Path("config.yaml")
    try:
        was, now = (strict_yaml.document_of(here, text).value for text in (before, after))
        same = _plainly(was, values) == now
    except (ConfigError, KeyError, IndexError, TypeError):
        same = False
    if not same:
        raise ConfigError("it is written in a way that cannot be changed by itself; change it by hand.", file=here)


def _plainly(document: dict[str, Any], values: Mapping[tuple[str | int, ...], Any]) -> dict[str, Any]:
    """The same change made to plain values, of which none is shared by an anchor."""
    for path, value in values.items():
        if value is not REMOVED:
            place: Any = document
            for step in path[:-1]:
                if isinstance(place, dict) and place.get(str(step)) is None:
                    place[str(step)] = {}
                place = place[step]
            if isinstance(place, list) and path[-1] == len(place):
                place.append(value)
            else:
                place[path[-1]] = value
    _take_out(document, values)
    return document


def _take_out(document: Any, values: Mapping[tuple[str | int, ...], Any]) -> None:  # noqa: ANN401 - what YAML holds
    gone = [path for path, value in values.items() if value is REMOVED]
    for *steps, last in sorted(gone, key=lambda path: [(isinstance(s, str), s) for s in path], reverse=True):
        place = document
        for step in steps:
            place = place[step]
        del place[last]
        if not place and steps:  # an empty mapping would read as nothing at all
            del document[steps[0]]


def _put_at(document: Any, path: tuple[str | int, ...], value: Any) -> None:  # noqa: ANN401 - what YAML holds
    place = document
    for step in map(_put, path[:-1]):
        if isinstance(place, dict) and step not in place:
            place[step] = CommentedMap()
        place = place[step]
    if isinstance(place, list) and path[-1] == len(place):
        place.append(_put(value))
    else:
        place[_put(path[-1])] = _put(value)


def _put(value: Any) -> Any:  # noqa: ANN401 - what YAML holds
    """A value as it is written: short lists and mappings on one line, text that could be misread in quotes."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else DoubleQuotedScalarString(value)
    if isinstance(value, dict):
        mapping = CommentedMap({_put(key): _put(one) for key, one in value.items()})
        if "policy" not in value:  # a column of a contract stands on lines of its own
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq(map(_put, value))
        sequence.fa.set_flow_style()
        return sequence
    return value


def replace_text(file: Path, text: str) -> None:
    """Put a text in a file's place, on disk for good: who reads meanwhile finds the one or the other, whole."""
    file = file.resolve()  # a link stays one
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as new:
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
        temporary.chmod(file.stat().st_mode & 0o777)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
