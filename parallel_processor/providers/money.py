"""Tells that an account, a key or a model's quota is used up, by codes first and then by words.

``SPENT`` is the table of codes. Codes that say it themselves need no row: ``insufficient_balance`` or
``BudgetExceeded`` are read as words. Words count only in an error's own message. What it quotes, and what
it repeats of a request, is left out, so that nobody's prompt stops a run.

Three kinds of words:

* **Money**: a balance, a credit, a budget or a spending limit that is gone. These always count.
* **Quotas**: "you exceeded your current quota". Servers say so about one minute, too. These count only if
  the error names no wait and no limit per minute.
* **Days**: the limit of a day. It is the model's, unless the error names the account and no model. With a
  wait of at most ten minutes it is an ordinary limit: such a bucket refills all day long. A longer wait
  ends the run, unless the error names the model.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from parallel_processor.exceptions import StopCause
from parallel_processor.models import AttemptStatus
from parallel_processor.providers.errors import ErrorInfo, unquoted
from parallel_processor.providers.texts import Pattern, phrases

_KEY, _QUOTA, _MODEL = "key", "quota", "model"

# Provider, the HTTP statuses it was seen with (none: any), code in lower case, what is used up or refused.
# A number is a code only together with one of its statuses.
SPENT: tuple[tuple[str, tuple[int, ...], str, str], ...] = (
    ("OpenAI", (), "invalid_api_key", _KEY),
    ("OpenAI", (), "account_deactivated", _KEY),
    ("OpenAI", (), "unsupported_country_region_territory", _KEY),
    ("OpenAI", (), "insufficient_quota", _QUOTA),
    ("OpenAI", (), "billing_not_active", _QUOTA),
    ("OpenAI", (), "billing_hard_limit_reached", _QUOTA),
    ("OpenAI", (), "access_terminated", _KEY),
    ("OpenAI", (), "credit_balance_exhausted", _QUOTA),
    ("OpenAI", (), "organization_spend_limit_exceeded", _QUOTA),
    ("OpenAI", (), "project_spend_limit_exceeded", _QUOTA),
    ("OpenAI", (), "organization_usage_limit_exceeded", _QUOTA),
    ("Anthropic", (), "authentication_error", _KEY),
    ("Anthropic", (), "permission_error", _KEY),
    ("Anthropic", (), "billing_error", _QUOTA),
    ("Anthropic", (), "enforced_spend_limit_reached", _QUOTA),
    ("Anthropic", (), "contract_spend_limit_reached", _QUOTA),
    ("Google", (), "api_key_invalid", _KEY),
    ("Google", (), "api_key_service_blocked", _KEY),
    ("Google", (), "api_key_http_referrer_blocked", _KEY),
    ("Google", (), "api_key_ip_address_blocked", _KEY),
    ("Google", (), "consumer_suspended", _KEY),
    ("Google", (), "billing_disabled", _QUOTA),
    ("Moonshot", (), "exceeded_current_quota_error", _QUOTA),
    ("Zhipu", (400, 401, 403, 429), "1110", _KEY),  # inactive
    ("Zhipu", (400, 401, 403, 429), "1112", _KEY),  # locked
    ("Zhipu", (400, 401, 403, 429), "1121", _KEY),  # locked for irregular activities
    ("Zhipu", (400, 401, 403, 429, 434), "1113", _QUOTA),  # arrears, no resource package
    ("Zhipu", (429,), "1308", _QUOTA),  # a plan's limit of some hours
    ("Zhipu", (429,), "1309", _QUOTA),  # the plan has expired
    ("Zhipu", (429,), "1310", _QUOTA),  # a plan's limit of a week or a month
    ("MiniMax", (401, 403), "1004", _KEY),
    ("MiniMax", (401, 403), "2049", _KEY),
    ("MiniMax", (400, 402, 403, 429, 500), "1008", _QUOTA),
    ("MiniMax", (429, 500), "1028", _QUOTA),
    ("MiniMax", (429, 500), "1030", _QUOTA),
    ("MiniMax", (429, 500), "2056", _QUOTA),
    ("Qwen", (), "arrearage", _QUOTA),
    ("Qwen", (), "prepaidbilloverdue", _QUOTA),
    ("Qwen", (), "postpaidbilloverdue", _QUOTA),
    ("Qwen", (), "commoditynotpurchased", _QUOTA),
    ("Qwen", (), "allocationquota.freetieronly", _MODEL),  # each model has a free quota of its own
    ("Qwen", (), "invalidapikey", _KEY),
    ("Bedrock", (), "unrecognizedclientexception", _KEY),
    ("Bedrock", (), "expiredtokenexception", _KEY),
    ("SiliconFlow", (400, 402, 403, 429), "30001", _QUOTA),
    ("SiliconFlow", (400, 402, 403, 429), "30011", _QUOTA),
    ("Volcengine", (), "accountoverdueerror", _QUOTA),
    ("Volcengine", (), "operationdenied.serviceoverdue", _QUOTA),
    ("Volcengine", (), "setlimitexceeded", _MODEL),  # the limit that its user has set
    ("Tencent", (), "failedoperation.freeresourcepackexhausted", _QUOTA),
    ("Tencent", (), "failedoperation.resourcepackexhausted", _QUOTA),
    ("Tencent", (), "failedoperation.servicestoparrears", _QUOTA),
    ("Tencent", (), "resourceinsufficient.chargeresourceexhaust", _QUOTA),
    ("LiteLLM", (), "budget_exceeded", _QUOTA),
    ("LiteLLM", (400,), "no_db_connection", _KEY),  # a key that is not the only one it knows
    ("one-api", (), "insufficient_user_quota", _QUOTA),
    ("one-api", (), "pre_consume_token_quota_failed", _QUOTA),
    ("Hugging Face", (), "not_enough_balance", _QUOTA),
    ("others", (), "payment_required", _QUOTA),
)

# "Thinking budget", "budget_tokens" and their like are limits of one request.
_BUDGET = (
    "".join(
        rf"(?<!{kind} )"
        for kind in (
            *("token", "tokens", "thinking", "reasoning", "thought", "context", "input", "output"),
            *("prompt", "completion", "compute", "time", "latency", "effort"),
        )
    )
    + r"\bbudgets?\b(?! tokens)"
)
_HOLD = (
    r"(?:(?<!load )\bbalance|\bcredits?(?! cards?)|\bfunds|\bwallet|\ballowance|\bprepayment"
    rf"|{_BUDGET})\b"
)
_GONE = (
    r"\b(?:insufficient|not (?:sufficient|enough)|too low|exhausted|used up|depleted|empty|negative"
    r"|overdue|expired|r[au]n out|spent|zero|reached|exceeded|hit|gone|past due|unpaid|in debt)\b"
)
_CAP = (
    r"\b(?:spend(?:ing)?|billing|credits?|cost|monthly|weekly) "
    r"(?:(?:usage|spend(?:ing)?|hard|soft) )?(?:limit|cap|budget)s?\b"
)
# Words of which one is in the text, and how they stand in it where money is gone.
_MONEY = (
    phrases(
        "balance|credit|fund|wallet|allowance|prepayment|budget",
        rf"{_HOLD}(?:(?!tokens|rate)[^.!?;:\n]){{0,40}}{_GONE}"
        r"|\b(?:insufficient|not enough|no|r[au]n out of|out of|used(?: up)? all(?: of)?|exhausted|depleted"
        r"|exceeded|over|crossed|reached|hit|lacks?|negative|(?:don.?t|doesn.?t|not) have"
        rf"(?: any| enough| sufficient))\b(?: (?!rate|tokens?)\w+){{0,4}} ?{_HOLD}"
        r"|\brequires? (?:more|a paid|paid) (?:credits?|balance)\b",
    ),
    phrases(
        "spend|billing|credit|cost|monthly|weekly",
        rf"{_CAP}[^.;\n]{{0,40}}\b(?:reached|exceeded|hit|used up|exhausted)\b"
        rf"|\b(?:reached|reaching|exceeded|hit)\b[^.;\n]{{0,40}}{_CAP}"
        r"|\bbilling\b[^.;\n]{0,20}\b(?:not (?:active|enabled)|inactive|disabled|suspended"
        r"|required)\b",
    ),
    phrases(
        "arrear|overdue|past due|unpaid|pay|outstanding|debt",
        r"\barrear(?:s|age)?\b|\b(?:overdue|unpaid|outstanding) (?:balance|payment|bill|invoice)"
        r"|\b(?:balance|account|payment|bill|invoice)s?\b[^.;\n]{0,20}"
        r"\b(?:overdue|past due|unpaid|debt)\b"
        r"|\bfail(?:ure|ed) to pay\b|\bpayment required\b"
        r"|\bpayment (?:method )?(?:has )?(?:failed|declined)",
    ),
    phrases("api usage limits", r"\breached your specified api usage limits"),
    phrases(
        "quota",
        r"\binsufficient(?: \w+){0,2} quota\b|\b(?:user|token|account|remaining|key|plan)\b"
        r"[^.;\n]{0,12}\bquota\b[^.;\n]{0,60}\b(?:not enough|insufficient)\b",
    ),
    phrases(
        "余额|额度|欠费|逾期|配额|资源包|点数|积分|套餐|预扣费|金",
        r"(?:余额|资金|金额|额度|配额|资源包|点数|积分|套餐)[^。；，,\n]{0,8}"
        r"(?:不足|用完|耗尽|用尽|到期|过期|失败|为零|为负)|余额[:：]? ?[零负]"
        r"|欠费|逾期|预扣费|(?:无|没有)可用(?:的)?(?:资源包|额度|余额)",
    ),
)
_ACCOUNT_CLOSED = phrases(
    "suspended|deactivated|disabled|active|locked|banned|terminated|blocked|账",
    r"\b(?:account|organization|subscription|api key|project)\b(?: (?!rate|may|might|will|can)\S+){0,4}? "
    r"(?:is|has been|was|currently)(?: \w+)? "
    r"(?:suspended|deactivated|disabled|inactive|not active|locked|banned|terminated|blocked)\b"
    r"|账[户号][^。；，,\n]{0,6}(?:停用|冻结|封禁|锁定|禁用)",
)
# xAI says so with 400, Bedrock and Google with 403, none with a code.
_KEY_REFUSED = phrases(
    "api key|api-key|apikey|api token|bearer token|security token",
    r"\b(?:incorrect|invalid|wrong|expired|malformed) api[ -]?(?:key|token)\b"
    r"|\bapi[ -]?(?:key|token) (?:is |has |was )?(?:not valid|invalid|incorrect|expired|not found)\b"
    r"|\bmake sure your api key is valid\b|\bapi key was reported as leaked\b|\bunregistered callers\b"
    r"|\b(?:bearer|security) token\b[^.;\n]{0,30}\b(?:is )?(?:invalid|expired)\b",
)
_PLAN = (
    r"(?:quota|usage (?:limit|cap)s?|subscription|trial|free tier|package"
    r"|(?:purchased|free|included) tokens|plan(?: limits?)?"
    r"|limit of (?:your|the|this) (?:plan|key|account)|key limits?)"
)
_QUOTA_GONE = phrases(
    "quota|usage|plan|subscription|trial|free|package|key limit|month|used up|超|purchased|included",
    rf"\b{_PLAN}\b[^.;:\n]{{0,40}}\b(?:exceeded|exhausted|used up|not enough|depleted|reached|hit|ended"
    r"|expired|finished)\b"
    rf"|\b(?:exceeded|exhausted|reached|used up|hit|out of|no)\b(?: [\w'’]+){{0,5}} {_PLAN}\b"
    r"|\bused up your (?:daily|weekly|monthly)\b"
    r"|\bcalls? ?(?:/|per|a) ?month\b|\bmonthly (?:request|token|call|usage)"
    r"|超[出过][^。；，,\n]{0,4}(?:配额|额度|套餐)",
)
# Cohere's trial key, which is told that others have higher rate limits.
_MONTH = phrases("month", r"\bcalls? ?(?:/|per|a) ?month\b")
# A limit of requests in a minute says "quota" as well.
_NO_QUOTA = Pattern(
    r"per.?(?:minute|second|request)|request rate|slow down|\b[rt]pm\b|rate.?limits?\b"
    r"|\b(?:minute|second)\b|concurren|parallel"
    r"|/ ?(?:min|sec)|resource.?exhausted|throttl|tokens? quota exceeded|每分钟|每秒|频率|速率|并发",
    re.IGNORECASE,
)
_MINUTE = Pattern(
    r"per.?(?:min|sec)|(?:a|/) ?(?:minute|second|min|sec)\b|\b[rt]pm\b|每分钟|每秒", re.IGNORECASE
)
_DAY = phrases(
    "day|daily|rpd|tpd|86400|每|当|今日",
    r"\bper.?day\b|\ba day\b|\bdaily\b|\b[rt]pd\b|\bper 86400 ?s|modelbyday|每[日天]|当[日天]|今日",
)
_OF_LIMIT = Pattern(
    r"limit|quota|exceed|exhaust|reached|used up|too many|限|额|次数", re.IGNORECASE
)
_NAMES_MODEL = Pattern(
    r"\bmodels?\b(?!-)|\bfor \S+ in organization\b|bymodel|permodel|模型", re.IGNORECASE
)
_NAMES_ACCOUNT = Pattern(
    r"\byour account\b|\baccount'?s?\b|\borganization\b|\bproject\b|\bteam\b|\bapi key\b|\bthis key\b"
    r"|\bplan\b|\bfree.tier\b|\bfree-models|perproject|allocat|账[户号]|用户",
    re.IGNORECASE,
)
_OF_ALL_FREE_MODELS = Pattern(r"\bfree-models-per-day", re.IGNORECASE)  # OpenRouter
_OWNER = Pattern(
    r"\b(?:your|account|user|team|organization|key|customer|billing|wallet|top up|recharge|overdue"
    r"|insufficient(?: \w+)? (?:balance|credits?|funds)|requires? more credits|arrears?|invoice|budget has"
    r"|exceeded budget)\b|[\u4e00-\u9fff]",
    re.IGNORECASE,
)
# Somebody's text was judged, not an account.
_OF_CONTENT = Pattern(
    r"\b(?:content|polic(?:y|ies)|safety|moderation|guardrails?|prompt)\b", re.IGNORECASE
)
_OF_ONE_MODEL = phrases(
    "budget|quota",
    r"\bexceeded budget for (?:model|deployment)\b|\bcrossed budget\b"
    r"|\bquota (?:of|for) (?:this |the |your )?model\b",
)
# DashScope says so of its limit of tokens in a minute.
_ALLOCATED = phrases(
    "allocated quota|#token-limit",
    r"#token-limit|(?<!free )(?<!hour )(?<!week )(?<!month )(?<!day )allocated quota exceeded",
)
# What follows these is the request's.
_ECHO = Pattern(
    r"\b(?:prompt|input|content|text|value|got|received|returned|instructions?|query|messages)\b"
    r"[^.:=\n]{0,20}"
    r"(?:[:=]|\bwas\b).*",
    re.IGNORECASE | re.DOTALL,
)
_REQUESTS_FAULT = (400, 404, 405, 413, 415, 422)
_WITH_REFUSED_KEYS = (400, 403)
_WITH_ACCOUNTS = (400, 401, 403, 404, 412, 429)
_WITH_QUOTAS = (400, 401, 402, 403, 412, 422, 429)
_SHORT_WAIT_S = 600.0
_WORD_ENDS = Pattern(r"(?<=[a-z])(?=[A-Z])|[_-]+")


class Verdict(NamedTuple):
    """What is used up or refused, and why that stops the run."""

    status: AttemptStatus
    stop_cause: StopCause = StopCause.NOTHING


_MODEL_SPENT = Verdict(AttemptStatus.MODEL_SPENT)
NO_QUOTA_LEFT = Verdict(AttemptStatus.FATAL, StopCause.QUOTA)
NO_ACCESS = Verdict(AttemptStatus.FATAL, StopCause.KEY)
_VERDICTS = {_KEY: NO_ACCESS, _QUOTA: NO_QUOTA_LEFT, _MODEL: _MODEL_SPENT}
_BY_CODE = {code: (statuses, _VERDICTS[what]) for _, statuses, code, what in SPENT}


def spent(http_status: int, info: ErrorInfo, wait_s: float | None) -> Verdict | None:
    """What the error says is used up or refused for good; ``None`` if it is about this request alone.

    Args:
        http_status: the status of the response, or of the error within it.
        info: the error.
        wait_s: how long the server asks to wait; ``None`` if it doesn't ask.
    """
    if _ALLOCATED.search(info.text):
        return None
    by_code = [_BY_CODE[code] for code in info.codes if code in _BY_CODE]
    verdicts = [verdict for statuses, verdict in by_code if not statuses or http_status in statuses]
    if verdicts:
        of_model = verdicts[0].stop_cause is StopCause.QUOTA and _OF_ONE_MODEL.search(info.text)
        return _MODEL_SPENT if of_model else verdicts[0]
    if http_status == 402 and wait_s is not None:  # OpenRouter: until what is in flight is billed
        return None
    labels = _words(info.labels.replace(".", " "))
    text = _own_words(http_status, info)
    if _is_models(http_status, info, text, wait_s):
        return _MODEL_SPENT
    if _is_money(labels) or _is_money(text):
        return NO_QUOTA_LEFT
    return _by_words(http_status, info, f"{text} . {labels}", wait_s)


def _words(text: str) -> str:
    """``text`` with its names taken apart: ``budget_exceeded`` and ``BudgetExceeded`` are two words."""
    return _WORD_ENDS.sub(" ", text)


def _own_words(http_status: int, info: ErrorInfo) -> str:
    """The error's own words about an account; nothing if they are about the request."""
    text = unquoted(info.text)
    if http_status in _REQUESTS_FAULT:
        text = _ECHO.sub(" ", text)
        if not _OWNER.search(text):
            return ""
    return "" if _OF_CONTENT.search(text) else _words(text)


