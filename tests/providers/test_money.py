"""What says that an account or a model's quota is used up, and what only looks like it.

The bodies are made after public reports and error pages, shortened.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from bodies import GEMINI, attempt_of, google, said

from parallel_processor.exceptions import StopCause
from parallel_processor.models import AttemptStatus

FAILED, FATAL, RETRY = AttemptStatus.FAILED, AttemptStatus.FATAL, AttemptStatus.RETRY
LIMITED, SPENT = AttemptStatus.RATE_LIMITED, AttemptStatus.MODEL_SPENT
KEY, QUOTA = StopCause.KEY, StopCause.QUOTA

SUSPENDED = (
    "Your account org-1 <ak-1> is suspended due to insufficient balance, please recharge your "
    "account "
    "or check your plan and billing details"
)
XAI = (
    "Your team 16f has either used all available credits or reached its monthly spending limit. To "
    "continue making API requests, please purchase more credits or raise your spending limit."
)
FIREWORKS = (
    "Account x is suspended, possibly due to reaching the monthly spending limit or failure to "
    "pay past "
    "invoices. Please go to https://fireworks.ai/account/billing for more information."
)
RESELLER = (
    "This request requires more credits, or fewer max_tokens. You requested up to 9 tokens, but can"
)
MONEY: list[tuple[str, int, Any, StopCause]] = [
    ("case: inactive account", 429, said("see billing", "billing_not_active"), QUOTA),
    (
        "case: budget as 429",
        429,
        said("budget used up: 10.51 of 10.00", "429", "budget_exceeded"),
        QUOTA,
    ),
    (
        "case: budget as 400",
        400,
        said("budget used up: 10.51 of 10.00", "400", "budget_exceeded"),
        QUOTA,
    ),
    ("case: arrears", 400, said("the account is in arrears", "Arrearage", "Arrearage"), QUOTA),
    (
        "case: numeric code",
        403,
        {"code": 30011, "message": "this model needs paid balance, which is used up", "data": None},
        QUOTA,
    ),
    ("OpenAI", 429, said(GEMINI, "insufficient_quota", "insufficient_quota"), QUOTA),
    ("OpenAI, without its codes", 429, said(GEMINI), QUOTA),
    ("OpenAI, hard limit", 400, said("Billing hard limit has been reached", None, "x"), QUOTA),
    ("OpenAI, country", 403, said("m", "unsupported_country_region_territory"), KEY),
    (
        "OpenAI, deactivated",
        401,
        said("The account has been deactivated", "account_deactivated"),
        KEY,
    ),
    (
        "Anthropic, credit",
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Please "
                "go to Plans",
            },
        },
        QUOTA,
    ),
    (
        "Anthropic, its user's limit",
        400,
        said("You have reached your specified API usage limits. You will regain access", None, "x"),
        QUOTA,
    ),
    ("Anthropic, organisation", 400, said("This organization has been disabled.", None, "x"), KEY),
    ("Azure, subscription", 403, said("The subscription abc is disabled.", "403"), KEY),
    ("Gemini, key", 400, said("m", 400, "x", details=[{"reason": "API_KEY_INVALID"}]), KEY),
    (
        "Gemini, prepaid",
        429,
        google("Your prepayment credits are depleted. Please go to AI Studio"),
        QUOTA,
    ),
    ("Gemini, billing", 403, said("m", 403, "x", details=[{"reason": "BILLING_DISABLED"}]), QUOTA),
    ("Gemini, project's day", 429, google("m", "GenerateRequestsPerDayPerProject"), QUOTA),
    (
        "DeepSeek",
        402,
        said("Insufficient Balance", "invalid_request_error", "unknown_error"),
        QUOTA,
    ),
    ("DeepSeek through a gateway", 400, said("Insufficient Balance"), QUOTA),
    ("Moonshot", 429, said(SUSPENDED, None, "exceeded_current_quota_error"), QUOTA),
    ("Moonshot, words alone", 429, said(SUSPENDED), QUOTA),
    (
        "Moonshot, inactive",
        403,
        said("Your account x is not active, organization <x> exceeded current quota, please check"),
        QUOTA,
    ),
    (
        "Moonshot's day of all models",
        429,
        said(
            "Your account org-1 request reached organization TPD rate limit, current: 9, limit: 8"
        ),
        QUOTA,
    ),
    ("Zhipu", 429, {"error": {"code": "1113", "message": "您的账户已欠费，请充值后重试。"}}, QUOTA),
    ("Zhipu, packages", 429, said("余额不足或无可用资源包,请充值。"), QUOTA),
    (
        "Zhipu in Anthropic's shape",
        429,
        {
            "type": "error",
            "error": {"type": "1113", "message": "no resource package. Please recharge."},
        },
        QUOTA,
    ),
    (
        "Zhipu's plan",
        429,
        said(
            "Usage limit reached for 5 hour. Your limit will reset at 2026-09-09 05:38:28", "1308"
        ),
        QUOTA,
    ),
    ("Zhipu, locked", 429, said("Your account has been locked, please contact", "1112"), KEY),
    (
        "MiniMax",
        500,
        {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}},
        QUOTA,
    ),
    (
        "MiniMax elsewhere",
        429,
        said("insufficient balance (1008)", None, "insufficient_balance_error"),
        QUOTA,
    ),
    ("MiniMax in a 200", 200, {"error": {"code": 1008, "message": "insufficient balance"}}, QUOTA),
    ("Qwen, overdue bill", 403, said("m", "PrepaidBillOverdue"), QUOTA),
    (
        "Qwen, good standing",
        400,
        {"code": "Arrearage", "message": "Access denied, make sure your"},
        QUOTA,
    ),
    ("SiliconFlow", 403, {"code": 30001, "message": "m", "data": None}, QUOTA),
    (
        "Volcengine",
        403,
        said("your account has an overdue balance", "AccountOverdueError", "Forbidden"),
        QUOTA,
    ),
    ("Tencent", 400, said("m", "FailedOperation.ServiceStopArrears"), QUOTA),
    ("OpenRouter", 402, said(f"{RESELLER} only afford 3.", 402), QUOTA),
    ("OpenRouter's 402 as a 400", 400, said(f"{RESELLER} only afford 3."), QUOTA),
    (
        "OpenRouter, a key's limit",
        403,
        said("Key limit exceeded (monthly limit). Manage it using", 403),
        QUOTA,
    ),
    (
        "OpenRouter, all free models",
        429,
        said(
            "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model",
            429,
        ),
        QUOTA,
    ),
    (
        "OpenRouter, high balance",
        429,
        said("Rate limit exceeded: free-models-per-day-high-balance."),
        QUOTA,
    ),
    (
        "a provider's error in OpenRouter's",
        429,
        said("Provider returned error", 429, metadata={"raw": json.dumps(said(SUSPENDED))}),
        QUOTA,
    ),
    (
        "LiteLLM, key",
        422,
        said("Budget has been exceeded! Key=1 Current cost: 3.2, Max budget: 3.0"),
        QUOTA,
    ),
    (
        "LiteLLM, user",
        400,
        said("ExceededBudget: User=u over budget. Spend=2, Budget=1", "400", "x"),
        QUOTA,
    ),
    (
        "LiteLLM, window",
        429,
        said("ExceededBudget: Key over 1d budget. Spend=$2.0, Limit=$1.00"),
        QUOTA,
    ),
    (
        "LiteLLM, what is behind it",
        400,
        said(
            f"litellm.BadRequestError: OpenAIException - {json.dumps(said(XAI))}. Received Model",
            "400",
        ),
        QUOTA,
    ),
    (
        "one-api",
        403,
        said("user quota is not enough", "insufficient_user_quota", "one_api_error"),
        QUOTA,
    ),
    ("one-api, numbers", 403, said("user [3] quota [-2]preConsumedQuota [7]is not enough"), QUOTA),
    ("one-api, user", 403, said("用户额度不足, 剩余额度: ＄-0.000002 (request id: 1)"), QUOTA),
    (
        "one-api, token",
        401,
        said("该令牌额度已用尽 TokenStatusExhausted[sk-x]", None, "new_api_error"),
        QUOTA,
    ),
    ("new-api", 403, said("预扣费额度失败, 用户剩余额度: ＄0.1, 需要预扣费额度: ＄0.2"), QUOTA),
    (
        "sub2api",
        403,
        {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"},
        QUOTA,
    ),
    ("xAI", 429, {"code": "m", "error": XAI}, QUOTA),
    ("xAI, a text", 429, XAI, QUOTA),
    (
        "xAI, new team",
        403,
        {
            "error": "Your newly created team doesn't have any credits or licenses yet. You can "
            "purchase"
        },
        QUOTA,
    ),
    ("Fireworks", 412, said(FIREWORKS, "PRECONDITION_FAILED", "error"), QUOTA),
    (
        "Fireworks in a gateway's",
        500,
        said(f"FLUX generation failed: {json.dumps(said(FIREWORKS))}"),
        QUOTA,
    ),
    (
        "Hugging Face",
        402,
        {"error": "You have exceeded your monthly included credits for Inference Providers."},
        QUOTA,
    ),
    ("Together", 402, said("Credit limit exceeded, please navigate to billing"), QUOTA),
    (
        "Cloudflare",
        429,
        {
            "errors": [
                {
                    "message": "you have used up your daily free allocation of 10,000 neurons",
                    "code": 4006,
                }
            ]
        },
        QUOTA,
    ),
    (
        "Cohere's trial",
        429,
        {
            "message": "You are using a Trial key, which is limited to 1000 API calls / month. You can "
            "continue to use the Trial key for free or upgrade to a Production key with higher rate limits "
            "at 'https://dashboard.cohere.com/api-keys'."
        },
        QUOTA,
    ),
    (
        "Perplexity",
        401,
        said("You exceeded your current quota, please check", 401, "insufficient_quota"),
        QUOTA,
    ),
    ("Venice", 402, {"error": "INSUFFICIENT_BALANCE"}, QUOTA),
    ("a key's text", 403, {"message": "The quota of this key has been used up."}, QUOTA),
    ("expired plan", 403, {"msg": "Your subscription has expired, please renew it."}, QUOTA),
    (
        "Python's text of an exception",
        400,
        {"detail": "Error code: 429 - {'error': {'message': 'm', 'type': 'insufficient_quota'}}"},
        QUOTA,
    ),
    ("a plain text", 429, "账户余额不足，请充值", QUOTA),
    ("no key", 401, None, KEY),
]


@pytest.mark.parametrize(
    ("status", "body", "cause"), [pytest.param(*row[1:], id=row[0]) for row in MONEY]
)
def test_what_is_used_up_stops_the_run(status: int, body: Any, cause: StopCause) -> None:
    """An account, a key, a budget or a plan without money is fatal, whatever status and words say so."""
    attempt = attempt_of(status, body)
    assert (attempt.status, attempt.stop_cause) == (FATAL, cause)


SPENT_WORDS = [
    (403, "Out of credits"),
    (429, "You've used up all your credits for this month"),
    (403, "Your trial credits are gone"),
    (403, "Your free tier has been exhausted"),
    (422, "Budget limit hit for team data-science"),
    (403, "Your account has run out of credits"),
    (429, "You have no credits left. Please add credits to your account."),
    (400, "You have insufficient credits to make this request"),
    (429, "Account balance is zero. Top up to continue"),
    (403, "Balance is not sufficient"),
    (403, "This API key has no remaining balance"),
    (400, "The user has insufficient funds in wallet"),
    (422, "Team budget exceeded"),
    (429, "Monthly budget of $50 reached for this virtual key"),
    (429, "Portkey Error: The Virtual Key has exceeded its budget"),
    (412, "usage limit exceeded for virtual key"),
    (429, "You've exceeded your plan's monthly quota"),
    (429, "API quota exhausted. Please upgrade your plan."),
    (429, "you (bob) have reached your weekly usage limit, upgrade for higher limits"),
    (403, "Free trial has ended. Please upgrade"),
    (403, "Resource package exhausted"),
    (403, "Purchased tokens have been used up, please recharge"),
    (403, "Usage cap reached for this billing period"),
    (403, "spend limit has been reached for this workspace"),
    (403, "Project quota tier unavailable; billing not enabled"),
    (400, "Consumer invoice is unpaid"),
    (429, "Please pay your outstanding invoice"),
    (403, "您的账户余额已用完"),
    (403, "帳戶餘額不足，請儲值"),
    (403, "当前账户资金不足"),
    (403, "余额为零"),
    (403, "您的免费额度已用完"),
    (429, "已超出配额，请升级套餐"),
]
SPENT_CODES = (
    *("credits_exhausted", "no_credits", "balance_insufficient", "AccountDebt", "billing_required"),
    *("QuotaExhausted", "USER_BALANCE_NOT_ENOUGH", "plan_limit_reached", "INSUFFICIENT_FUNDS"),
)


@pytest.mark.parametrize(("status", "text"), SPENT_WORDS)
def test_words_that_no_table_has_are_understood(status: int, text: str) -> None:
    """What an account has, and that it is gone, in any order."""
    assert attempt_of(status, said(text)).stop_cause is QUOTA


@pytest.mark.parametrize("code", SPENT_CODES)
def test_codes_are_read_as_words(code: str) -> None:
    """A code needs no row of its own if it says what is gone."""
    assert attempt_of(403, said("m", code)).stop_cause is QUOTA


HARMLESS = [
    (400, "'max_tokens' is too large: your account's plan allows 4096"),
    (400, "Unsupported parameter: credit_limit"),
    (400, "The requested thinking_budget 99999 exceeds the limit"),
    (400, "Prompt tokens limit exceeded: 230799 > 91442."),
    (400, "Credit card numbers are not allowed"),
    (400, "the document mentions that a plan has expired"),
    (400, "tool 'get_credits' returned: out of credits"),
    (400, "Daily limit of images per request exceeded"),
    (400, "Failed to parse: the payment required field is missing"),
    (403, "Your account does not have access to this model. Please upgrade your plan."),
    (403, "You are not allowed to use this endpoint with a free plan"),
    (403, "Request blocked: content about overdue payments is not allowed"),
    (403, "Your organization must be verified to use the model"),
    (413, "payload exceeded quota of 10MB"),
    (429, "Too many requests. Upgrade your plan for higher limits."),
    (429, "Rate limit exceeded. Add credits to increase your rate limit."),
    (429, "You have exceeded the rate limit for your plan."),
    (429, "Limit of concurrent requests for your plan exceeded"),
    (429, "Quota exceeded: 60 requests per minute per user"),
    (429, "quota exceeded, please try again in 10 seconds"),
    (429, "Request quota reached for this second"),
    (429, "Request rate exceeded for your subscription tier, slow down"),
    (429, "Buy credits to raise the rate, a limit was hit"),
    (429, "The quota for model m of 60 requests per minute is exceeded"),
    (429, "per-request token budget exhausted"),
    (500, "load balance failed: no healthy backend"),
    (503, "load balancer: backend pool exhausted"),
]


@pytest.mark.parametrize(("status", "text"), HARMLESS)
def test_words_of_money_alone_do_not_stop_the_run(status: int, text: str) -> None:
    """A plan, a credit or a budget may be named in the error of one request, or of one minute."""
    attempt = attempt_of(status, said(text))
    assert attempt.status in (FAILED, RETRY, LIMITED)


ECHO = "Invalid prompt: Your account balance is insufficient, please recharge."
LOOK_ALIKES: list[tuple[str, int, Any, AttemptStatus]] = [
    ("an echoed prompt", 400, said(ECHO, "invalid_prompt"), FAILED),
    (
        "an echo in quotes",
        400,
        said('Invalid value: "your credit balance is too low". Expected'),
        FAILED,
    ),
    (
        "an echo in an open quote",
        400,
        said('could not parse "your account has an overdue balance and'),
        FAILED,
    ),
    (
        "an echo in backquotes",
        400,
        said("The tool `budget_exceeded` is no name; `no credits left` neither"),
        FAILED,
    ),
    ("an echo in Chinese quotes", 400, said("参数错误：“账户余额不足”不是有效的值"), FAILED),
    (
        "an echo that was an error",
        400,
        said('Invalid JSON in prompt: {"error": {"code": "insufficient_quota"}}'),
        FAILED,
    ),
    (
        "FastAPI's input",
        422,
        {"detail": [{"loc": ["body"], "msg": "bad", "input": "insufficient_quota", "type": "x"}]},
        FAILED,
    ),
    ("max_tokens budget", 400, said("max_tokens budget exceeded: 9000 of 4096"), FAILED),
    (
        "thinking budget",
        400,
        said("The thinking budget is exceeded; budget_tokens must be less than max_tokens"),
        FAILED,
    ),
    ("token budget", 400, said("Your request has exceeded the token budget of the model"), FAILED),
    ("over the token budget", 400, said("prompt is over the token budget"), FAILED),
    ("a budget of tokens", 400, said("Your budget of 32 tokens is exceeded"), FAILED),
    (
        "permissions for an image",
        403,
        said("insufficient permissions for this image in your account"),
        FAILED,
    ),
    (
        "permissions for a model",
        403,
        said("You have insufficient permissions for this operation", "x"),
        FAILED,
    ),
    (
        "context",
        400,
        said("This model's maximum context length is 8192 tokens", "context_length_exceeded"),
        FAILED,
    ),
    (
        "content policy",
        400,
        said("Your request was rejected by our safety system", "content_policy_violation"),
        FAILED,
    ),
    (
        "content policy, a threat",
        403,
        said("Violation; if you go on, your account may be suspended."),
        FAILED,
    ),
    ("content filter", 400, said("The response was filtered", "content_filter"), FAILED),
    ("braces", 400, said("schema is invalid: parentheses balance is negative at 12"), FAILED),
    ("a hard limit", 400, said("input exceeded the hard limit of 2048 tokens"), FAILED),
    (
        "a model",
        404,
        said("The model `x` does not exist or you do not have access to it.", "model_not_found"),
        FAILED,
    ),
    ("a size", 413, said("Request size limit reached"), FAILED),
    (
        "a firewall",
        403,
        "<html><head><title>Access denied</title></head><body>Your account balance is "
        "insufficient</body></html>",
        FAILED,
    ),
    (
        "a key without this model",
        401,
        said("key not allowed to access model", "401", "key_model_access_denied"),
        FAILED,
    ),
    (
        "Gemini's minute",
        429,
        google(
            f"{GEMINI} Please retry in 20.04s.",
            "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
        ),
        LIMITED,
    ),
    ("Gemini without a wait", 429, google(GEMINI), LIMITED),
    (
        "Vertex",
        429,
        said(
            "Quota exceeded for aiplatform.googleapis.com/generate_content_requests_per_minute", 429
        ),
        LIMITED,
    ),
    (
        "Google's general text",
        429,
        said("Resource has been exhausted (e.g. check quota).", 429, "RESOURCE_EXHAUSTED"),
        LIMITED,
    ),
    (
        "Voyage's advertisement",
        429,
        {
            "detail": "You have not yet added your payment method in the billing page and will "
            "have reduced rate limits of 3 RPM and 10K TPM."
        },
        LIMITED,
    ),
    (
        "OpenAI's advertisement",
        429,
        said(
            "Rate limit reached for m on requests per min. Limit: 3 / min. You can increase "
            "your rate limit by adding a payment method to your account at "
            "https://platform.openai.com/account/billing."
        ),
        LIMITED,
    ),
    (
        "Groq's advertisement",
        429,
        said(
            "Rate limit reached on tokens per minute (TPM): Limit 6000, Used 5000, Requested "
            "2000. Please try again in 1.9s. Need more tokens? Upgrade to Dev Tier today at "
            "https://console.groq.com/settings/billing",
            "rate_limit_exceeded",
            "tokens",
        ),
        LIMITED,
    ),
    (
        "Groq's day, refilled at once",
        429,
        said(
            "Rate limit reached for model `m` in organization `o` on tokens per day (TPD): "
            "Limit 100000, Used 97050, Requested 3619. Please try again in 9m38.016s."
        ),
        LIMITED,
    ),
    (
        "Qwen's tokens a minute",
        429,
        said(
            "You exceeded your current quota. For details, see: "
            "https://help.aliyun.com/zh/model-studio/error-code#token-limit",
            "insufficient_quota",
            "insufficient_quota",
        ),
        LIMITED,
    ),
    (
        "Qwen's throttling",
        429,
        {
            "code": "Throttling.AllocationQuota",
            "message": "Allocated quota exceeded, please increase your quota limit.",
        },
        LIMITED,
    ),
    (
        "Cerebras' minute",
        429,
        said(
            "Tokens per minute limit exceeded - too many tokens processed.",
            "token_quota_exceeded",
            "too_many_tokens_error",
        ),
        LIMITED,
    ),
    (
        "both windows",
        429,
        said("Limits: 20 requests per minute, 1000 requests per day; slow down"),
        LIMITED,
    ),
    ("Zhipu's rate", 429, said("您的账户已达到速率限制，请您控制请求频率", "1302"), LIMITED),
    ("new-api's load", 429, said("当前分组上游负载已饱和，请稍后再试"), LIMITED),
    ("OpenRouter in flight", 402, said("Insufficient credits", 402), LIMITED),
    ("a budget of time", 504, said("time budget exceeded"), RETRY),
    (
        "LiteLLM's cool-down",
        429,
        said(
            "No deployments available for selected model, Try again in 5 seconds. Passed model=m."
        ),
        LIMITED,
    ),
    (
        "an answer's text",
        200,
        {"choices": [{"message": {"content": "insufficient_quota, 余额不足"}}]},
        AttemptStatus.ANSWERED,
    ),
]
WAITING = {"OpenRouter in flight": {"Retry-After": "3"}}


@pytest.mark.parametrize(
    ("name", "status", "body", "meant"), LOOK_ALIKES, ids=[row[0] for row in LOOK_ALIKES]
)
def test_what_looks_like_money_does_not_stop_the_run(
    name: str, status: int, body: Any, meant: AttemptStatus
) -> None:
    """A request's fault, its echoed text, an advertisement and a minute's limit are no empty account."""
    attempt = attempt_of(status, body, WAITING.get(name))
    assert (attempt.status, attempt.stop_cause) == (meant, StopCause.NOTHING)


MODELS_DAY = "GenerateRequestsPerDayPerProjectPerModel"
DAY: list[tuple[str, int, Any]] = [
    (
        "case: Gemini's day",
        429,
        [google("you exceeded your quota", "GenerateRequestsPerDayPerProjectPerModel-FreeTier")],
    ),
    ("Gemini, with a short delay", 429, google(GEMINI, MODELS_DAY, delay="57s")),
    (
        "Gemini, all windows",
        429,
        google(
            GEMINI,
            "GenerateContentInputTokensPerModelPerMinute-FreeTier",
            "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
        ),
    ),
    ("Gemini as a string", 429, said(json.dumps(google(GEMINI, MODELS_DAY)), 429)),
    (
        "Gemini as Python's text",
        500,
        {"detail": f"429 RESOURCE_EXHAUSTED. {google(GEMINI, MODELS_DAY)}"},
    ),
    (
        "Groq, hours",
        429,
        said(
            "Rate limit reached for model `m` in organization `o` on requests per day (RPD): "
            "Limit 1000, Used 1000, Requested 1. Please try again in 2h13m."
        ),
    ),
    (
        "Groq, without a wait",
        429,
        said(
            "Rate limit reached for model `m` in organization `o` on tokens per day (TPD): "
            "Limit 100000, Used 100000"
        ),
    ),
    (
        "GitHub",
        429,
        said(
            "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 32334 "
            "seconds before retrying.",
            "RateLimitReached",
        ),
    ),
    (
        "Cerebras",
        429,
        said("Tokens per day limit exceeded - too many tokens processed.", "token_quota_exceeded"),
    ),
    ("Bedrock", 429, {"message": "Too many tokens per day, please wait before trying again."}),
    ("Zhipu", 429, said("Daily call limit for this API reached", "1304")),
    (
        "Qwen's free quota",
        403,
        said(
            "The free quota has been exhausted. To continue accessing the model",
            "AllocationQuota.FreeTierOnly",
        ),
    ),
    (
        "Volcengine",
        429,
        said(
            "Your account has reached the set inference limit for the m model", "SetLimitExceeded"
        ),
    ),
    (
        "LiteLLM's budget of a model",
        429,
        said(
            "LiteLLM Virtual Key: k, key_alias: a, exceeded budget for model=m",
            "429",
            "budget_exceeded",
        ),
    ),
    (
        "LiteLLM's budget of a deployment",
        429,
        said(
            "No deployments available - crossed budget: Exceeded budget for deployment "
            "model_name: m"
        ),
    ),
    ("Chinese", 429, said("该模型今日调用次数已达上限")),
    ("Chinese, a quota", 429, said("该模型今日免费额度已用完")),
    ("a model's quota of a month", 403, said("The monthly quota for model m is exceeded")),
]


@pytest.mark.parametrize(("status", "body"), [pytest.param(*row[1:], id=row[0]) for row in DAY])
def test_a_models_day_is_the_models(status: int, body: Any) -> None:
    """What is used up for one model lets the others go on."""
    attempt = attempt_of(status, body)
    assert (attempt.status, attempt.stop_cause) == (SPENT, StopCause.NOTHING)
