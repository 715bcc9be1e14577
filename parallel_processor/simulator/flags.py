"""The flags of the simulator's command: one for each field of `SimulatorOptions`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator.faults import FAULT_KINDS
from parallel_processor.simulator.options import (
    CHOICES,
    DEFAULT_ERRORS,
    LimitChange,
    ModelLimits,
    Outage,
    SimulatorOptions,
)
from parallel_processor.simulator.rules import RULE_KINDS, CannedAnswer, Rule

PROGRAM = "python -m parallel_processor.simulator"

_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("host", str, "address to listen on"),
    ("port", int, "port to listen on; 0 takes a free one"),
    ("requests_per_minute", float, "request limit (default: none)"),
    ("tokens_per_minute", float, "token limit (default: none)"),
    ("input_tokens_per_minute", float, "limit on the prompts' tokens alone (default: none)"),
    ("output_tokens_per_minute", float, "limit on the answers' tokens alone (default: none)"),
    ("requests_per_day", float, "request limit of a day (default: none)"),
    ("enforcement", str, "how limits come back: continuously, or at the end of each window"),
    ("burst_s", float, "seconds' worth of a limit that its bucket holds"),
    ("window_s", float, "seconds that a window has"),
    ("rival_requests_per_minute", float, "what another client of the account sends"),
    ("rival_tokens_per_request", int, "tokens of each of its requests"),
    ("rival_from_s", float, "seconds after the first request at which it begins"),
    ("rival_until_s", float, "seconds after the first request at which it ends"),
    ("token_charge", str, "charge the most an answer may have, at once, or what it has, later"),
    ("answer_tokens", int, "tokens of an answer, about, by its usage (default: its text's)"),
    (
        "dialect",
        str,
        "the provider that it speaks like; auto: by the host that is asked, or the path",
    ),
    ("header_style", str, "the provider whose limit headers are sent; auto: that of the dialect"),
    ("refusal_code", str, "error code of what the limits refuse"),
    ("tier_refusal", str, "how a service tier refuses what it has no room for"),
    ("latency_s", float, "seconds that an answer takes"),
    ("latency_jitter", float, "share, 0 to 1, by which the latency varies up and down"),
    ("best_in_flight", int, "requests in flight above which answers take longer (default: none)"),
    ("overload_exponent", float, "power of the excess over it with which the latency grows"),
    ("refuse_in_flight", int, "requests in flight above which more get a 503 (default: none)"),
    ("slots", int, "requests answered at once; all others wait in a queue (default: no bound)"),
    ("error_rate", float, "share, 0 to 1, of the distinct requests that fail"),
    ("error_attempts", int, "how often such a request fails before it succeeds; 0: always"),
    ("stall_s", float, "seconds after which a stalled connection is closed"),
    ("seed", int, "seed of the faults and latencies"),
    ("api_key", str, "the only key that is accepted (default: any, or none)"),
    ("spend_limit", int, "answers after which the account is out of money (default: never)"),
    ("embedding_dimensions", int, "length of the vectors"),
    ("token_encoding_name", str, "tiktoken encoding that tokens are counted in"),
    ("default_output_tokens", int, "charge for an answer whose request names no maximum"),
)


def parse_flags(arguments: Sequence[str] | None = None) -> SimulatorOptions:
    """Return the options that flags ask for; ends the process with 2 if that can't be."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    for name in ("changes", "rules", "outages"):
        if name in given:
            given[name] = tuple(given[name])
    given["tier_grants"] = dict(given.get("tier_grants", ()))
    if isinstance(given.get("errors"), str):
        kinds = (kind.strip() for kind in given["errors"].split(","))
        given["errors"] = tuple(kind for kind in kinds if kind)
    try:
        return SimulatorOptions(**given)
    except ConfigurationError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="An OpenAI-like server with real rate limits and no model behind it.",
        argument_default=argparse.SUPPRESS,
    )
    defaults = {field.name: field.default for field in fields(SimulatorOptions)}
    for name, kind, text in _FLAGS:
        shown = "" if defaults[name] is None else f" (default: {defaults[name]})"
        parser.add_argument(
            *_spellings(name), dest=name, type=kind, choices=CHOICES.get(name), help=text + shown
        )
    _add_limits(parser)
    parser.add_argument(
        *_spellings("no_retry_after"),
        dest="retry_after",
        action="store_false",
        help="leave out of refusals how long to wait",
    )
    parser.add_argument(
        *_spellings("reject_oversize"),
        dest="reject_oversize",
        action="store_true",
        help="refuse for good what is above the whole token limit; else it waits for a full bucket",
    )
    parser.add_argument(
        "--errors",
        metavar="KIND,…",
        help=f"kinds of fault (default: {','.join(DEFAULT_ERRORS)}; "
        f"also: {','.join(sorted(FAULT_KINDS.difference(DEFAULT_ERRORS)))})",
    )
    _add_rules(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limits",
        dest="limits_by_model",
        metavar="FILE",
        type=_read_limits,
        help="JSON object of limits by pattern of the model's name, so that each model has its own:"
        ' {"gpt-4o*": {"requests_per_minute": 600, "tokens_per_minute": 30000}}',
    )
    parser.add_argument(
        "--change",
        dest="changes",
        metavar="AT_S:LIMIT=NUMBER,…",
        action="append",
        type=_read_change,
        help="new limits from so many seconds after the first request, repeatable: "
        "30:requests_per_minute=300,tokens_per_minute=9000,model=gpt-4o*",
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *_spellings("tier_grant"),
        dest="tier_grants",
        metavar="TIER=SHARE",
        action="append",
        type=_read_grant,
        help="the share, 0 to 1, of a service tier's requests that it has room for, repeatable; models "
        "are then known as MODEL@TIER, in --limits and in the timeline: flex=0.33",
    )
    conditions = ", ".join(name for name in _CONDITIONS)
    parser.add_argument(
        "--rule",
        dest="rules",
        metavar="ANSWER:CONDITION=VALUE,…",
        action="append",
        type=_read_rule,
        help="what the requests get that fulfil all conditions, repeatable: concurrency:in_flight=5. "
        f"Conditions: {conditions}. An answer is a FILE.json with status, headers and body, or one "
        f"of {', '.join(sorted(RULE_KINDS))}",
    )
    parser.add_argument(
        "--outage",
        dest="outages",
        metavar="FROM_S-UNTIL_S",
        action="append",
        type=_read_outage,
        help="close the port between these seconds after the first request, repeatable: 10-40",
    )


