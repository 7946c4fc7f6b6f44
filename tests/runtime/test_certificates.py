"""Certificates that are replaced while the service runs."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from outrider.v1 import generation_pb2, generation_pb2_grpc
from outrider_runtime.certificates import ChannelCertificates
from outrider_runtime.errors import StartupError
from outrider_runtime.server import ServerSettings
from runtime.echo_service import EchoGeneration, echo_server


class Authority:
    """An authority, and a folder with files of certificates that it signed."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def sign(
        self,
        name: str,
        *,
        hosts: Sequence[str] = ("localhost", "127.0.0.1"),
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> tuple[Path, Path]:
        """A new key and certificate under this name, in place of earlier ones; their files."""
        leaf = self._authority.issue_cert(
            *hosts, common_name=name, not_before=not_before, not_after=not_after
        )
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        leaf.private_key_pem.write_to_path(str(key))
        leaf.cert_chain_pems[0].write_to_path(str(certificate))
        return key, certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def serving(authority: Authority, clients: Path | None = None) -> AsyncIterator[str]:
    """A server with a certificate of an authority; `clients`: authorities of its clients."""
    key, certificate = authority.sign("server")
    settings = ServerSettings(ssl_keyfile=key, ssl_certfile=certificate, ssl_ca_certs=clients)
    server = echo_server(EchoGeneration(), settings)
    try:
        yield f"127.0.0.1:{await server.start()}"
    finally:
        await server.stop(0)


async def call(address: str, certificates: ChannelCertificates) -> str:
    """OK, or how it failed; a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    credentials = certificates.credentials()
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            stub: generation_pb2_grpc.GenerationServiceAsyncStub = (
                generation_pb2_grpc.GenerationServiceStub(channel)
            )
            await stub.Tokenize(generation_pb2.TokenizeRequest(text="abc"), timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


def shown(address: str) -> str:
    """The certificate that a server shows."""
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port)))


async def test_a_new_certificate_is_shown_to_new_connections(authority: Authority) -> None:
    async with serving(authority) as address:
        trusting = ChannelCertificates(authority.file, None, None)
        assert await call(address, trusting) == "OK"
        before = await asyncio.to_thread(shown, address)
        authority.sign("server")
        after = await asyncio.to_thread(shown, address)
        assert before != after == (authority.folder / "server.pem").read_text()
        assert await call(address, trusting) == "OK"


async def test_files_that_are_half_replaced_change_nothing(authority: Authority) -> None:
    async with serving(authority) as address:
        trusting = ChannelCertificates(authority.file, None, None)
        (authority.folder / "server.key").write_text("not yet written")
        assert await call(address, trusting) == "OK"
        authority.sign("server")
        assert await call(address, trusting) == "OK"


async def test_authorities_of_clients_change_over(authority: Authority, tmp_path: Path) -> None:
    successor = Authority(tmp_path / "successor")
    clients = tmp_path / "clients.pem"
    clients.write_text(authority.file.read_text())
    async with serving(authority, clients) as address:
        old = ChannelCertificates(authority.file, *authority.sign("client"))
        new = ChannelCertificates(authority.file, *successor.sign("client"))
        assert [await call(address, each) for each in (old, new)] == ["OK", "UNAVAILABLE"]
        clients.write_text(authority.file.read_text() + successor.file.read_text())
        assert [await call(address, each) for each in (old, new)] == ["OK", "OK"]
        clients.write_text(successor.file.read_text())
        assert [await call(address, each) for each in (old, new)] == ["UNAVAILABLE", "OK"]


async def test_a_client_shows_its_new_certificate(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    async with serving(authority, authority.file) as address:
        key, certificate = stranger.sign("client")
        client = ChannelCertificates(authority.file, key, certificate)
        assert await call(address, client) == "UNAVAILABLE"
        for path, source in zip((key, certificate), authority.sign("client"), strict=True):
            path.write_bytes(source.read_bytes())
        assert await call(address, client) == "OK"


async def test_a_server_is_believed_under_its_own_name_and_in_its_own_time(
    authority: Authority,
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    async with serving(authority) as address:
        trusting = ChannelCertificates(authority.file, None, None)
        authority.sign("server", hosts=["elsewhere.example"])
        assert await call(address, trusting) == "UNAVAILABLE"
        authority.sign("server", not_before=now - 2 * day, not_after=now - day)
        assert await call(address, trusting) == "UNAVAILABLE"
        authority.sign("server", not_before=now + day, not_after=now + 2 * day)
        assert await call(address, trusting) == "UNAVAILABLE"
        authority.sign("server")
        assert await call(address, trusting) == "OK"


async def test_a_client_whose_certificate_ran_out_is_turned_away(authority: Authority) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    async with serving(authority, authority.file) as address:
        old = authority.sign("client", not_before=now - 2 * day, not_after=now - day)
        assert await call(address, ChannelCertificates(authority.file, *old)) == "UNAVAILABLE"
        new = authority.sign("client")
        assert await call(address, ChannelCertificates(authority.file, *new)) == "OK"


def test_a_clients_key_and_certificate_go_together(authority: Authority) -> None:
    key, certificate = authority.sign("client")
    for pair in ((key, None), (None, certificate)):
        with pytest.raises(StartupError, match="go together"):
            ChannelCertificates(authority.file, *pair)
    with pytest.raises(StartupError, match="its private key"):
        ChannelCertificates(authority.file, key, authority.file)
    with pytest.raises(StartupError, match="cannot read"):
        ChannelCertificates(authority.folder / "missing.pem", None, None)
