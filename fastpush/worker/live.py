"""A new configuration in a running worker: everything that can fail is made first, then all of it is taken over.

`prepare` changes nothing. `take_over` runs between two turns of the loop, so no request and no message
meets half of the old settings; connections are told in slices afterwards.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from fastpush.applications.push import Push
from fastpush.channels.endpoint import ClientProtocol
from fastpush.config import Config
from fastpush.config.tls import certificate_expiry, server_context
from fastpush.http.auth import PushAuth, TokenAuth, push_auth, token_auth
from fastpush.metrics import Counters
from fastpush.worker.environment import Environment
from fastpush.worker.services import Services

SLICE_CONNECTIONS = 500


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a configuration needs, made and not used yet.

    tls: None without [tls] certificate; else what to accept with, and when the certificate expires, in unix seconds.
    """

    config: Config
    token_auth: TokenAuth
    push_auth: PushAuth
    tls: tuple[ssl.SSLContext, float] | None

    async def close(self) -> None:
        """Let calls under way finish, then free what is held."""
        await self.token_auth.close()
        await self.push_auth.close()


def prepare(config: Config, counters: Counters, on_auth_exhausted: Callable[[], None]) -> Prepared:
    """Make what `config` needs: read files, import functions. In a running worker, call it in a thread.

    Raises: ConfigError: keys or the certificate cannot be read, or the user's function cannot be imported.
    """
    tls = None
    if certificate := config.tls.certificate:
        tls = server_context(config.tls), certificate_expiry(certificate).timestamp()
    return Prepared(
        config,
        token_auth(config, counters, on_auth_exhausted),
        push_auth(config, counters, on_auth_exhausted),
        tls,
    )


def take_over(
    prepared: Prepared, environment: Environment, services: Services, push: Push, clients: ClientProtocol
) -> None:
    """Serve by `prepared` from now on."""
    config = prepared.config
    limits = config.limits
    environment.configure(config)
    environment.notebook.configure(config.admin)
    environment.send_queues.limit(limits.worker_send_bytes)
    environment.hub.configure(config.fanout, config.compression)
    push.token_auth, push.limits = prepared.token_auth, limits
    clients.token_auth, clients.service.limits = prepared.token_auth, limits
    clients.configure(config)
    services.configure(config, prepared.token_auth, prepared.push_auth)
    services.push_service.limit(limits)
    services.overload.limit(limits, services.now())
    services.admission.limit(limits)
    if services.tls is not None and prepared.tls is not None:
        services.tls.replace(*prepared.tls)
    services.app.config = config


async def tell_connections(environment: Environment) -> None:
    """Have every open connection notice its new limits and deadlines."""
    for position, connection in enumerate(list(environment.connections.values()), 1):
        connection.renew()
        if position % SLICE_CONNECTIONS == 0:
            await asyncio.sleep(0)
