"""Counts the tokens of the pieces of a request body: messages, their parts, tools, any JSON.

No type in a body is taken for granted: a piece that isn't what the API's reference says is counted
as the JSON that it is. Nothing raises. Nothing recurses further than ``_MAX_DEPTH``.

Base64 is not tokenised. The cost of an image depends on its size. A file or a recording costs a
flat :data:`MEDIA_TOKENS`, because its real cost shows only in the response's ``usage``. Within a
text, base64 is text, as it is for the server.

Sources: for chat messages and tools, the OpenAI cookbook's "How to count tokens with tiktoken",
sections 6 and 7, whose numbers equal the API's. The rest is estimated after the same pattern.
"""

from __future__ import annotations

import re
from typing import Any

from parallel_processor.tokens.encodings import TextCounter
from parallel_processor.tokens.images import base64_size, data_url_size, image_tokens

MEDIA_TOKENS = 1_000  # the assumed cost of a file or a recording: some pages, or 90 seconds
PER_MESSAGE = 3
PER_REPLY = 3  # each response is primed with <|start|>assistant<|message|>
_PER_NAME, _PER_CALL = 1, 3
_PROPERTIES_START, _PROPERTY = 3, 3
_ENUM_START, _ENUM_ITEM = -3, 3
_FUNCTIONS_END = 12

_MAX_DEPTH = 4  # a tool's result may hold parts, which may hold a tool's result, and so on
_BLOB_CHARS = 512  # a shorter text is cheap to count, base64 or not
_BLOB = re.compile(r"[A-Za-z0-9+/_=\r\n-]*\Z")
_BLOB_SAMPLE = 256
_SHORT_CHARS = 64  # a JSON string up to this length is likely to occur again

_TEXT_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_IMAGES = frozenset({"image_url", "input_image", "image"})
_MEDIA = frozenset(
    {"input_audio", "audio", "audio_url", "file", "input_file", "video_url", "document"}
)
_CALLS = frozenset({"function_call", "custom_tool_call", "tool_use", "server_tool_use"})
_RESULTS = frozenset({"function_call_output", "custom_tool_call_output", "tool_result"})
_ITEM_KEYS = frozenset({"type", "id", "status"})  # in a Responses message; not shown to the model
_PLAIN_PROPERTY = frozenset({"type", "description", "enum"})
_PLAIN_SCHEMA = frozenset(
    {"type", "properties", "required", "additionalProperties", "$schema", "title"}
)
_SYSTEM_ROLES = ("system", "developer")


