"""YAML without surprises: one document, no duplicate keys, no value that YAML 1.1 would silently reinterpret.

`NO` becomes False and `01234` becomes 668 in YAML 1.1; in lists of states and ZIP codes that loses members.
Such values are refused here, with the line and what to write instead. Every value's line is kept for messages.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from healthingest.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

#: The only spellings of plain values that mean what they look like.
_PLAIN = {
    "tag:yaml.org,2002:bool": re.compile(r"true|false"),
    "tag:yaml.org,2002:int": re.compile(r"-?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(r"-?[0-9]+\.[0-9]+"),
    "tag:yaml.org,2002:null": re.compile(r"|~|null"),
}
#: Values that aliases may stand for: a few lines of aliases to aliases would else be read as billions of values.
_MOST_ALIASED = 10_000
#: Below these keys a value may be a secret that stands there by mistake; no message shows it.
_SECRET_PLACES = frozenset({"alerts", "places", "heartbeat", "password", "token", "key", "secret", "url"})
Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and the line on which each path in it stands."""

    file: Path
    value: dict[str, Any]
    lines: dict[Path_, int]

    def error(self, message: str, at: Path_ = ()) -> ConfigError:
        """Build the error for what stands at `at`, or at its nearest known parent."""
        known = at
        while known and known not in self.lines:
            known = known[:-1]
        return ConfigError(message, file=self.file, line=self.lines.get(known), key=_shown(at))

    def parse(self, model: type[M]) -> M:
        """Validate the document against `model`.

        Raises:
            ConfigError: the first mistake, with its line and what is allowed there.
        """
        try:
            return model.model_validate(self.value)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            at = tuple(part for part in first["loc"] if not (isinstance(part, str) and "[" in part))
            raise self.error(_sentence(first, model), at) from None


def load(file: Path) -> Document:
    """Read one YAML mapping.

    Raises:
        ConfigError: it cannot be read, is not one mapping, repeats a key or holds an ambiguous plain value.
    """
    return document_of(file, text_of(file))


def text_of(file: Path) -> str:
    """What a file says.

    Raises:
        ConfigError: it cannot be read, or is no UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else None  # a pipe would be waited for, for ever
    except (OSError, UnicodeDecodeError):
        text = None
    if text is None:
        raise ConfigError("the file cannot be read as UTF-8 text.", file=file)
    return text


def document_of(file: Path, text: str, *, empty: bool = False) -> Document:
    """One YAML mapping from the text of a file; `empty`: a text without any is one, too.

    Raises:
        ConfigError: it is not one mapping, repeats a key or holds an ambiguous plain value.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        # What stands in quotes may be half of a secret that begins with * or !.
        said = re.sub(r"'[^']{3,}'|\"[^\"]{3,}\"", "…", error.problem or "")
        raise ConfigError(f"this is not valid YAML ({said}).", file=file, line=line) from None
    except yaml.YAMLError:
        raise ConfigError("this is not valid YAML (a character that YAML does not allow).", file=file) from None
    except RecursionError:
        raise ConfigError("the file nests lists or keys too deeply.", file=file) from None
    if node is None and empty:
        return Document(file, {}, {})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("the file must hold 'key: value' lines, and holds none.", file=file)
    lines: dict[Path_, int] = {}
    value = _Builder(file, lines).build(node, ())
    return Document(file, value, lines)


class _Builder:
    """Turns YAML nodes into plain Python values, refusing whatever could mean two things."""

    def __init__(self, file: Path, lines: dict[Path_, int]) -> None:
        self._file, self._lines = file, lines
        self._open: set[int] = set()
        self._built: set[int] = set()
        self._aliased = 0

    def build(self, node: yaml.Node, at: Path_) -> Any:  # noqa: ANN401 - YAML holds anything
        self._lines[at] = node.start_mark.line + 1
        self._aliased += id(node) in self._built
        self._built.add(id(node))
        if self._aliased > _MOST_ALIASED:
            self._refuse(node, at, "aliases to aliases make too much of this file; write the values themselves.")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if id(node) in self._open:
            self._refuse(node, at, "an alias to its own parent makes no sense here.")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*at, i)) for i, child in enumerate(node.value)]
            return self._mapping(node, at)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, at: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if not key or key == "<<":
                self._refuse(key_node, at, "keys must be plain text; merge keys and lists as keys are not allowed.")
            if key in result:
                self._refuse(key_node, (*at, key), "this key stands here twice; keep one of them.")
            result[key] = self.build(child, (*at, key))
            self._lines[(*at, key)] = key_node.start_mark.line + 1
        return result

    def _scalar(self, node: yaml.ScalarNode, at: Path_) -> Any:  # noqa: ANN401
        text: str = node.value
        if node.style in {"'", '"', "|", ">"} or node.tag == "tag:yaml.org,2002:str":
            return text
        if node.tag == "tag:yaml.org,2002:timestamp":
            return text
        plain = _PLAIN.get(node.tag)
        if plain is None:
            self._refuse(node, at, "what begins with ! is a tag, and none is allowed; write text in quotes.")
        if not plain.fullmatch(text):
            said = ("this", "it") if _SECRET_PLACES & {*map(str, at)} else (text, f'"{text}"')
            self._refuse(node, at, f"YAML would not read {said[0]} as this text; write {said[1]} in quotes.")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except ValueError:
            self._refuse(node, at, "this number is too long; write it in quotes if it is text.")

    def _refuse(self, node: yaml.Node, at: Path_, message: str) -> Never:
        raise ConfigError(message, file=self._file, line=node.start_mark.line + 1, key=_shown(at))


def _shown(at: Path_) -> str | None:
    """The path of a value for a message; what looks like no key, but a secret put in its place, is left out."""
    parts = [str(part) for part in at]
    if _SECRET_PLACES & {*parts}:
        parts = [part if re.fullmatch(r"[\w -]{1,63}", part) else "…" for part in parts]
    return ".".join(parts) or None


def _sentence(error: "ErrorDetails", model: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"this key is not known here; known at the top are {', '.join(model.model_fields)}."
    if kind == "missing":
        return "this key is required; add it."
    if kind == "union_tag_invalid":
        return f"this is none of the kinds {context.get('expected_tags', '')}."
    return error["msg"].removeprefix("Value error, ").rstrip(".") + "."
