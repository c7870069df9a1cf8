"""Configuration: defaults <- TOML file <- environment <- flags, as frozen structs.

Every key is documented here, with its unit, and nowhere else; ``python broker.py --show-config`` and
``python node.py --show-config`` print them. Parsing, types and ranges are msgspec's work.
"""

from __future__ import annotations

import io
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import platformdirs
from msgspec import Meta, Struct

from dolmetsch.errors import ConfigError

ALIASES: Final = {  # names without the prefix: the first two and the last are the first bot's
    "MAX_CPU": "DOLMETSCH_POOL_MAX_CPU",
    "MAX_RAM": "DOLMETSCH_POOL_MAX_RAM",
    "DISCORD_API": "DOLMETSCH_DISCORD_API",
    "DISCORD_GATEWAY": "DOLMETSCH_DISCORD_GATEWAY",
    "STATUS_FILE": "DOLMETSCH_DISCORD_STATUS_FILE",
}
PREFIX: Final = "DOLMETSCH_"
MAX_BYTES: Final = 2**20  # of a configuration file, or of .env


class BrokerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the broker listens and keeps its jobs."""

    bind: Annotated[str, Meta(description="address to listen at")] = "tcp://127.0.0.1:5570"
    telemetry: Annotated[str, Meta(description="address to publish at; empty: one port above bind; off: nowhere")] = ""
    door: Annotated[
        str, Meta(description="address to enrol at; empty: two ports above bind, where there are keys; off: nowhere")
    ] = ""
    announce: Annotated[bool, Meta(description="whether to be found by mDNS, where others can connect")] = True
    ledger: Annotated[str, Meta(description="file that keeps accepted jobs; empty: the user's data folder")] = ""
    drain_s: Annotated[float, Meta(ge=0, le=600, description="seconds a stopping broker waits for what nodes hold")] = (
        5.0
    )


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who a node is and whom it works for."""

    broker: Annotated[
        str, Meta(description="address of the broker; empty: the one joined, else tcp://127.0.0.1:5570")
    ] = ""
    name: Annotated[str, Meta(max_length=100, description="name in the cluster; empty: made from the host's")] = ""
    drain_s: Annotated[float, Meta(ge=0, le=600, description="seconds a stopping node has to finish what it holds")] = (
        20.0
    )


class KeysConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which keys are used beyond this computer. The pairs are files: no secret is a setting."""

    dir: Annotated[str, Meta(description="folder of keys; empty: in the user's data folder")] = ""
    client: Annotated[
        str, Meta(description="file with this program's key pair; empty: one in dir, made if need be")
    ] = ""
    broker: Annotated[str, Meta(description="public key of the broker to connect to; empty: as joined")] = ""


class SchedulerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the broker keeps and hands out jobs."""

    max_jobs: Annotated[
        int, Meta(ge=1, le=10_000_000, description="jobs held at once; more are refused as overloaded")
    ] = 200_000
    max_bytes: Annotated[
        int, Meta(ge=1 << 20, description="bytes of memory those jobs may take; more are refused as overloaded")
    ] = 256 * 2**20
    cache_bytes: Annotated[
        int, Meta(ge=0, description="bytes of results kept to answer the same text again; 0: none")
    ] = 16 * 2**20
    heartbeat_s: Annotated[float, Meta(ge=0.05, le=30, description="seconds between a node's heartbeats")] = 1.0
    lost_after_s: Annotated[
        float, Meta(ge=0.1, le=600, description="seconds of silence after which a node is lost")
    ] = 3.0
    lease_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="seconds a lease lives unless a heartbeat renews it")
    ] = 6.0
    grace_s: Annotated[
        float, Meta(ge=0, le=600, description="seconds a restarted broker waits for nodes to show what they hold")
    ] = 5.0
    max_failures: Annotated[
        int, Meta(ge=1, le=100, description="crashes or errors after which a job is a dead letter")
    ] = 3
    max_attempts: Annotated[
        int, Meta(ge=1, le=1000, description="expired leases and lost nodes after which a job is a dead letter")
    ] = 10
    bulk_age_s: Annotated[
        float, Meta(ge=0, le=86400, description="seconds after which a waiting bulk job gets its share")
    ] = 10.0
    resend_s: Annotated[float, Meta(ge=0.05, le=600, description="seconds before an unacked result is sent again")] = (
        2.0
    )
    result_ttl_s: Annotated[
        float, Meta(ge=1, description="seconds a result waits for its gateway before it is given up")
    ] = 86_400.0
    dead_ttl_s: Annotated[float, Meta(ge=1, description="seconds a dead letter is kept, with its text")] = 86_400.0
    max_dead: Annotated[int, Meta(ge=0, le=1_000_000, description="dead letters kept; the oldest goes first")] = 1_000
    max_settled: Annotated[
        int, Meta(ge=0, le=10_000_000, description="ids of settled jobs remembered, so that none is done twice")
    ] = 50_000


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a child translates."""

    beam_size: Annotated[int, Meta(ge=1, le=16, description="hypotheses kept while decoding; 1 is fastest")] = 2
    batch_tokens: Annotated[int, Meta(ge=32, le=16384, description="tokens in one batch, padding counted")] = 512
    compute_type: Annotated[
        str, Meta(description="CTranslate2 compute type: default, int8, int8_float32, float32, ...")
    ] = "default"


class PoolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a node runs its children."""

    min_workers: Annotated[int, Meta(ge=1, le=256, description="children kept at all times")] = 1
    max_workers: Annotated[int, Meta(ge=0, le=256, description="children at most; 0: one for each allowed core")] = 0
    cores: Annotated[
        tuple[int, ...], Meta(description="cores children are pinned to; empty: all this process may use")
    ] = ()
    job_limit_s: Annotated[
        float, Meta(gt=0, le=3600, description="seconds a child may go without progress before it is killed")
    ] = 60.0
    idle_s: Annotated[
        float, Meta(ge=0, le=86400, description="seconds an idle child above min_workers is kept warm")
    ] = 300.0
    max_cpu: Annotated[
        float, Meta(gt=0, le=100, description="percent: no child is added on a core busier than this")
    ] = 85.0
    max_ram: Annotated[
        float, Meta(gt=0, le=100, description="percent: no child is added above this, idle ones end")
    ] = 85.0


class DiscordConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the Discord gateway behaves. Its token is not here: it comes from .env or DISCORD_TOKEN alone."""

    flags: Annotated[str, Meta(description="a flags.toml of your own; empty: the one that ships with dolmetsch")] = ""
    state: Annotated[str, Meta(description="file that remembers replies; empty: in the user's data folder")] = ""
    status_file: Annotated[str, Meta(description="file whose lines the presence shows in turn; empty: the cluster")] = (
        ""
    )
    api: Annotated[str, Meta(description="address of the REST API; empty: Discord's")] = ""
    gateway: Annotated[str, Meta(description="address of the WebSocket gateway; empty: Discord's")] = ""
    window_s: Annotated[float, Meta(ge=60, description="seconds for which a reply follows its message")] = 7 * 86_400.0
    deadline_s: Annotated[float, Meta(ge=1, le=86_400, description="seconds a translation may take")] = 60.0
    hourglass_s: Annotated[
        float, Meta(ge=0, description="seconds after which an hourglass shows that it takes time")
    ] = 1.5
    limit_s: Annotated[float, Meta(gt=0, le=86_400, description="seconds that the four limits below count over")] = 60.0
    user_limit: Annotated[int, Meta(ge=1, description="translations for one user")] = 60
    channel_limit: Annotated[int, Meta(ge=1, description="translations in one channel")] = 300
    guild_limit: Annotated[int, Meta(ge=1, description="translations in one guild")] = 600
    total_limit: Annotated[int, Meta(ge=1, description="translations in all")] = 3000


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the HTTP gateway behaves. "A minute" is any minute: a moving window."""

    listen: Annotated[str, Meta(description="address and port to listen at")] = "127.0.0.1:5050"
    keys: Annotated[str, Meta(description="file that keeps API keys; empty: in the user's data folder")] = ""
    require_key: Annotated[bool, Meta(description="whether only callers with an API key may translate and detect")] = (
        False
    )
    per_minute: Annotated[int, Meta(ge=0, description="requests a minute from one address without a key; 0: any")] = 120
    chars_per_minute: Annotated[int, Meta(ge=0, description="characters a minute, likewise; 0: any")] = 100_000
    char_limit: Annotated[int, Meta(ge=1, le=20_000, description="characters of one text")] = 20_000
    batch_limit: Annotated[int, Meta(ge=1, le=4096, description="texts in one request")] = 256
    alternatives_limit: Annotated[int, Meta(ge=0, le=4, description="alternatives that may be asked for")] = 3
    body_bytes: Annotated[int, Meta(ge=1024, le=64 * 2**20, description="bytes of one request's body")] = 2**20
    deadline_s: Annotated[float, Meta(ge=1, le=3600, description="seconds a request may take")] = 60.0
    concurrent: Annotated[
        int, Meta(ge=1, le=1024, description="requests translated at once; more are told to slow down")
    ] = 64
    connections: Annotated[int, Meta(ge=8, le=10_000, description="connections open at once; others wait")] = 512
    trusted_proxies: Annotated[
        tuple[str, ...], Meta(description="addresses of proxies whose X-Forwarded-For is believed")
    ] = ()
    drain_s: Annotated[
        float, Meta(ge=0, le=600, description="seconds a stopping gateway has to answer what it was asked")
    ] = 10.0


class DashboardConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the dashboard is. Its token is not here: it comes from .env or DASHBOARD_TOKEN alone."""

    listen: Annotated[str, Meta(description="address and port to listen at")] = "127.0.0.1:5000"
    telemetry: Annotated[
        str, Meta(description="address where the broker publishes; empty: one port above the broker's")
    ] = ""
    history: Annotated[str, Meta(description="file that keeps the last day; empty: in the user's data folder")] = ""
    hosts: Annotated[tuple[str, ...], Meta(description="further names it is reached by, for instance a tunnel's")] = ()


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it: a table in the file for each part."""

    broker: BrokerConfig = BrokerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    node: NodeConfig = NodeConfig()
    keys: KeysConfig = KeysConfig()
    pool: PoolConfig = PoolConfig()
    engine: EngineConfig = EngineConfig()
    discord: DiscordConfig = DiscordConfig()
    http: HttpConfig = HttpConfig()
    dashboard: DashboardConfig = DashboardConfig()


SECTIONS: Final[Mapping[str, type[Struct]]] = {
    "broker": BrokerConfig,
    "scheduler": SchedulerConfig,
    "node": NodeConfig,
    "keys": KeysConfig,
    "pool": PoolConfig,
    "engine": EngineConfig,
    "discord": DiscordConfig,
    "http": HttpConfig,
    "dashboard": DashboardConfig,
}

Table = dict[str, dict[str, Any]]


def load(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration: defaults, then the file at ``path``, then ``DOLMETSCH_SECTION_KEY`` variables, then flags.

    Without ``path``, ``dolmetsch.toml`` in the user's configuration folder is read if it is there. Flags that are
    None were not given. Raises ``ConfigError`` that names the key and where it stands.
    """
    if path is None:
        default = platformdirs.user_config_path("dolmetsch") / "dolmetsch.toml"
        path = default if default.exists() else None
    merged: Table = {section: {} for section in SECTIONS}
    layers = (
        (str(path), {} if path is None else _read(path)),
        ("the environment", _from_environment(environment)),
        ("the command line", {name: {k: v for k, v in part.items() if v is not None} for name, part in flags.items()}),
    )
    config = Config()
    for source, layer in layers:
        for section, values in layer.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{source}: {section} must be a table, [{section}]")
            merged.setdefault(section, {}).update(values)
        config = _convert(merged, source)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # endless numbers and nesting have errors of their own
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes")
    return data.decode()


def _from_environment(environment: Mapping[str, str]) -> Table:
    values = {ALIASES.get(name, name): value for name, value in environment.items()}
    layer: Table = {}
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            text = values.get(f"{PREFIX}{section}_{field.name}".upper())
            if text is not None:
                _check_unicode(text, field.default, f"{section}.{field.name}")
                many = isinstance(field.default, tuple)
                layer.setdefault(section, {})[field.name] = [part for part in text.split(",") if part] if many else text
    return layer


def _check_unicode(text: str, default: Any, where: str) -> None:
    """A file's name may be any bytes, which come as half surrogate pairs; a number or a list is read as UTF-8."""
    if isinstance(default, str):
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the environment: {where}: not UTF-8") from error


def _convert(table: Mapping[str, Any], source: str) -> Config:
    try:
        return msgspec.convert(table, Config, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        where = where.rstrip("`") or "a table"
        raise ConfigError(f"{source}: {where}: {what[0].lower()}{what[1:]}") from error


def show(config: Config) -> str:
    """The configuration as TOML, each key with what it means."""
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        lines.append(f"[{section}]")
        part = getattr(config, section)
        for field in msgspec.structs.fields(kind):
            meta = next((one for one in getattr(field.type, "__metadata__", ()) if isinstance(one, Meta)), None)
            value = msgspec.json.encode(getattr(part, field.name)).decode()
            lines.append(f"{field.name} = {value}  # {meta.description if meta else ''}".rstrip(" #"))
        lines.append("")
    return "\n".join(lines)


def environment(path: Path) -> dict[str, str]:
    """The environment, over what ``path`` (.env) says; that file need not be there. Raises ``ConfigError``."""
    from dotenv import dotenv_values  # only programs with a secret need it

    try:
        values = dotenv_values(stream=io.StringIO(_text(path))) if path.exists() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {type(error).__name__}") from error
    return {**{name: value for name, value in values.items() if value is not None}, **os.environ}


def data_path(name: str) -> Path:
    """``name`` in the user's data folder for dolmetsch (XDG_DATA_HOME, else ~/.local/share)."""
    return platformdirs.user_data_path("dolmetsch") / name
