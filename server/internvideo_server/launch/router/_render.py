"""HAProxy's configuration."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from internvideo_server import routing
from internvideo_server.settings import RouterSettings

from ._replica import Replica, parse_all

#: The two groups of servers: by the ring, and by name for what one replica keeps.
RING, KEPT = "replicas", "kept"
_BACKLOG_S = 10  # beyond the adapter's own limit of a request, whose error the client should see
_UNAVAILABLE = "no replica can answer at the moment: try again"


def render(
    settings: RouterSettings,
    directory: Path,
    port: int | None = None,
    metrics_port: int | None = None,
    resting: Collection[str] = (),
) -> str:
    """The whole configuration.

    Args:
        settings: What is wanted.
        directory: Where the admin socket and the certificate lie.
        port: Of the API, where the settings' is 0.
        metrics_port: Likewise.
        resting: Names of replicas that get nothing new.

    Raises:
        LaunchError: A replica cannot be understood.
    """
    replicas = parse_all(settings.replica)
    tls = f" ssl crt {certificate(directory)} alpn h2,http/1.1" if settings.ssl_certfile else ""
    lines = [
        *_global(settings, directory),
        *_defaults(settings),
        *_frontend(f"{_bind(settings.host, port or settings.port)}{tls}"),
        *_own(_bind(settings.metrics_host, metrics_port or settings.metrics_port)),
        *_ring(settings),
        *(
            f"    server {server(replica, settings)}{_names(replica, settings)}{' disabled' * (replica.name in resting)}"
            for replica in replicas
        ),
        *_kept(),
        *(f"    server {server(replica, settings)}{_names(replica, settings)}" for replica in replicas),
    ]
    return "\n".join(lines) + "\n"


def certificate(directory: Path) -> Path:
    """Where chain and key lie together, as HAProxy wants them."""
    return directory / "certificate.pem"


def server(replica: Replica, settings: RouterSettings, address: str | None = None) -> str:
    """A server's words, in the configuration and for ``add server``; ``address``: of a host that is given by its name."""
    checked = f"check inter {_ms(settings.check_interval)} fall 2 rise 2 weight 100"
    tls = ""
    if replica.tls:
        authority = settings.replica_ca_file.resolve() if settings.replica_ca_file else "@system-ca"
        wanted = f"verifyhost {replica.host}" if replica.has_address else f"sni str({replica.host}) verifyhost {replica.host}"
        sni = "" if replica.has_address else f" check-sni {replica.host}"
        # check-ssl: `add server` does not take it from `ssl`, as a configuration does.
        tls = f" ssl check-ssl verify required ca-file {authority} {wanted}{sni}"
    host = address or replica.host
    return f"{replica.name} {_bind(host, replica.port)} id {replica.number} {checked}{tls}"


def _names(replica: Replica, settings: RouterSettings) -> str:
    return " resolvers dns init-addr last,none" if settings.follow_dns and not replica.has_address else ""


def _bind(host: str, port: int) -> str:
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _global(settings: RouterSettings, directory: Path) -> Iterator[str]:
    yield from (
        "# Written by `internvideo router`.",
        "global",
        "    log stdout format raw local0",
        f"    stats socket {directory / 'admin.sock'} mode 600 level admin",
        f"    maxconn {settings.max_connections}",
        f"    tune.bufsize {routing.LOOKED_AT}  # what of a body can be looked at, and sent again to another replica",
        f"    hard-stop-after {_ms(settings.drain_timeout)}",
        "    ssl-default-bind-options ssl-min-ver TLSv1.2",
        "    ssl-default-server-options ssl-min-ver TLSv1.2",
    )
    if settings.follow_dns:
        yield from ("resolvers dns", "    parse-resolv-conf", "    accepted_payload_size 8192")
        yield from ("    hold valid 5s", "    hold nx 5s", "    hold obsolete 5s")


