"""A dolmetsch.toml and the environment. Only ``ConfigError`` leaves, in one line that says where; a configuration that
is taken can be shown, and what is shown is taken again as the same one.

Lines after ``\\n#env\\n`` are the environment: ``NAME=value``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from dolmetsch.config import PREFIX, SECTIONS, load, show
from dolmetsch.errors import ConfigError
from fuzz.target import scratch

MOST_BYTES: Final = 4096
ENVIRONMENT: Final = b"\n#env\n"
_NAMES: Final = tuple(
    f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in msgspec.structs.fields(kind)
)
TOKENS: Final = (
    *(name.encode() for name in _NAMES),
    *(f"{PREFIX}{name.replace('.', '_').upper()}=".encode() for name in _NAMES),
    b"MAX_CPU=", b" = ", b"true", b"inf", b"nan", b"-1", b"1e308", b"0x7f", b"1979-05-27T00:00:00Z", b"[]", b"{}",
    b'"\\u0000"', b'"\\u007f"', b"\xff", b"9" * 300, b"[" * 300, b"'''", b"[broker]\n", b"[[node]]\n", ENVIRONMENT,
    b"a,b",
)  # fmt: skip


def seeds() -> list[bytes]:
    """The defaults, and a few settings of every kind."""
    defaults = show(load(_file(b""), {}, {})).encode()
    some = b"[pool]\ncores = [1, 2]\nmax_cpu = 50\n[http]\nrequire_key = true\n" + ENVIRONMENT
    return [
        defaults,
        some + b"DOLMETSCH_BROKER_BIND=tcp://192.0.2.1\nMAX_RAM=70.5\nDOLMETSCH_HTTP_TRUSTED_PROXIES=192.0.2.1,::1",
        b'broker.bind = "x"\nbroker.announce = false\n' + ENVIRONMENT + b"DOLMETSCH_POOL_CORES=1,2\n",
    ]


def _file(content: bytes) -> Path:
    path = scratch() / "dolmetsch.toml"
    path.write_bytes(content)
    return path


def check(data: bytes) -> None:
    content, _, rest = data.partition(ENVIRONMENT)
    lines = rest.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")  # as os.environ has them
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        config = load(_file(content), environment, {})
    except ConfigError as error:
        assert one_line(str(error)), ascii(error)
        return
    try:
        shown = show(config).encode()
    except UnicodeEncodeError:
        assert any("\udc80" <= sign <= "\udcff" for sign in rest.decode("utf-8", "surrogateescape"))
        return
    assert load(_file(shown), {}, {}) == config


def one_line(text: str) -> bool:
    """Whether it is one line that says something."""
    return len(text) > 0 and not set(text) & set("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
