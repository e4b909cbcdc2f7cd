"""Read parameter files, merge them, migrate them to this version and check them.

`parameters.yml` (+ later files + `key=value` overrides) -> `load_parameters` ->
`Parameters`
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from errors import first_line, shown
from parameters import MIGRATIONS, VERSION, ParameterError, Parameters, explain, merged

SHIPPED = Path(__file__).parents[2] / "parameters.yml"
# PyYAML raises one of these, depending on the tag, for a value that does not fit it.
BAD_VALUE_ERRORS = ValueError, LookupError, AttributeError, TypeError, RecursionError


def load_parameters(*paths: Path, overrides: Sequence[str] = ()) -> Parameters:
    """Read, merge and check parameter files; later files and `a.b=value` overrides win.

    Without a version, the first file is read as version 1, later files as the current
    one. Raises `ParameterError` with the key, what was expected and what was given.
    """
    values: dict[str, Any] = {}
    for path in paths:
        layer = _read_mapping(Path(path))
        if not values or "version" in layer:
            layer = migrate(layer)
        values = merged(values, layer)
    return check_parameters(override_values(values, overrides))


def override_values(values: Mapping[str, Any], overrides: Sequence[str]) -> dict:
    """Return nested values with `a.b=value` overrides merged in, not yet checked."""
    for override in overrides:
        values = merged(values, _parse_override(override))
    return dict(values)


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring nested values of any version of the schema to the current version,
    unchecked; raise `ParameterError` for an unknown version."""
    version = values.get("version", 1)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ParameterError(f"version: expected 1 to {VERSION}, got {version!r}")
    for added in MIGRATIONS[version - 1 :]:
        for key, value in added.items():
            values = merged(_nested(key, value), values)
    return {**values, "version": VERSION}


def check_parameters(values: Mapping[str, Any]) -> Parameters:
    """Return the `Parameters` in nested values of any version of the schema; raise
    `ParameterError` with the key."""
    values = migrate(values)
    del values["version"]
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        raise ParameterError(explain(error)) from None


class _Loader(yaml.SafeLoader):
    """Reads YAML with `1e-3` as a number, as in YAML 1.2, and without repeated
    keys."""


class _Dumper(yaml.SafeDumper):
    """Writes YAML with quotes around text that `_Loader` would read as a number."""


for reader_or_writer in (_Loader, _Dumper):
    reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str) or key in mapping:
            expected = "this key once" if isinstance(key, str) else "a name as key"
            raise yaml.constructor.ConstructorError(
                problem=f"{key}: expected {expected}",
                problem_mark=key_node.start_mark,
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain values in a YAML text, executing nothing; raise `ParameterError`
    with `where` and the line."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: builds plain types only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ParameterError(f"{where}{line}: {error.problem}") from None
    except (yaml.YAMLError, *BAD_VALUE_ERRORS) as error:
        reason = first_line(error)
        raise ParameterError(f"{where}: not readable as YAML: {reason}") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML text, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"{path}: not readable as YAML: not UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ParameterError(
            f"{path}: expected sections such as `training:`, got {shown(values)}"
        )
    return values


def _nested(key: str, value: Any) -> dict[str, Any]:
    """Return `{"a": {"b": value}}` for the key `a.b`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ParameterError(
            f"{override}: expected section.key=value such as training.epochs=5, "
            "got no value"
        )
    return _nested(key, parse_yaml(text, key))
