"""URL parameters that a token vouches for, so that nobody on the way to here can change them.

    {"sub": "jack", "exp": 1767225600, "params": {"specialKey": "room:7"}}
    wss://host/broadcast?specialKey=room:7&token=…

The token does not replace the parameters, it confirms them: each stands in the URL as well. Parameters that
it does not name may be added by anybody, so whoever relies on the token asks `Identity.signed`, not the URL.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from fastpush.errors import TokenRejected

PARAMETERS_MAX = 32

Parameters = Annotated[dict[str, str], msgspec.Meta(max_length=PARAMETERS_MAX)]


def read_signed(claims: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the parameters in the claim `params` of a verified token; None when it has no such claim.

    Raises: TokenRejected: the claim is no object of texts, or has more than PARAMETERS_MAX.
    """
    if "params" not in claims:
        return None
    try:
        signed: dict[str, str] = msgspec.convert(claims["params"], Parameters)
    except msgspec.ValidationError:
        raise TokenRejected(f"token's claim params is no object of at most {PARAMETERS_MAX} texts") from None
    return signed


def check_signed(signed: Mapping[str, str] | None, query: Mapping[str, str]) -> None:
    """Check that every signed parameter stands in the URL with exactly its value; None: nothing is signed.

    Args:   query: the URL's parameters, decoded.
    Raises: TokenRejected: one is missing or different. The reason names the parameter and shows no value.
    """
    for name, value in (signed or {}).items():
        if query.get(name) != value:
            raise TokenRejected(f"URL parameter {name} is not what the token vouches for")
