"""What the providers say: one place for what differs between OpenAI, Anthropic, Gemini and the others.

A URL tells the endpoint and the authentication header. A response is classified as an answer, a
retryable failure, a rate limit, or a fatal error. Its headers tell the account's limits, its body the
tokens used. ``jsontext`` takes JSON text apart without changing a byte of it.

Names that cross the border (module, names):

    answers        POLLED, UNKNOWN, Expected, Fault, count_inputs, fault_of, is_failure_list
    claims         is_said
    endpoints      auth_headers, basic_auth, charges_reservation, check_key, endpoint_of,
                   is_host, is_loopback, lacking_members, needs_key, resolve_url,
                   streams_unasked, url_advice
    jsontext       MAX_NESTING, Member, dump, elements, members, one_line, parse, parsed_bytes,
                   read_answer, split_last, without
    failures       of_failure
    limit_headers  IN_EVERY_LIMIT, read_limits
    responses      classify
    texts          plain_line
    usage          read_usage, used_tokens
"""