_CONDITIONS: dict[str, Callable[[str], Any]] = {
    "containing": str,
    "from_s": float,
    "until_s": float,
    "in_flight": int,
    "per_s": float,
    "burst": int,
    "share": float,
    "after": int,
    "first": int,
}


def _read_rule(text: str) -> Rule:
    answer, _, conditions = text.partition(":")
    given: dict[str, Any] = {}
    try:
        for condition in filter(None, conditions.split(",")):
            name, _, value = condition.partition("=")
            given[name] = _CONDITIONS[name](value)
        return Rule(answer=_read_answer(answer) if answer.endswith(".json") else answer, **given)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no ANSWER:CONDITION=VALUE,…") from None


def _read_grant(text: str) -> tuple[str, float]:
    tier, _, share = text.partition("=")
    try:
        return tier, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no TIER=SHARE") from None


def _read_answer(path: str) -> CannedAnswer:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        known = {name: content[name] for name in ("status", "headers", "body") if name in content}
        return CannedAnswer(**known)
    except (OSError, TypeError, ValueError) as error:  # ConfigurationError among them
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None


def _read_outage(text: str) -> Outage:
    from_s, _, until_s = text.partition("-")
    try:
        return Outage(from_s=float(from_s), until_s=float(until_s))
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no FROM_S-UNTIL_S") from None


def _read_limits(path: str) -> dict[str, ModelLimits]:
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, dict[str, Any]] = json.load(file)
        return {pattern: ModelLimits(**limits) for pattern, limits in content.items()}
    except (OSError, ValueError) as error:  # ConfigurationError among them
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    except (AttributeError, TypeError):
        want = "an object of objects with requests_per_minute, tokens_per_minute or both"
        raise argparse.ArgumentTypeError(f"{path} must hold {want}") from None


def _read_change(text: str) -> LimitChange:
    at_s, _, settings = text.partition(":")
    given: dict[str, Any] = {}
    try:
        for setting in settings.split(","):
            name, _, value = setting.partition("=")
            given[name] = value if name == "model" else float(value)
        return LimitChange(at_s=float(at_s), **given)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no AT_S:LIMIT=NUMBER,…") from None


def _spellings(name: str) -> list[str]:
    """Return a flag with underscores, and with dashes if that differs."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))
