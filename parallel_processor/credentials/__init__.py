"""What a run proves itself with: keys and logins, where each may go, and how they stay out of every text.

A key is a text, or a ``RotatingKey``, which is fetched again when it has expired. A ``Keyring`` knows which
keys are for which host.

Names that cross the border (module, names):

    checks        check_auth_header, check_headers, check_lanes, check_limiter, check_query, checked_hosts,
                  checked_keys, checked_replicas, checked_url, is_secret_name, keys_by_host
    key_command   KeyCommand
    key_text      read_key, read_key_file
    keyring       KeyLike, Keyring, hosts_of
    redact        Redactor
    rotating_key  RotatingKey
    urls          host_of, is_url, shown_url, with_query, without_login
"""
