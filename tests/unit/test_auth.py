"""Who a client is and who may push, in every mode that asks nobody on the network."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jws as joserfc_jws
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.config import Auth, Config, Jwt, JwtKey, Limits, Push, PythonAuth, Webhook
from fastpush.errors import AuthUnavailable, ConfigError, TokenExpired, TokenRejected
from fastpush.http.auth import Identity, Subscription, check_signed, push_auth, token_auth
from fastpush.http.auth.answers import Answers
from fastpush.http.auth.complaints import EVERY_SECONDS, Complaints
from fastpush.http.auth.jwt import JwtAuth, read_key
from fastpush.http.auth.keys import KeysPushAuth
from fastpush.http.auth.signed import PARAMETERS_MAX
from fastpush.http.auth.tables import StaticAuth, TokenIsUser
from fastpush.http.auth.webhook import WebhookAuth

NOW = 1_800_000_000.0
SECRET = "correct-horse-battery-staple-0123456789"
OTHER_SECRET = "another-secret-of-more-than-32-bytes-here"
NAME_BYTES = 512


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see the package's log lines, whatever another test set up."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)


def rejection(call: Callable[[], Any]) -> str:
    """Return the reason with which `call` rejects the token."""
    with pytest.raises(TokenRejected) as caught:
        call()
    return str(caught.value)


# --- what every mode checks


def test_token_is_user_believes_the_token() -> None:
    """S0-11: without a way to check tokens, the user id is the token itself."""
    auth = token_auth(Config())
    assert auth.authenticate("alice", {}) == Identity("alice", None)


def test_static_tokens_of_one_user() -> None:
    """S0-10, S0-13: the table says whom a token names, and one user may own many tokens."""
    auth = StaticAuth({"t1": "alice", "t2": "alice", "t3": "bob"}, NAME_BYTES)
    assert [auth.authenticate(token, {}).user for token in ("t1", "t2", "t3")] == ["alice", "alice", "bob"]
    assert rejection(lambda: auth.authenticate("t4", {})) == "token is unknown"


def test_static_reads_the_tokens_of_the_config(tmp_path: Path) -> None:
    """The static mode takes its table from the configured file."""
    path = tmp_path / "tokens.toml"
    path.write_text('"a-token-0123456789" = "alice"\n')
    auth = token_auth(Config(auth=Auth(mode="static", tokens_file=str(path))))
    assert auth.authenticate("a-token-0123456789", {}) == Identity("alice")


def test_empty_tokens_are_rejected_in_every_mode(module: types.ModuleType) -> None:
    """An empty token names nobody, even where a function or table would know it."""
    module.check = lambda token, headers: "anybody"
    python = PythonAuth(callable=f"{module.__name__}:check")
    for auth in (
        TokenIsUser(NAME_BYTES),
        StaticAuth({"": "nobody"}, NAME_BYTES),
        JwtAuth(Jwt(key=[JwtKey(secret=SECRET)]), NAME_BYTES),
        WebhookAuth(Webhook(url="http://127.0.0.1:1/"), NAME_BYTES),
        token_auth(Config(auth=Auth(mode="python", python=python))),
    ):
        assert rejection(lambda auth=auth: auth.authenticate("", {})) == "token is empty"


def test_empty_users_cannot_be_bound(module: types.ModuleType) -> None:
    """S0-15: a token that names an empty user is rejected, in every mode."""
    assert "empty user" in rejection(lambda: StaticAuth({"t": ""}, NAME_BYTES).authenticate("t", {}))
    assert "empty user" in rejection(lambda: hs256().authenticate(signed({"sub": ""}), {}))
    module.check = lambda token, headers: ("", None)
    with pytest.raises(TokenRejected):
        ask_python(module)


def test_long_users_are_rejected_by_bytes() -> None:
    """[limits] name_bytes bounds a user's name as UTF-8, not as characters."""
    auth = token_auth(Config(limits=Limits(name_bytes=10)))
    assert auth.authenticate("é" * 5, {}) == Identity("é" * 5)
    assert "more than 10 bytes" in rejection(lambda: auth.authenticate("é" * 6, {}))
    assert "more than 10 bytes" in rejection(lambda: auth.authenticate("a" * 11, {}))


def test_users_that_utf8_cannot_spell_are_rejected() -> None:
    """A lone surrogate in a name is a rejected token, not an internal error."""
    assert "Unicode" in rejection(lambda: TokenIsUser(NAME_BYTES).authenticate("a\ud800", {}))


# --- signed tokens