class ContentCounter:
    """Counts pieces of bodies for one model. Any thread may call it, and no JSON value makes it raise."""

    def __init__(self, counter: TextCounter, model: str) -> None:
        self.text = counter.count
        self.repeated = counter.count_repeated
        self._model = model
        self._function_start = 10 if counter.name == "cl100k_base" else 7

    def messages(self, messages: Any) -> int:
        """A list of messages; anything else as JSON. The priming of the response is not included."""
        if isinstance(messages, list):
            return sum(map(self._message, messages))
        return 0 if messages is None else self.json(messages)

    def _message(self, message: Any) -> int:
        if not isinstance(message, dict):
            return PER_MESSAGE + self.content(message)
        total = PER_MESSAGE
        for key, value in message.items():
            if key in ("content", "parts"):
                is_repeated = isinstance(value, str) and message.get("role") in _SYSTEM_ROLES
                total += self.repeated(value) if is_repeated else self.content(value)
            elif key == "role" and isinstance(value, str):
                total += self.repeated(value)
            elif value is not None:
                total += self._message_field(key, value)
        return total

    def _message_field(self, key: Any, value: Any) -> int:
        if key == "tool_calls" and isinstance(value, list):
            return sum(map(self._call, value))
        if key == "function_call":
            return self._call(value)
        if key == "name":
            return _PER_NAME + self._string_or_json(value)
        return 0 if key in _ITEM_KEYS else self._string_or_json(value)

    def _call(self, call: Any) -> int:
        """An earlier function call of the model: the function's name and arguments."""
        if not isinstance(call, dict):
            return self.json(call)
        nested = (call.get("function"), call.get("custom"), call)
        inner = next(place for place in nested if isinstance(place, dict))
        arguments = inner.get("arguments", inner.get("input"))
        return _PER_CALL + self._string_or_json(inner.get("name")) + self._string_or_json(arguments)

    def items(self, items: Any) -> int:
        """The ``input`` of the Responses API: one text, or a list of messages and other items."""
        if isinstance(items, str):
            return PER_MESSAGE + self.repeated("user") + self.text(items)
        if not isinstance(items, list):
            return 0 if items is None else self.json(items)
        total = 0
        for item in items:
            if isinstance(item, dict) and item.get("type", "message") == "message":
                total += self._message(item)
            else:
                total += PER_MESSAGE + self._part(item, 0)
        return total

    def content(self, content: Any, depth: int = 0) -> int:
        """A message's content: a text, a list of parts, ``None``, or one part."""
        if content is None:
            return 0
        if isinstance(content, str):
            return self.text(content)
        if depth > _MAX_DEPTH:
            return self.json(content)
        if isinstance(content, list):
            return sum(self._part(part, depth) for part in content)
        return self._part(content, depth)

    def _part(self, part: Any, depth: int) -> int:
        if isinstance(part, str):
            return self.text(part)
        if not isinstance(part, dict):
            return self.json(part)
        if "parts" in part:  # Gemini's content
            return self.content(part["parts"], depth + 1)
        kind = part.get("type")
        if not isinstance(kind, str):
            kind = "text"
        field = _TEXT_FIELDS.get(kind)
        if field is not None:
            text = part.get(field)
            return self.text(text) if isinstance(text, str) else self.json(part)
        if kind in _IMAGES:
            return self._image(part)
        if kind in _MEDIA:
            return self._media(part, depth)
        if kind in _CALLS:
            return self._call(part)
        if kind in _RESULTS:
            return self.content(part.get("output", part.get("content")), depth + 1)
        return self.json(part)

    def _image(self, part: dict[str, Any]) -> int:
        """An image in the form of any of the three APIs. Anthropic's base64 has no ``data:`` in front."""
        source = part.get("source")
        data = source.get("data") if isinstance(source, dict) else None
        if isinstance(data, str):
            return image_tokens(self._model, base64_size(data))
        place = part.get("image_url")
        holder: dict[str, Any] = place if isinstance(place, dict) else part
        url = holder.get("url") if holder is place else place
        return image_tokens(self._model, data_url_size(url), holder.get("detail"))

    def _media(self, part: dict[str, Any], depth: int) -> int:
        """A file or a recording. Anthropic's documents may hold their text, or parts; Cohere's do."""
        if document := part.get("document"):
            return self._string_or_json(document)
        source = part.get("source")
        if isinstance(source, dict):
            if source.get("type") == "text":
                return self._string_or_json(source.get("data"))
            if source.get("type") == "content":
                return self.content(source.get("content"), depth + 1)
        return MEDIA_TOKENS

    def functions(self, tools: Any) -> int:
        """The functions or tools that a request offers, nested or flat; 0 if there are none."""
        if not tools:
            return 0
        if not isinstance(tools, list):
            return self.json(tools)
        return _FUNCTIONS_END + sum(map(self._function, tools))

    def _function(self, tool: Any) -> int:
        if not isinstance(tool, dict):
            return self.json(tool)
        nested = tool.get("function")
        function: dict[str, Any] = nested if isinstance(nested, dict) else tool
        name = function.get("name")
        schema = function.get("parameters", function.get("input_schema"))
        if not isinstance(name, str) or not isinstance(schema, dict | None):
            return self._function_start + self.json(function)
        description = _without_dot(function.get("description"))
        total = self._function_start + self.repeated(f"{name}:{description}")
        return total + (self._schema(schema) if schema else 0)

    def _schema(self, schema: dict[str, Any]) -> int:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return self.json(schema)
        rest = {key: schema[key] for key in schema if key not in _PLAIN_SCHEMA}
        total = self.json(rest) if rest else 0
        if properties:
            total += _PROPERTIES_START + _PROPERTY * len(properties)
        return max(0, total + sum(self._property(*item) for item in properties.items()))

    def _property(self, name: Any, property_: Any) -> int:
        """One property of a function: by the cookbook's formula if it is plain, otherwise as JSON."""
        if not isinstance(property_, dict) or not property_.keys() <= _PLAIN_PROPERTY:
            return self._string_or_json(name) + self.json(property_)
        kind, description = property_.get("type", ""), property_.get("description", "")
        enum = property_.get("enum", ())
        if not (isinstance(kind, str) and isinstance(enum, list | tuple)):
            return self._string_or_json(name) + self.json(property_)
        total = self.repeated(f"{name}:{kind}:{_without_dot(description)}")
        total += _ENUM_START if "enum" in property_ else 0
        return total + sum(_ENUM_ITEM + self._string_or_json(item) for item in enum)

    def _string_or_json(self, value: Any) -> int:
        if isinstance(value, str):
            return self._string(value)
        return 0 if value is None else self.json(value)

    def _string(self, text: str) -> int:
        """A string that may be a text or base64. Base64 is not tokenised."""
        if len(text) <= _SHORT_CHARS:
            return self.repeated(text)
        if len(text) >= _BLOB_CHARS and _is_base64(text):
            if text[:11].lower() == "data:image/":
                return image_tokens(self._model, data_url_size(text))
            return MEDIA_TOKENS
        return self.text(text)

    def json(self, value: Any) -> int:
        """About what the compact JSON text of ``value`` costs: its strings, and one token for each value.

        It walks with a stack of its own, so no nesting is too deep.
        """
        total = 0
        stack = [value]
        while stack:
            item = stack.pop()
            total += 1
            if isinstance(item, str):
                total += self._string(item)
            elif isinstance(item, dict):
                total += sum(1 + self._string(str(key)) for key in item)
                stack.extend(item.values())
            elif isinstance(item, list | tuple):
                stack.extend(item)
            elif isinstance(item, int):
                total += item.bit_length() // 10  # three digits to a token
            elif isinstance(item, float):
                total += len(repr(item)) // 3
        return total


def _without_dot(description: Any) -> str:
    return description.removesuffix(".") if isinstance(description, str) else ""


def _is_base64(text: str) -> bool:
    """True if a long string looks like a ``data:`` URL or bare base64 at both ends."""
    head = text[:_BLOB_SAMPLE]
    if head[:5].lower() == "data:" and ";base64," in head.lower():
        return True
    return _BLOB.match(head) is not None and _BLOB.match(text[-_BLOB_SAMPLE:]) is not None
