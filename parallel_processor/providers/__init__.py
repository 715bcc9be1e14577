"""What the providers say: one place for what differs between OpenAI, Anthropic, Gemini and the others.

A URL tells the endpoint and the authentication header. A response is classified as an answer, a
retryable failure, a rate limit, or a fatal error. Its headers tell the account's limits, its body the
tokens used. ``jsontext`` takes JSON text apart without changing a byte of it.

Names that cross the border (module, names):

    answers        UNKNOWN, Expected, Fault, count_inputs, fault_of, is_failure_list
    claims         is_said
    dialects       KEY_HEADERS, answered_tier, endpoint_of, key_variables_of, provider_of,
                   tier_spelling, url_model
    endpoints      HostRule, basic_auth, charges_reservation, check_key, check_url, host_rule,
                   is_exposed, is_loopback, lacking_members, needs_key, on_replica, own_host_only,
                   resolve_url, sent_headers, streams_unasked, tell_unused, url_advice
    jsontext       MAX_NESTING, MemberSpan, as_json, dump, element_spans, elements, last_value,
                   member_spans, members, one_line, parse, parsed_bytes, read_answer, skip_space,
                   split_last, with_first, with_member, without, without_nan
    failures       of_failure
    limit_headers  IN_EVERY_LIMIT, read_limits
    promises       POLLED
    responses      classify
    texts          plain_line
    usage          Use, cached_tokens, read_usage, read_use, text_member, used_tokens
"""
