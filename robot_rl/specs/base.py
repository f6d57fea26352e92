"""The frozen, versioned, strict model that every spec and config is made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

import pydantic
import yaml

from robot_rl.errors import SpecError, did_you_mean


class Spec(pydantic.BaseModel):
    """A frozen model without unknown keys, with YAML and JSON doors and readable errors."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra='forbid',
        allow_inf_nan=False,
        ser_json_inf_nan='constants',
        use_attribute_docstrings=True,  # the text below a field is its description
    )

    # What validators are told besides, see specs.files.
    _context: ClassVar[dict[str, Any] | None] = None

    @classmethod
    def parse(cls, data: Any, origin: str = '') -> Self:
        """Build from plain data; `origin` (a file name, say) leads every error line.

        Raises SpecError that names the field, what was found, what is right and, for a
        misspelt key, the nearest valid one.
        """
        if not isinstance(data, dict):
            where = f'{origin}: ' if origin else ''
            raise SpecError(
                f'{where}{cls.__name__}: expected a mapping of fields, found {_short(data)}'
            )
        try:
            return cls.model_validate(data, context=cls._context)
        except pydantic.ValidationError as error:
            prefix = f'{origin}: ' if origin else ''
            raise SpecError(prefix + '; '.join(_lines(cls, error))) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML (or JSON) file. Raises SpecError, which names the file."""
        return cls.parse(load_yaml(path), origin=str(path))

    @classmethod
    def from_yaml_with(
        cls,
        path: str | Path,
        given: Mapping[str, Any],
        overrides: Sequence[str] = (),
        sections: Mapping[str, Collection[str]] = {},
    ) -> Self:
        """Read a YAML file, put `given` fields over it and then `overrides`.

        An override is 'key=value' or 'section.key=value', with the value as YAML; `sections`
        says which keys a section may have beside those in the file. Raises SpecError, which names
        the flag (--<field> or --set) that is wrong, or else the file.
        """
        data = _load_with_overrides(path, given, overrides, sections)
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            lines = [_blame(line, path, given, overrides) for line in _lines(cls, error)]
            raise SpecError('; '.join(lines)) from None

    @classmethod
    def from_json(cls, text: str, origin: str = '') -> Self:
        """Read JSON text. Raises SpecError, also for what could not be written as UTF-8 again."""
        try:
            data = json.loads(text)
            # Python's reader takes NaN, 1e999 and half of a surrogate pair as well.
            json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise SpecError(f'{origin or cls.__name__}: not valid JSON ({error})') from None
        return cls.parse(data, origin)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (lists, dicts, numbers, strings), ready for YAML or JSON."""
        return self.model_dump(mode='json')

    def to_json(self) -> str:
        """Return compact JSON with sorted keys: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(',', ':'))

    def to_yaml(self) -> str:
        """Return YAML in the order in which the fields are declared."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=99)

    def digest(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of to_json()."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated again."""
        return type(self).parse(self.to_dict() | changes)


def load_yaml(path: str | Path) -> Any:
    """Read one YAML document. Raises SpecError with the file and the line."""
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise SpecError(f'{path}: cannot be read ({reason})') from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f' line {mark.line + 1}:' if mark else ''
        problem = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise SpecError(f'{path}:{line} not valid YAML ({problem})') from None


def _load_with_overrides(
    path: str | Path,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    sections: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Return what Spec.from_yaml_with reads, as plain data."""
    data = load_yaml(path) or {}
    if not isinstance(data, dict):
        raise SpecError(f'{path}: expected a mapping of fields, found {data!r}')
    data |= given
    for override in overrides:
        name, equals, text = override.partition('=')
        *section, key = name.split('.')
        if not (equals and key and all(section)) or len(section) > 1:
            raise SpecError(
                f'--set {override}: expected <key>=<value>, such as learner.discount=0.9'
            )
        inner = data
        written = {name: value for name, value in data.items() if isinstance(value, dict)}
        inside = [name for name in sections if key in sections[name]]
        inside += [name for name in written if key in written[name]]
        if not section and key not in data and inside:
            raise SpecError(f"--set {override}: unknown key; did you mean '{inside[0]}.{key}'?")
        if section:
            inner = data[section[0]] = dict(data.get(section[0]) or {})
        inner[key] = _value(text, override)
    return data


def _value(text: str, override: str) -> Any:
    """Read one value as YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f'--set {override}: {text!r} is not a value in YAML') from None
    return _numbers(value)


def _numbers(value: Any) -> Any:
    """Return what YAML has read with numbers such as 1e-3, which it takes for text."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _blame(line: str, path: str | Path, given: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Put the flag that gave the field which an error's line begins with before it, or `path`."""
    for override in overrides:
        section, dot, key = override.partition('=')[0].rpartition('.')
        # 'training.steps: ...', or 'learner: sigma: ...' from a model that reads the section
        inside = rf'{re.escape(section)}(: unknown key|[.:] ?(\w+: )?{re.escape(key)}\b)'
        if re.match(inside if dot else rf'{re.escape(key)}\b', line):
            return f'--set {override}: {line}'
    field = re.split(r'\W', line)[0]
    return f'--{line}' if field in given else f'{path}: {line}'


# What pydantic's own words for a wrong type do not say to somebody who writes YAML.
_NEEDED = {
    'tuple_type': 'a list is needed',
    'list_type': 'a list is needed',
    'dict_type': 'a mapping is needed',
    'model_type': 'a mapping of fields is needed',
    'string_type': 'a text is needed',
    'float_type': 'a number is needed',
    'float_parsing': 'a number is needed',
    'int_type': 'a whole number is needed',
    'int_parsing': 'a whole number is needed',
    'int_from_float': 'a whole number is needed',
    'too_short': 'at least one is needed',
}


def _causes(error: pydantic.ValidationError) -> list[dict[str, Any]]:
    """Return the errors without those that only follow from others."""
    items = error.errors()
    # A file of another version may differ in any field: say only that.
    versions = [item for item in items if item['loc'][-1:] == ('schema_version',)]
    if versions:
        return versions
    # pydantic counts only an item that is right: a list with a wrong one is 'too short' as well.
    inside = {item['loc'][:depth] for item in items for depth in range(len(item['loc']))}
    return [item for item in items if item['type'] != 'too_short' or item['loc'] not in inside]


def _lines(model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> list[str]:
    return [_explain(model, item) for item in _causes(error)]


def _explain(model: type[pydantic.BaseModel], item: dict[str, Any]) -> str:
    """Turn one pydantic error into 'field: what is wrong, what was found, what is right'."""
    location = '.'.join(str(part) for part in item['loc']) or model.__name__
    kind, found = item['type'], item['input']
    if kind == 'extra_forbidden':
        keys = _keys_at(model, item['loc'][:-1])
        return f'{location}: unknown key{did_you_mean(str(item["loc"][-1]), keys)}'
    if kind == 'missing':
        choices = _choices(model, item['loc'])
        return f'{location}: this field is required and missing{choices}'
    if kind == 'literal_error':
        return f'{location}: {_explain_choice(item["loc"][-1], found, item["ctx"]["expected"])}'
    message = _NEEDED.get(kind) or item['msg'].removeprefix('Value error, ')
    message = message.replace('Input should', 'must', 1)
    if kind == 'value_error':
        return f'{location}: {message}'
    return f'{location}: {message[0].lower()}{message[1:]}, found {_short(found)}'


def _explain_choice(field: str, found: Any, expected: str) -> str:
    """Say which of the values that pydantic lists in `expected` may have been meant."""
    if field != 'schema_version':
        choices = re.findall("'([^']*)'", expected)
        return f'unknown value {_short(found)}{did_you_mean(str(found), choices)}'
    if isinstance(found, int) and found > int(expected):
        return (
            f'{found} is newer than {expected}, the newest that this robot_rl reads; '
            'update robot_rl'
        )
    return f'this robot_rl reads {expected}, found {_short(found)}'


def _choices(model: type[pydantic.BaseModel], location: tuple) -> str:
    """Say which values a missing field of `model` itself may have, where those are listed."""
    field = model.model_fields.get(location[0]) if len(location) == 1 else None
    if field is None or get_origin(field.annotation) is not Literal:
        return ''
    return f'; one of {", ".join(map(repr, get_args(field.annotation)))} is right'


def _short(found: Any) -> str:
    """Return what was found, cut where it is too long for one line."""
    text = repr(found)
    return text if len(text) <= 80 else f'{text[:77]}...'


def _keys_at(model: type[pydantic.BaseModel], location: tuple) -> list[str]:
    """Return the valid keys of the nested model that `location` leads to."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        model = inner or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    """Return the first model class named anywhere inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for argument in getattr(annotation, '__args__', ()):
        found = _model_in(argument)
        if found:
            return found
    return None
