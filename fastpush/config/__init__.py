"""Settings, from the file to frozen values.

    schema.py   what can be set: every key with type, unit, default, range, meaning
    file.py     from config.toml, environment and command line to a Config; secrets from files
    rules.py    what one key alone cannot say: keys that need each other, exposure, what changes live

`serve` and `check` read the same way: `load(find(option), environ=os.environ, overrides=…)`, then
`check_exposure`. Every mistake is a ConfigError that names the place and the way out.
"""

from fastpush.config.file import find, load, load_tokens, read_secret
from fastpush.config.rules import (
    WITHOUT_NAMESPACE,
    addresses,
    changes,
    check,
    check_exposure,
    is_loopback,
    merge_handlers,
    merge_live,
    open_keys,
    parse_listen,
)
from fastpush.config.schema import (
    Admin,
    Api,
    Application,
    Auth,
    Bus,
    Client,
    Compression,
    Config,
    Connections,
    Fanout,
    Jwt,
    JwtKey,
    Limits,
    Log,
    Namespace,
    Push,
    PythonAuth,
    Section,
    Server,
    Tls,
    Webhook,
)

__all__ = [
    "WITHOUT_NAMESPACE",
    "Admin",
    "Api",
    "Application",
    "Auth",
    "Bus",
    "Client",
    "Compression",
    "Config",
    "Connections",
    "Fanout",
    "Jwt",
    "JwtKey",
    "Limits",
    "Log",
    "Namespace",
    "Push",
    "PythonAuth",
    "Section",
    "Server",
    "Tls",
    "Webhook",
    "addresses",
    "changes",
    "check",
    "check_exposure",
    "find",
    "is_loopback",
    "load",
    "load_tokens",
    "merge_handlers",
    "merge_live",
    "open_keys",
    "parse_listen",
    "read_secret",
]