def signed(claims: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    return joserfc_jwt.encode({"alg": "HS256", **header}, claims, OctKey.import_key(secret))


def hs256(clock: float = NOW, **settings: Any) -> JwtAuth:
    return JwtAuth(Jwt(key=[JwtKey(secret=SECRET)], **settings), NAME_BYTES, wall_clock=lambda: clock)


def pem(tmp_path: Path, key: Any, name: str = "key.pem") -> str:
    path = tmp_path / name
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(path)


def raw_token(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """Build a token by hand, as no library would."""

    def b64(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    content = b64(head) + b"." + b64(body)
    return (content + b"." + b64(sign(content))).decode()


def hmac_with(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda content: hmac.new(secret, content, hashlib.sha256).digest()


def test_a_signed_token_names_its_user() -> None:
    """S0-10: a token signed with the configured secret names the user in its `sub`, until `exp`."""
    assert hs256().authenticate(signed({"sub": "alice"}), {}) == Identity("alice", None)
    assert hs256().authenticate(signed({"sub": "alice", "exp": NOW + 60}), {}) == Identity("alice", NOW + 60)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_public_keys_verify(tmp_path: Path, algorithm: str) -> None:
    """RS256 and ES256 tokens are verified with a PEM public key; another key's signature is refused."""

    def generate() -> Any:
        return (
            ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa.generate_private_key(65537, 2048)
        )

    kind = ECKey if algorithm == "ES256" else RSAKey
    mine, other = generate(), generate()
    auth = JwtAuth(Jwt(key=[JwtKey(algorithm=algorithm, public_key_file=pem(tmp_path, mine))]), NAME_BYTES)
    header, claims = {"alg": algorithm}, {"sub": "alice"}
    good = joserfc_jwt.encode(header, claims, kind.import_key(mine), algorithms=[algorithm])
    bad = joserfc_jwt.encode(header, claims, kind.import_key(other), algorithms=[algorithm])
    assert auth.authenticate(good, {}) == Identity("alice")
    assert rejection(lambda: auth.authenticate(bad, {})) == "token has a wrong signature"


def test_unsigned_tokens_are_rejected() -> None:
    """`alg: none` is never accepted, however it is spelled and with or without a signature part."""
    for name in ("none", "None", "NONE", ""):
        for sign in (lambda content: b"", hmac_with(SECRET.encode())):
            token = raw_token({"alg": name}, {"sub": "alice"}, sign)
            assert "not configured" in rejection(lambda token=token: hs256().authenticate(token, {}))


def test_a_public_key_is_never_a_secret(tmp_path: Path) -> None:
    """Algorithm confusion: HS256 with the text of an RSA public key as secret is refused."""
    path = pem(tmp_path, rsa.generate_private_key(65537, 2048))
    auth = JwtAuth(Jwt(key=[JwtKey(kid="k", algorithm="RS256", public_key_file=path)]), NAME_BYTES)
    for header in ({"alg": "HS256", "kid": "k"}, {"alg": "HS256"}, {"alg": "RS256", "kid": "k"}):
        token = raw_token(header, {"sub": "alice"}, hmac_with(Path(path).read_bytes()))
        with pytest.raises(TokenRejected):
            auth.authenticate(token, {})


def refused(auth: JwtAuth, token: str) -> tuple[str, bool]:
    """Whom a token that is not taken names, and whether anybody could have written that."""
    with pytest.raises(TokenRejected) as caught:
        auth.authenticate(token, {})
    return caught.value.user, caught.value.is_claimed


@pytest.mark.parametrize(
    ("claims", "user"),
    [
        ({"sub": "jack", "exp": NOW - 1}, "jack"),
        ({"sub": "jack", "nbf": NOW + 100}, "jack"),
        ({"sub": "jack", "expire_at": NOW - 1}, "jack"),
        ({"sub": 17, "exp": "soon"}, "17"),
        ({"sub": "jack", "channel": "chat:1"}, "jack"),
        ({"sub": "jack", "params": 7}, "jack"),
        ({"sub": "jäck", "aud": "others"}, "jäck"),
        ({"exp": NOW - 1}, ""),
        ({"sub": ["jack"]}, ""),
        ({"sub": "x" * (NAME_BYTES + 1)}, ""),
    ],
)
def test_a_signed_token_that_is_not_taken_names_its_user(claims: dict[str, Any], user: str) -> None:
    """For operators: it is verified, so who it is of is known, whatever is wrong with it."""
    assert refused(hs256(audience="us" if "aud" in claims else ""), signed(claims)) == (user, False)


@pytest.mark.parametrize(
    ("claims", "user"),
    [
        ({"sub": "jack"}, "jack"),
        ({"sub": 17, "exp": 0}, "17"),
        ({"sub": "jack", "exp": NOW - 1}, "jack"),
        ({"sub": True}, ""),
        ({"user": "jack"}, ""),
        ({"sub": "x" * (NAME_BYTES + 1)}, ""),
        ({"sub": "ö" * NAME_BYTES}, "ö" * NAME_BYTES),
    ],
)
def test_a_token_with_a_wrong_signature_claims_its_user(claims: dict[str, Any], user: str) -> None:
    """Anybody may have written that, so it is marked; nothing long is taken over."""
    assert refused(hs256(), signed(claims, OTHER_SECRET)) == (user, True)
    assert refused(hs256(), signed(claims, kid="another")) == (user, True)


@pytest.mark.parametrize("payload", [b"", b"jack", b"[1]", b"\xff", b"null", b'{"sub":', b"[" * 2000])
def test_a_payload_that_is_no_object_names_nobody(payload: bytes) -> None:
    """Signed or not: it is refused as before, and nothing fails."""
    for secret in (SECRET, OTHER_SECRET):
        token = joserfc_jws.serialize_compact({"alg": "HS256"}, payload, OctKey.import_key(secret))
        assert refused(hs256(), token) == ("", True)


def test_a_token_that_is_none_names_nobody() -> None:
    """What cannot be taken apart says nothing of a user."""
    for token in ("jack", "a.b.c", "\N{GRINNING FACE}", "." * 1000):
        assert refused(hs256(), token) == ("", True)


def test_a_key_is_used_with_its_own_algorithm_only() -> None:
    """A token whose `alg` is another one than its key's is refused, though the key could compute it."""
    for name, method in (("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
        token = raw_token({"alg": name}, {"sub": "a"}, lambda c, m=method: hmac.new(SECRET.encode(), c, m).digest())
        assert "not configured" in rejection(lambda token=token: hs256().authenticate(token, {}))


def test_a_key_inside_the_token_is_not_believed(tmp_path: Path) -> None:
    """A `jwk` or `jku` in the header is ignored: the attacker's own key verifies nothing."""
    attacker = OctKey.import_key(OTHER_SECRET)
    token = joserfc_jwt.encode(
        {"alg": "HS256", "jwk": attacker.as_dict(), "jku": "http://127.0.0.1:1/"}, {"sub": "a"}, attacker
    )
    assert rejection(lambda: hs256().authenticate(token, {})) == "token has a wrong signature"


def test_tampered_tokens_are_rejected() -> None:
    """A changed claim, a cut or a foreign signature is refused."""
    head, body, signature = signed({"sub": "alice"}).split(".")
    other_body = signed({"sub": "admin"}).split(".")[1]
    for token in (f"{head}.{other_body}.{signature}", f"{head}.{body}.", f"{head}.{body}.{signature[:-4]}"):
        assert rejection(lambda token=token: hs256().authenticate(token, {})) == "token has a wrong signature"
    foreign = signed({"sub": "alice"}, OTHER_SECRET)
    assert rejection(lambda: hs256().authenticate(foreign, {})) == "token has a wrong signature"


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "..",
        "a.b.c",
        "a.b.c.d",
        "é.é.é",
        "\ud800",
        raw_token(b"[" * 4000, {}, lambda c: b""),
        raw_token(b'"alg b64"', {}, lambda c: b""),
        raw_token(b"7", {}, lambda c: b""),
        raw_token({"alg": ["HS256"]}, {}, lambda c: b""),
        raw_token({"alg": "HS256", "kid": {"a": 1}}, {}, lambda c: b""),
        raw_token({"kid": "k"}, {}, lambda c: b""),
        raw_token({"alg": "HS256", "b64": False, "crit": ["b64"]}, {}, hmac_with(SECRET.encode())),
        raw_token({"alg": "HS256", "crit": ["x"], "x": 1}, {"sub": "a"}, hmac_with(SECRET.encode())),
        raw_token({"alg": "HS256"}, b"[" * 4000, hmac_with(SECRET.encode())),
        raw_token({"alg": "HS256"}, b'{"sub":"\xff"}', hmac_with(SECRET.encode())),
        raw_token({"alg": "HS256"}, b'{"sub":"\\ud800"}', hmac_with(SECRET.encode())),
        raw_token({"alg": "HS256"}, ["sub"], hmac_with(SECRET.encode())),
    ],
)
def test_garbage_is_rejected(token: str) -> None:
    """Whatever is no proper token is a rejected token, never an internal error, and is not quoted."""
    reason = rejection(lambda: hs256().authenticate(token, {}))
    assert len(token) < 5 or token not in reason


def test_unencoded_payloads_are_rejected() -> None:
    """RFC 7797 section 7: `b64: false`, which signs the payload as it stands, is not for JWTs."""
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","b64":false,"crit":["b64"]}').rstrip(b"=")
    content = header + b'.{"sub":"alice"}'
    signature = base64.urlsafe_b64encode(hmac_with(SECRET.encode())(content)).rstrip(b"=")
    token = (content + b"." + signature).decode()
    assert rejection(lambda: hs256().authenticate(token, {})) == "token has a wrong signature"


def test_huge_tokens_are_rejected_unread() -> None:
    """A token beyond 8 KiB is refused, even well signed."""
    assert hs256().authenticate(signed({"sub": "a", "pad": "x" * 5000}), {}) == Identity("a")
    assert "longer than" in rejection(lambda: hs256().authenticate(signed({"sub": "a", "pad": "x" * 9000}), {}))


def test_unknown_header_members_are_ignored() -> None:
    """RFC 7515 section 4: a header member that nobody here understands changes nothing."""
    token = raw_token({"alg": "HS256", "ven": {"x": 1}}, {"sub": "a"}, hmac_with(SECRET.encode()))
    assert hs256().authenticate(token, {}) == Identity("a")


def test_time_claims() -> None:
    """`exp` ends a token in the very second, `nbf` begins it; leeway moves both and expires_at."""
    assert hs256().authenticate(signed({"sub": "a", "nbf": NOW}), {}) == Identity("a")
    expired = signed({"sub": "a", "exp": NOW})
    assert rejection(lambda: hs256().authenticate(expired, {})) == "token expired at 2027-01-15T08:00:00Z"
    early = signed({"sub": "a", "nbf": NOW + 5})
    assert rejection(lambda: hs256().authenticate(early, {})) == "token is not valid before 2027-01-15T08:00:05Z"
    lenient = hs256(leeway_seconds=10)
    assert lenient.authenticate(expired, {}) == Identity("a", NOW + 10)
    assert lenient.authenticate(early, {}) == Identity("a")
    over = signed({"sub": "a", "exp": NOW - 10})
    assert rejection(lambda: lenient.authenticate(over, {})) == "token expired at 2027-01-15T07:59:50Z"


@pytest.mark.parametrize("value", [True, "1900000000", None, [], {}])
@pytest.mark.parametrize("claim", ["exp", "nbf"])
def test_times_that_are_none(claim: str, value: Any) -> None:
    """A time claim of another type than number is refused, not ignored."""
    token = signed({"sub": "a", claim: value})
    assert "not a time" in rejection(lambda: hs256().authenticate(token, {}))


def test_extreme_times() -> None:
    """Numbers that no calendar knows, and numbers that JSON does not, do no harm."""
    for text in (b"1e400", b"-1e400", b"NaN", b"Infinity", b"9" * 400, b"-1e300"):
        token = raw_token({"alg": "HS256"}, b'{"sub":"a","exp":' + text + b"}", hmac_with(SECRET.encode()))
        with pytest.raises(TokenRejected):
            hs256().authenticate(token, {})
    token = raw_token({"alg": "HS256"}, b'{"sub":"a","nbf":1e300}', hmac_with(SECRET.encode()))
    assert "before 1e+300" in rejection(lambda: hs256().authenticate(token, {}))


def test_expired_tokens_are_told_apart() -> None:
    """A client whose token is over can get a fresh one; one whose token was never good cannot."""
    with pytest.raises(TokenExpired):
        hs256().authenticate(signed({"sub": "a", "exp": NOW}), {})
    for claims in ({"sub": "a", "nbf": NOW + 5}, {"sub": ""}, {"exp": NOW + 5}):
        with pytest.raises(TokenRejected) as caught:
            hs256().authenticate(signed(claims), {})
        assert not isinstance(caught.value, TokenExpired)


def test_what_a_token_allows_may_end_at_another_time() -> None:
    """`expire_at` is when the connection ends, 0 for never; `exp` is until when the token may be shown."""
    auth = hs256()
    for claims, expires_at in (
        ({"exp": NOW + 1, "expire_at": NOW + 99}, NOW + 99),
        ({"exp": NOW + 1, "expire_at": 0}, None),
        ({"expire_at": NOW + 99}, NOW + 99),
    ):
        assert auth.authenticate(signed({"sub": "a", **claims}), {}) == Identity("a", expires_at)
        subscription = Subscription("a", "chat:42", expires_at=expires_at)
        assert auth.subscription(signed({"sub": "a", "channel": "chat:42", **claims})) == subscription
    assert "expired" in rejection(lambda: auth.authenticate(signed({"sub": "a", "exp": NOW, "expire_at": 0}), {}))
    for over in (NOW, 1, -1):
        token = signed({"sub": "a", "channel": "chat:42", "expire_at": over})
        with pytest.raises(TokenExpired, match="what the token allows ended at"):
            auth.subscription(token)
    assert "not a time" in rejection(lambda: auth.authenticate(signed({"sub": "a", "expire_at": "never"}), {}))


def test_audience_and_issuer() -> None:
    """The aud (text or list) and iss must be the configured ones, where configured."""
    auth = hs256(audience="push", issuer="https://me")
    for aud in ("push", ["other", "push"]):
        assert auth.authenticate(signed({"sub": "a", "aud": aud, "iss": "https://me"}), {}) == Identity("a")
    for aud in ("other", ["other"], [], "", None, "pushy", {"push": 1}):
        token = signed({"sub": "a", "aud": aud, "iss": "https://me"})
        assert "(aud)" in rejection(lambda token=token: auth.authenticate(token, {}))
    for iss in ("https://you", "", None, ["https://me"]):
        token = signed({"sub": "a", "aud": "push", "iss": iss})
        assert "(iss)" in rejection(lambda token=token: auth.authenticate(token, {}))
    assert "(aud)" in rejection(lambda: auth.authenticate(signed({"sub": "a", "iss": "https://me"}), {}))


def test_user_claim() -> None:
    """The user is the configured claim: text, or a whole number as its decimal text."""
    auth = hs256(user_claim="uid")
    assert auth.authenticate(signed({"uid": "bob", "sub": "a"}), {}) == Identity("bob")
    assert auth.authenticate(signed({"uid": 42}), {}) == Identity("42")
    for value in (True, None, 1.5, ["a"], {"a": 1}):
        token = signed({"uid": value})
        assert "claim uid" in rejection(lambda token=token: auth.authenticate(token, {}))
    assert "claim uid" in rejection(lambda: auth.authenticate(signed({"sub": "a"}), {}))


def test_signed_url_parameters() -> None:
    """S2-25: the claim params says which URL parameters a token vouches for; without the claim it vouches for none."""
    params = {"specialKey": "room:7", "support_gzip": "1", "größe": "ü & ü"}
    assert hs256().authenticate(signed({"sub": "a", "params": params}), {}) == Identity("a", None, params)
    assert hs256().authenticate(signed({"sub": "a", "params": {}}), {}).signed == {}
    assert hs256().authenticate(signed({"sub": "a"}), {}).signed is None
    assert TokenIsUser(NAME_BYTES).authenticate("a", {}).signed is None
    assert StaticAuth({"t": "a"}, NAME_BYTES).authenticate("t", {}).signed is None


def test_signed_parameters_cannot_be_changed() -> None:
    """An identity may be remembered for others, so what it vouches for stays what the token said."""
    found = hs256().authenticate(signed({"sub": "a", "params": {"room": "7"}}), {})
    with pytest.raises(TypeError):
        found.signed["room"] = "8"


@pytest.mark.parametrize("value", [None, [], "room=7", 7, True, {"room": 7}, {"room": None}, {"room": ["7"]}])
def test_signed_parameters_that_are_none(value: Any) -> None:
    """A claim params of another form than text by text is refused, not ignored, and shows no value."""
    token = signed({"sub": "a", "params": value})
    reason = rejection(lambda: hs256().authenticate(token, {}))
    assert reason == "token's claim params is no object of at most 32 texts"


def test_signed_parameters_are_bounded() -> None:
    """A token vouches for at most 32 parameters."""
    params = {str(number): "" for number in range(PARAMETERS_MAX)}
    assert hs256().authenticate(signed({"sub": "a", "params": params}), {}).signed == params
    token = signed({"sub": "a", "params": params | {"more": ""}})
    assert "at most 32" in rejection(lambda: hs256().authenticate(token, {}))


def test_params_of_a_token_that_is_not_valid() -> None:
    """A foreign signature or an end in the past is the reason, whatever the params."""
    foreign = signed({"sub": "a", "params": 7}, OTHER_SECRET)
    assert rejection(lambda: hs256().authenticate(foreign, {})) == "token has a wrong signature"
    expired = signed({"sub": "a", "params": {"room": "7"}, "exp": NOW})
    assert "expired" in rejection(lambda: hs256().authenticate(expired, {}))


@pytest.mark.parametrize("info", [{"name": "Jörg", "roles": [1, None]}, "text", 7, False, [], ""])
def test_info_of_a_token(info: Any) -> None:
    """The claim info is any JSON; without it, as with null, there is none."""
    assert hs256().authenticate(signed({"sub": "a", "info": info}), {}) == Identity("a", info=info)
    assert hs256().authenticate(signed({"sub": "a", "info": None}), {}).info is None
    assert hs256().authenticate(signed({"sub": "a"}), {}).info is None


def test_channels_of_a_token() -> None:
    """The server subscribes to the names in the claim channels and to the keys of the claim subs, to each once."""
    claims = {"sub": "a", "channels": ["news", "chat:1"], "subs": {"chat:1": {}, "chat:2": {"info": 1, "data": 2}}}
    assert hs256().authenticate(signed(claims), {}).channels == ("news", "chat:1", "chat:2")
    assert hs256().authenticate(signed({"sub": "a", "channels": [], "subs": {}}), {}).channels == ()


@pytest.mark.parametrize("value", ["news", 7, None, ["news", 7], {"news": {}}])
def test_channels_that_are_none(value: Any) -> None:
    """A claim channels that is no list of texts is refused, not ignored; so is a claim subs that is no object."""
    token = signed({"sub": "a", "channels": value})
    assert rejection(lambda: hs256().authenticate(token, {})) == "token's claim channels is no array of texts"
    token = signed({"sub": "a", "subs": ["news"]})
    assert rejection(lambda: hs256().authenticate(token, {})) == "token's claim subs is no object"


# --- subscription tokens


def test_a_subscription_token_names_user_and_channel() -> None:
    """Signed as tokens that connect are, it lets one user into one channel, perhaps on one connection, until `exp`."""
    auth = hs256()
    assert auth.subscription(signed({"sub": "a", "channel": "chat:42"})) == Subscription("a", "chat:42")
    claims = {"sub": "a", "channel": "$x", "client": "c7", "exp": NOW + 9, "info": {"n": 1}}
    assert auth.subscription(signed(claims)) == Subscription("a", "$x", "c7", NOW + 9, {"n": 1})


def test_subscription_tokens_of_anonymous_connections() -> None:
    """Without a user, or with an empty one, it is for connections without a token of their own."""
    for claims in ({"channel": "news"}, {"sub": "", "channel": "news"}):
        assert hs256().subscription(signed(claims)) == Subscription("", "news")


@pytest.mark.parametrize("channel", ["chat:42", "", None])
def test_a_subscription_token_connects_nobody(channel: str | None) -> None:
    """What a back-end has signed for one channel does not open what else its user may, and renews no connection."""
    token = signed({"sub": "a", "channel": channel})
    reason = rejection(lambda: hs256().authenticate(token, {}))
    assert reason == "token has a claim channel, so it is a subscription token"


def test_subscription_tokens_are_judged_as_others() -> None:
    """Key, time, audience, issuer and user claim: what is configured for tokens that connect."""
    auth = hs256(audience="push", issuer="https://me", user_claim="uid", leeway_seconds=10)
    claims = {"uid": 7, "channel": "x", "aud": ["push"], "iss": "https://me", "exp": NOW}
    assert auth.subscription(signed(claims)) == Subscription("7", "x", expires_at=NOW + 10)
    for change, reason in (
        ({"aud": "others"}, "another audience"),
        ({"iss": "them"}, "another issuer"),
        ({"exp": NOW - 10}, "token expired"),
        ({"nbf": NOW + 11}, "not valid before"),
        ({"uid": None}, "claim uid that is no text"),
        ({"uid": ["a"]}, "claim uid that is no text"),
    ):
        assert reason in rejection(lambda change=change: auth.subscription(signed(claims | change)))
    assert "wrong signature" in rejection(lambda: auth.subscription(signed(claims, OTHER_SECRET)))
    assert "empty" in rejection(lambda: auth.subscription(""))
    assert "longer than" in rejection(lambda: auth.subscription("x" * 8193))


@pytest.mark.parametrize("channel", [{}, {"channel": ""}, {"channel": None}, {"channel": 42}, {"channel": ["x"]}])
def test_tokens_that_name_no_channel(channel: dict[str, Any]) -> None:
    """A token that connects opens no channel."""
    token = signed({"sub": "a", **channel})
    assert "so it is no subscription token" in rejection(lambda: hs256().subscription(token))


def test_subscription_tokens_for_a_strange_connection() -> None:
    """The only connection that may use it is named by text."""
    token = signed({"sub": "a", "channel": "x", "client": 7})
    assert rejection(lambda: hs256().subscription(token)) == "token has a claim client that is no text"


def test_subscription_tokens_need_signatures(module: types.ModuleType) -> None:
    """Every mode but jwt refuses subscription tokens, and says which mode takes them."""
    module.check = lambda token, headers: "anybody"
    python = PythonAuth(callable=f"{module.__name__}:check")
    for auth in (
        TokenIsUser(NAME_BYTES),
        StaticAuth({"t": "a"}, NAME_BYTES),
        WebhookAuth(Webhook(url="http://127.0.0.1:1/"), NAME_BYTES),
        token_auth(Config(auth=Auth(mode="python", python=python))),
    ):
        reason = rejection(lambda auth=auth: auth.subscription("t"))
        assert reason == 'subscription tokens need [auth] mode "jwt"'


# --- URL parameters


def test_url_parameters_are_compared_with_the_signed_ones() -> None:
    """S2-25: each signed parameter must stand in the URL with exactly its value; others may be there as well."""
    params = {"specialKey": "room:7", "empty": ""}
    check_signed(params, params)
    check_signed(params, {"token": "t", **params, "more": "1"})
    check_signed({}, {"specialKey": "room:7"})
    check_signed(None, {"specialKey": "room:7"})
    for query in (
        {},
        {"empty": ""},
        {"empty": "", "specialKey": ""},
        {"empty": "", "specialKey": "room:8"},
        {"empty": "", "specialKey": "ROOM:7"},
        {"empty": "", "specialKey": "room:7 "},
        {"empty": "", "specialkey": "room:7"},
    ):
        reason = rejection(lambda query=query: check_signed(params, query))
        assert reason == "URL parameter specialKey is not what the token vouches for"
    assert "parameter empty" in rejection(lambda: check_signed(params, {"specialKey": "room:7"}))


def test_key_ids() -> None:
    """A key id chooses the key; without one, the keys without id are tried, or the only key there is."""
    both = JwtAuth(Jwt(key=[JwtKey(kid="one", secret=SECRET), JwtKey(kid="two", secret=OTHER_SECRET)]), NAME_BYTES)
    assert both.authenticate(signed({"sub": "a"}, kid="one"), {}) == Identity("a")
    assert both.authenticate(signed({"sub": "a"}, OTHER_SECRET, kid="two"), {}) == Identity("a")
    assert "wrong signature" in rejection(lambda: both.authenticate(signed({"sub": "a"}, kid="two"), {}))
    assert "not configured" in rejection(lambda: both.authenticate(signed({"sub": "a"}, kid="three"), {}))
    assert "not configured" in rejection(lambda: both.authenticate(signed({"sub": "a"}), {}))

    nameless = JwtAuth(Jwt(key=[JwtKey(secret=SECRET), JwtKey(secret=OTHER_SECRET)]), NAME_BYTES)
    assert nameless.authenticate(signed({"sub": "a"}), {}) == Identity("a")
    assert nameless.authenticate(signed({"sub": "a"}, OTHER_SECRET), {}) == Identity("a")
    assert "not configured" in rejection(lambda: nameless.authenticate(signed({"sub": "a"}, kid="one"), {}))

    only = JwtAuth(Jwt(key=[JwtKey(kid="one", secret=SECRET)]), NAME_BYTES)
    assert only.authenticate(signed({"sub": "a"}), {}) == Identity("a")


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    """A weak, missing, private or unfit key is a ConfigError that names the key and never shows it."""
    private = tmp_path / "private.pem"
    key = rsa.generate_private_key(65537, 2048)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    weak = pem(tmp_path, rsa.generate_private_key(65537, 1024), "weak.pem")
    p384 = pem(tmp_path, ec.generate_private_key(ec.SECP384R1()), "p384.pem")
    rsa_pem = pem(tmp_path, key, "rsa.pem")
    for bad, text in (
        (JwtKey(kid="k", secret="short"), "at least 32 bytes"),
        (JwtKey(kid="k", secret=Path(rsa_pem).read_text()), "not a usable HS256 key"),
        (JwtKey(kid="k", algorithm="RS256"), "needs public_key_file"),
        (JwtKey(kid="k", algorithm="RS256", public_key_file=str(tmp_path / "none.pem")), "No such file"),
        (JwtKey(kid="k", algorithm="RS256", public_key_file=str(private)), "is a private key"),
        (JwtKey(kid="k", algorithm="RS256", public_key_file=weak), "not a usable RS256 key"),
        (JwtKey(kid="k", algorithm="RS256", public_key_file=p384), "not a usable RS256 key"),
        (JwtKey(kid="k", algorithm="ES256", public_key_file=p384), "not a usable ES256 key"),
        (JwtKey(kid="k", algorithm="ES256", public_key_file=rsa_pem), "not a usable ES256 key"),
    ):
        with pytest.raises(ConfigError, match=text) as caught:
            read_key(bad)
        assert "kid 'k'" in str(caught.value)
        assert "BEGIN" not in str(caught.value)
    with pytest.raises(ConfigError, match="needs an"):
        JwtAuth(Jwt(), NAME_BYTES)


# --- the user's own function


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return an importable, empty module of the user's."""
    made = types.ModuleType("users_own_auth")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def python_config(module: types.ModuleType, name: str = "check", **settings: Any) -> Config:
    python = PythonAuth(callable=f"{module.__name__}:{name}", **settings)
    return Config(
        auth=Auth(mode="python", python=python), push=Push(auth="python", callable=f"{module.__name__}:{name}")
    )


def ask_python(module: types.ModuleType, token: str = "the-token", **headers: str) -> Identity:
    async def run() -> Identity:
        auth = token_auth(python_config(module))
        try:
            return await auth.authenticate(token, headers)
        finally:
            await auth.close()

    return asyncio.run(run())


def ask_push(module: types.ModuleType, **headers: str) -> bool:
    async def run() -> bool:
        auth = push_auth(python_config(module))
        try:
            return await auth.authorize(headers)
        finally:
            await auth.close()

    return asyncio.run(run())


def test_functions_sync_and_async(module: types.ModuleType) -> None:
    """S0-10: the user's function gets token and headers and names the user; sync runs in a thread."""
    main = threading.get_ident()

    def sync(token: str, headers: dict[str, str]) -> str:
        assert threading.get_ident() != main
        return f"{token} via {headers['cookie']}"

    async def coroutine(token: str, headers: dict[str, str]) -> str:
        assert threading.get_ident() == main
        return f"{token} via {headers['cookie']}"

    def returning_a_coroutine(token: str, headers: dict[str, str]) -> Any:
        return coroutine(token, headers)

    class Callable:
        async def __call__(self, token: str, headers: dict[str, str]) -> str:
            return await coroutine(token, headers)

    for check in (sync, coroutine, Callable(), returning_a_coroutine):
        module.check = check
        assert ask_python(module, cookie="c=1") == Identity("the-token via c=1")


@pytest.mark.parametrize("nobody", [None, "", False, 0, (None, None), ("alice", False), ("", True)])
def test_functions_that_name_nobody(module: types.ModuleType, nobody: Any) -> None:
    """S0-10, S0-15: whatever is false, or (user, False), rejects the token."""
    module.check = lambda token, headers: nobody
    with pytest.raises(TokenRejected, match="the auth function rejected the token"):
        ask_python(module)


def test_functions_that_say_until_when(module: types.ModuleType) -> None:
    """(user, expires_at) ends the connection then; (user, True) and (user, None) never; the past is refused."""
    for result, identity in (
        (("alice", 4e9), Identity("alice", 4e9)),
        (("alice", None), Identity("alice")),
        (("alice", True), Identity("alice")),
    ):
        module.check = lambda token, headers, result=result: result
        assert ask_python(module) == identity
    module.check = lambda token, headers: ("alice", 1.0)
    with pytest.raises(TokenRejected, match="token expired at 1970-01-01T00:00:01Z"):
        ask_python(module)


def test_functions_that_return_an_identity(module: types.ModuleType) -> None:
    """An Identity says more: info for others in a channel, and channels to be subscribed to."""
    module.check = lambda token, headers: Identity("alice", 4e9, info={"n": 1}, channels=["a", "b", "a"])
    assert ask_python(module) == Identity("alice", 4e9, info={"n": 1}, channels=("a", "b"))
    module.check = lambda token, headers: Identity("")
    with pytest.raises(TokenRejected, match="the auth function rejected the token"):
        ask_python(module)
    module.check = lambda token, headers: Identity("alice", 1.0)
    with pytest.raises(TokenExpired, match="token expired at 1970-01-01T00:00:01Z"):
        ask_python(module)
    for info in ({1, 2}, "\ud800"):
        module.check = lambda token, headers, info=info: Identity("alice", info=info)
        with pytest.raises(TokenRejected, match="cannot be written as JSON"):
            ask_python(module)


@pytest.mark.parametrize(
    "wrong",
    [
        42,
        b"alice",
        ["alice"],
        ("alice", "tomorrow"),
        ("alice", float("nan")),
        (1, 2, 3),
        Identity(42),
        Identity("alice", "tomorrow"),
        Identity("alice", channels="news"),
        Identity("alice", channels=(7,)),
    ],
)
def test_functions_that_return_something_else(
    module: types.ModuleType, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A result of a wrong type is the service's fault: unavailable, and the log names the type only."""
    module.check = lambda token, headers: wrong
    with pytest.raises(AuthUnavailable, match="the auth function failed"):
        ask_python(module)
    assert "alice" not in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", [ValueError, StopIteration, KeyError, SystemExit, RecursionError])
def test_failing_functions(
    module: types.ModuleType, kind: type[BaseException], caplog: pytest.LogCaptureFixture, *, asynchronous: bool
) -> None:
    """An exception in the function is "unavailable"; the log has the stack, never the token it quotes."""

    def look_up(token: str) -> str:
        raise LookupError(f"looked up {token}")

    def failing_function(token: str, headers: dict[str, str]) -> str:
        try:
            return look_up(token)
        except LookupError as error:
            raise kind(f"bad token {token}, {headers}") from error

    async def coroutine(token: str, headers: dict[str, str]) -> str:
        return failing_function(token, headers)

    module.check = coroutine if asynchronous else failing_function
    with pytest.raises(AuthUnavailable) as caught:
        ask_python(module, "se" + "cret-tok", authorization="Bearer an" + "other-sec")
    assert str(caught.value) == "the auth function failed"
    assert "in failing_function" in caplog.text
    assert "LookupError" in caplog.text
    for hidden in ("secret-tok", "another-sec"):
        assert hidden not in caplog.text
        assert hidden not in str(caught.value)


def test_functions_may_raise_our_errors(module: types.ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """TokenRejected and AuthUnavailable raised by the function mean what they say, in our words."""
    for error in (TokenRejected, AuthUnavailable):

        def check(token: str, headers: dict[str, str], error: type[Exception] = error) -> str:
            raise error(f"about {token}")

        module.check = check
        with pytest.raises(error) as caught:
            ask_python(module)
        assert "the-token" not in str(caught.value)
    assert not caplog.records


def test_the_thread_pool_is_bounded(module: types.ModuleType) -> None:
    """At most threads + queue calls are under way, cancelled ones included; one more is unavailable at once."""
    release = threading.Event()

    def check(token: str, headers: dict[str, str]) -> str:
        release.wait()
        return token

    module.check = check

    async def run() -> None:
        auth = token_auth(python_config(module, threads=2, queue=3))
        calls = [asyncio.ensure_future(auth.authenticate(f"u{i}", {})) for i in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(AuthUnavailable, match="too many calls"):
            await auth.authenticate("one-more", {})
        calls[4].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[4]
        with pytest.raises(AuthUnavailable, match="too many calls"):
            await auth.authenticate("one-more", {})
        await auth.close()
        release.set()
        assert [identity.user for identity in await asyncio.gather(*calls[:4])] == ["u0", "u1", "u2", "u3"]
        with pytest.raises(AuthUnavailable, match="reloaded"):
            await auth.authenticate("late", {})

    try:
        asyncio.run(run())
    finally:
        release.set()


def test_async_functions_are_bounded_too(module: types.ModuleType) -> None:
    """An async function has no more calls under way either; closing leaves them to finish."""

    async def run() -> None:
        release = asyncio.Event()

        async def check(token: str, headers: dict[str, str]) -> str:
            await release.wait()
            return token

        module.check = check
        auth = token_auth(python_config(module, threads=1, queue=1))
        calls = [asyncio.ensure_future(auth.authenticate(f"u{i}", {})) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(AuthUnavailable, match="too many calls"):
            await auth.authenticate("one-more", {})
        await auth.close()
        release.set()
        assert [identity.user for identity in await asyncio.gather(*calls)] == ["u0", "u1"]

    asyncio.run(run())


def test_functions_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ConfigError says which part of "package.module:function" is wrong."""
    (tmp_path / "broken_auth.py").write_text("import not_there_either\n")
    (tmp_path / "exits_auth.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "fine_auth.py").write_text("NUMBER = 1\nclass Backend:\n    check = staticmethod(lambda t, h: t)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (
        ("", 'must be "package.module:function"'),
        ("fine_auth", 'must be "package.module:function"'),
        ("fine_auth:", 'must be "package.module:function"'),
        ("no_such_auth:check", "cannot import no_such_auth: ModuleNotFoundError: .*PYTHONPATH"),
        ("broken_auth:check", "cannot import broken_auth: .*'not_there_either'$"),
        ("exits_auth:check", "cannot import exits_auth: SystemExit"),
        ("fine_auth:check", "fine_auth has no check"),
        ("fine_auth:NUMBER", "is int, not a function"),
    ):
        with pytest.raises(ConfigError, match=text):
            token_auth(Config(auth=Auth(mode="python", python=PythonAuth(callable=name))))
        with pytest.raises(ConfigError, match=r"^\[push\] callable"):
            push_auth(Config(push=Push(auth="python", callable=name)))
    token_auth(Config(auth=Auth(mode="python", python=PythonAuth(callable="fine_auth:Backend.check"))))


# --- who may push

KEYS = ["first-key-0123456789", "second-key-0123456789"]


def test_without_push_auth_everybody_may_push() -> None:
    """S0-19: the check of pushes is optional."""
    assert push_auth(Config()).authorize({}) is True


def test_push_keys() -> None:
    """S0-19: any of the keys, as X-API-Key or as bearer token, lets a push through; nothing else does."""
    auth = push_auth(Config(push=Push(auth="keys", keys=KEYS)))
    for key in KEYS:
        assert auth.authorize({"x-api-key": key}) is True
        assert auth.authorize({"authorization": f"Bearer {key}"}) is True
        assert auth.authorize({"authorization": f"bearer  {key} "}) is True
        assert auth.authorize({"x-api-key": key, "authorization": "Basic abc"}) is True
        for wrong in (key[:-1], key + "x", key.upper(), "", f"Bearer {key}", "\ud800", "é"):
            assert auth.authorize({"x-api-key": wrong}) is False
        for wrong in (key, f"Basic {key}", "Bearer", "Bearer ", f"Bearer{key}", ""):
            assert auth.authorize({"authorization": wrong}) is False
        assert auth.authorize({"x-api-key": "wrong", "authorization": f"Bearer {key}"}) is False
    assert auth.authorize({}) is False


def test_push_keys_of_any_script() -> None:
    """A key outside ASCII is compared as UTF-8."""
    auth = KeysPushAuth(["schlüssel-0123456789"])
    assert auth.authorize({"x-api-key": "schlüssel-0123456789"}) is True


def test_every_key_is_compared_by_digest_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call compares equally long digests with every key, whichever matches: time tells nothing."""
    seen: list[tuple[int, int]] = []

    def compare(known: bytes, digest: bytes) -> bool:
        seen.append((len(known), len(digest)))
        return known == digest

    monkeypatch.setattr("fastpush.http.auth.keys.compare_digest", compare)
    auth = KeysPushAuth(KEYS)
    for key in (*KEYS, "x", "y" * 10000):
        seen.clear()
        auth.authorize({"x-api-key": key})
        assert seen == [(32, 32), (32, 32)]


def test_keys_are_not_kept_in_clear() -> None:
    """A KeysPushAuth holds digests only, so that no repr or dump shows a key."""
    assert not any(key in repr(vars(KeysPushAuth(KEYS))) for key in KEYS)


def test_push_auth_needs_a_key() -> None:
    """An empty list of keys, or an empty key, would let nobody or everybody push: a ConfigError."""
    for keys in ([], [""]):
        with pytest.raises(ConfigError, match="at least one key"):
            push_auth(Config(push=Push(auth="keys", keys=keys)))


def test_push_functions(module: types.ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """S0-19: the user's function decides with True or False; a truthy accident or a failure opens nothing."""

    async def coroutine(headers: dict[str, str]) -> bool:
        return headers.get("x-token") == "yes"

    for check in (lambda headers: headers.get("x-token") == "yes", coroutine):
        module.check = check
        assert ask_push(module, **{"x-token": "yes"}) is True
        assert ask_push(module, **{"x-token": "no"}) is False
    for accident in (1, "yes", None, object()):
        module.check = lambda headers, accident=accident: accident
        with pytest.raises(AuthUnavailable, match="the push auth function failed"):
            ask_push(module)
    module.check = lambda headers: headers["x-to" + "ken-not-there"]
    with pytest.raises(AuthUnavailable, match="the push auth function failed"):
        ask_push(module)
    assert "token-not-there" not in caplog.text


# --- parts


class Clock:
    def __init__(self, now: float = 0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_answers_are_bounded_in_number() -> None:
    """At most `entries` answers are remembered; the oldest goes first."""
    answers = Answers(10, 3, Clock(), Clock())
    for i in range(100):
        answers.put(bytes([i]), Identity(str(i)))
        assert len(answers) <= 3
    assert [answers.get(bytes([i])) for i in (96, 97, 98, 99)] == [None, *(Identity(str(i)) for i in (97, 98, 99))]


def test_answers_are_bounded_in_time() -> None:
    """An answer is forgotten after its time, and an identity at its own end if that comes first."""
    clock, wall = Clock(), Clock(NOW)
    answers = Answers(10, 100, clock, wall)
    answers.put(b"a", Identity("a"))
    answers.put(b"short", Identity("a", NOW + 5))
    answers.put(b"no", "because")
    wall.now = NOW + 5
    assert answers.get(b"short") is None
    clock.now = 9.9
    assert answers.get(b"a") == Identity("a")
    assert rejection(lambda: answers.get(b"no")) == "because"
    clock.now = 10
    assert answers.get(b"a") is None
    answers.put(b"new", Identity("b"))
    assert len(answers) == 1  # what is over leaves as others come, asked for or not


def test_answers_may_be_off() -> None:
    """0 seconds or 0 entries remember nothing."""
    for seconds, entries in ((0, 10), (10, 0)):
        answers = Answers(seconds, entries, Clock(), Clock())
        answers.put(b"a", Identity("a"))
        assert len(answers) == 0


def test_complaints_are_few(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that repeats is logged once in a while, with the number of lines left out."""
    clock = Clock()
    complaints = Complaints(logging.getLogger("test"), clock)
    for _ in range(1000):
        complaints.add("it failed", "reason")
    clock.now += EVERY_SECONDS
    complaints.add("it failed", "reason")
    assert len(caplog.records) == 2
    assert caplog.records[1].fields == {"reason": "reason", "left_out": 999}
