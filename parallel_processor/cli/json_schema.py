"""``--json_schema``: an answer counts only if its text is JSON that holds a schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from parallel_processor.contents import mappings, response_text
from parallel_processor.exceptions import ConfigurationError

_MOST_SHOWN = 60  # characters of a text that is no JSON
_MOST_MESSAGE = 300
_REFERENCES = ("$ref", "$dynamicRef")  # $recursiveRef leads to the schema, whatever it says


class NotJson(ValueError):
    """The answer's text is no JSON."""


class NotOfSchema(ValueError):
    """The answer's JSON doesn't hold the schema."""


class AnswerSchema:
    """Checks answers, as the setting ``validate``. Any thread may call it; it can be pickled.

    Nothing is fetched: a ``$ref`` that leads out of the schema is an error.
    """

    def __init__(self, schema: Any, name: str = "the schema") -> None:
        """Raises :class:`ConfigurationError` if ``schema`` is none; ``name`` is for its message."""
        try:
            from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
            from jsonschema.exceptions import SchemaError, best_match  # type: ignore[import-untyped]
            from jsonschema.validators import validator_for  # type: ignore[import-untyped]
        except ImportError:
            text = "--json_schema needs jsonschema: pip install 'parallel-api-processor[schema]'"
            raise ConfigurationError(text) from None
        self._schema, self._name, self._best_match = schema, name, best_match
        _check_form(schema, name)
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
            self._validator = kind(schema, registry=_checked_registry(schema, name))
            self._validator.is_valid(None)
        except SchemaError as error:
            wrong = f"{error.json_path}: {error.message[:_MOST_MESSAGE]}"
            raise ConfigurationError(f"{name} is no JSON Schema: {wrong}") from None
        except RecursionError:
            raise ConfigurationError(f"{name} is no JSON Schema: it leads in a circle") from None
        except ConfigurationError:
            raise
        except (AttributeError, TypeError, ValueError) as error:  # such as an $id that is no URI
            raise ConfigurationError(f"jsonschema can't use {name}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return AnswerSchema, (self._schema, self._name)

    def __call__(self, answer: Any) -> None:
        """Raise ``NotJson`` or ``NotOfSchema`` unless each text of ``answer`` holds the schema."""
        for text, ending in _texts(answer):
            value = _parsed(text, ending)
            error = self._best_match(self._validator.iter_errors(value))
            if error is not None:
                rule = "/".join(map(str, error.absolute_schema_path))
                message = error.message[:_MOST_MESSAGE]
                raise NotOfSchema(f"{error.json_path}: {message} (rule {rule})")


def read_schema(path: str) -> AnswerSchema:
    """The schema in the file ``path``. Raises :class:`ConfigurationError` if there is none.

    It may be wrapped as a request has it, in ``response_format`` or in ``json_schema``.
    """
    try:
        schema = json.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"can't read the schema {path}: {reason}") from None
    for wrapping in ("response_format", "json_schema", "schema"):
        if isinstance(schema, dict) and wrapping in schema:
            schema = schema[wrapping]
            if not isinstance(schema, dict):  # as a keyword, it would be skipped
                raise ConfigurationError(f"the schema {path}: its {wrapping!r} is not an object")
    return AnswerSchema(schema, f"the schema {path}")


def _texts(answer: Any) -> Iterator[tuple[str | None, Any]]:
    """The text of each choice, and why the model ended it."""
    found = answer if isinstance(answer, Mapping) else {}
    for name in ("choices", "candidates"):
        if choices := mappings(found.get(name)):
            for choice in choices:
                ending = choice.get("finish_reason") or choice.get("finishReason")
                yield response_text({name: [choice]}), ending
            return
    details = found.get("incomplete_details")
    ending = details.get("reason") if isinstance(details, Mapping) else None
    yield response_text(answer), ending or found.get("stop_reason") or found.get("done_reason")


def _parsed(text: str | None, ending: Any) -> Any:
    if text is None:
        raise NotJson("the answer has no text")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
        # A text that was cut off at the request's own maximum is cut off again at the next attempt.
        cut = f"; it ended with {ending!r}" if isinstance(ending, str) else ""
        raise NotJson(f"{error}, in {shown!r}{cut}") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_form(schema: Any, name: str) -> None:
    """Raise :class:`ConfigurationError` for what no draft of JSON Schema can be told of."""
    if not isinstance(schema, (dict, bool)):
        wrong = f"$: {json.dumps(schema)[:_MOST_SHOWN]} is not an object"
    elif isinstance(schema, dict) and not isinstance(schema.get("$schema", ""), str):
        wrong = f"$.$schema: {json.dumps(schema['$schema'])[:_MOST_SHOWN]} is not a string"
    else:
        return
    raise ConfigurationError(f"{name} is no JSON Schema: {wrong}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _checked_registry(schema: Any, name: str) -> Any:
    """What references may lead to: the schema itself, and the drafts of JSON Schema."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    dialect = schema.get("$schema") if isinstance(schema, dict) else None
    specification = specification_with(dialect, default=DRAFT202012) if dialect else DRAFT202012
    seen = set()

    def check(value: Any, resolver: Any, chain: tuple[int, ...] = ()) -> None:
        """Look up each reference in ``value``, and in what it leads to; ``chain`` has led to it."""
        if id(value) in chain:
            raise RecursionError
        if not _is_object(value) or id(value) in seen:
            return
        seen.add(id(value))
        for reference in (value[key] for key in _REFERENCES if isinstance(value.get(key), str)):
            try:
                found = resolver.lookup(reference)
            except (Unresolvable, ValueError, TypeError):  # also of what is no reference at all
                found = None
            if found is None or not isinstance(found.contents, (dict, bool)):
                text = f"{name}: {reference!r} is not in it, and nothing is fetched"
                raise ConfigurationError(text)
            check(found.contents, found.resolver, (*chain, id(value)))
        for part in filter(_is_object, specification.subresources_of(value)):
            check(part, resolver.in_subresource(specification.create_resource(part)))

    check(schema, REGISTRY.resolver_with_root(specification.create_resource(schema)))
    return REGISTRY