def _defaults(settings: RouterSettings) -> Iterator[str]:
    whole = _ms(settings.request_timeout + _BACKLOG_S)
    yield from (
        "defaults",
        "    mode http",
        "    log global",
        # Neither the URL of a medium nor a query: the key tells which of them are the same.
        '    log-format "%ci %HM %HP %ST %ts %b/%s retries=%rc key=%[var(txn.key)] ms=%Tw/%Tc/%Tr/%Ta bytes=%U/%B"',
        f"    timeout connect {_ms(settings.connect_timeout)}",
        f"    timeout client {whole}",
        f"    timeout server {whole}",
        "    timeout http-request 60s",
        "    timeout http-keep-alive 75s",
        "    timeout check 6s  # a busy replica answers late; by default its answer would be cut off as if it were dead",
        "    option forwardfor",
        "    option abortonclose",
        "    option splice-auto",
        # A host that vanished answers nothing, not even that: its connections end after 11 s, not with the request's time.
        "    option srvtcpka",
        "    srvtcpka-idle 5s",
        "    srvtcpka-intvl 2s",
        "    srvtcpka-cnt 3",
        "    retries 2",
        "    option redispatch 1",
        *(f"    {line}" for line in _errors()),
    )


def _errors() -> Iterator[str]:
    """HAProxy's own errors as OpenAI's."""
    for status, message, kind in (
        (400, "this is no HTTP request", "invalid_request_error"),
        (408, "the request did not come in time", "invalid_request_error"),
        (502, "the replica that worked on this request ended: ask again", "server_error"),
        (503, _UNAVAILABLE, "server_error"),
        (504, "the replica took too long", "server_error"),
    ):
        code = {503: "unavailable", 502: "unavailable", 504: "deadline_exceeded"}.get(status, "invalid_argument")
        error = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
        again = ' hdr Retry-After "1"' if status in (502, 503) else ""
        yield f"http-error status {status} content-type application/json string '{error}'{again}"


def _frontend(bind: str) -> Iterator[str]:
    """The rule of `internvideo_server.routing`, in HAProxy's words."""
    held, keyed = "{ var(txn.replica) -m found }", "{ var(txn.key) -m found }"

    def first(pattern: str) -> str:
        return f"""'req.body,regsub("(?s)^.*?{pattern}.*$","\\1")'"""

    def matches(pattern: str) -> str:
        return f"{{ req.body -m reg '{pattern}' }}"

    digest = "sha2(256),hex,bytes(0,16)"
    session, path, most = f"req.fhdr({routing.SESSION_HEADER})", routing.PATH, routing.LOOKED_AT * 3 // 4
    yield from (
        "frontend api",
        f"    bind {bind}",
        "    http-request return status 404 if { path,url_dec /metrics }  # each replica's own are asked there",
        f"    http-request wait-for-body time 10s at-least {most} if {{ method POST }} !{{ path /v1/files }}",
        f"    http-request set-var(txn.replica) 'path,regsub(\"{path}.*\",\"\\1\")' if {{ path -m reg '{path}' }}",
    )
    for pattern in (routing.EARLIER, routing.FILE):
        yield f"    http-request set-var(txn.replica) {first(pattern)} if !{held} {matches(pattern)}"
    yield f"    http-request set-var(txn.key) {session},{digest} if !{held} {{ {session} -m len gt 0 }}"
    medium = first(routing.MEDIUM)[:-1] + """,regsub("\\\\\\\\/","/",g),""" + digest + "'"
    yield f"    http-request set-var(txn.key) {medium} if !{held} !{keyed} {matches(routing.MEDIUM)}"
    yield "    http-response set-header X-InternVideo-Replica %s"
    yield f"    use_backend {KEPT} if {held}"
    yield f"    default_backend {RING}"


def _own(bind: str) -> Iterator[str]:
    yield from (
        "frontend own",
        f"    bind {bind}",
        "    option dontlog-normal",
        "    http-request use-service prometheus-exporter if { path /metrics }",
        f"    http-request return status 503 if {{ path /health/ready }} {{ nbsrv({RING}) eq 0 }}",
        "    http-request return status 200 if { path_beg /health/ }",
        "    http-request return status 404",
    )


def _ring(settings: RouterSettings) -> Iterator[str]:
    yield from (
        f"backend {RING}",
        "    balance hash var(txn.key)",
        "    hash-type consistent",
        f"    hash-balance-factor {settings.load_factor}",
        # No byte of an answer leaves a replica before its first token: until then another one can be asked.
        "    retry-on conn-failure empty-response 503",
        "    option httpchk",
        "    http-check send meth GET uri /health/ready ver HTTP/1.1 hdr Host localhost",
        "    http-check expect status 200",
    )


def _kept() -> Iterator[str]:
    """Checked by a connection alone: a replica that heals itself still has its files, one that is gone has not."""
    yield from (
        f"backend {KEPT}",
        "    balance roundrobin",
        "    retry-on conn-failure",
        "    use-server %[var(txn.replica)] if { var(txn.replica) -m found }",
    )