def _is_money(text: str) -> bool:
    return any(kind.search(text) for kind in _MONEY)


def _by_words(http_status: int, info: ErrorInfo, text: str, wait_s: float | None) -> Verdict | None:
    is_months = _MONTH.search(text) and not _MINUTE.search(text)
    is_gone = is_months or (_QUOTA_GONE.search(text) and not _NO_QUOTA.search(text))
    if http_status in _WITH_REFUSED_KEYS and _KEY_REFUSED.search(text):
        return NO_ACCESS
    if http_status in _WITH_ACCOUNTS and _ACCOUNT_CLOSED.search(text):
        return NO_QUOTA_LEFT if is_gone else NO_ACCESS
    if http_status not in _WITH_QUOTAS:
        return None
    if verdict := _of_a_day(info, text, wait_s):
        return verdict
    return NO_QUOTA_LEFT if is_gone and wait_s is None else None


def _is_models(http_status: int, info: ErrorInfo, text: str, wait_s: float | None) -> bool:
    """True for the budget, the quota or the day of a model that the error names."""
    if http_status not in _WITH_QUOTAS or not _NAMES_MODEL.search(text):
        return False
    if wait_s is None and _OF_ONE_MODEL.search(text) and not _NO_QUOTA.search(text):
        return True
    return _of_a_day(info, text, wait_s) is _MODEL_SPENT


def _of_a_day(info: ErrorInfo, text: str, wait_s: float | None) -> Verdict | None:
    """Whose the limit of a day is that was reached; ``None`` if none was, or if a wait is in order."""
    quotas = " ".join(code for code in info.detail_codes if "perday" in code)  # Google's
    names = f"{info.text} {quotas}"
    of_model = _NAMES_MODEL.search(names) and not _OF_ALL_FREE_MODELS.search(names)
    if not quotas:
        if wait_s is not None and (wait_s <= _SHORT_WAIT_S or not of_model):
            return None
        if not _DAY.search(text) or not _OF_LIMIT.search(text) or _MINUTE.search(text):
            return None
    return NO_QUOTA_LEFT if not of_model and _NAMES_ACCOUNT.search(names) else _MODEL_SPENT
