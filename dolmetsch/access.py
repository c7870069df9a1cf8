"""Who may say what: a role for each key, and the messages each role may send to the broker. Pure.

Roles matter where keys are used, beyond loopback. A peer without keys is on the broker's own computer, and may say
anything, as may the ``owner``: whoever runs the broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dolmetsch.messages import (
    Ack,
    Ask,
    Cancel,
    Done,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    Manage,
    Message,
    Ping,
    Register,
    Report,
    Submit,
)

NODE: Final = "node"  # translates
GATEWAY: Final = "gateway"  # asks for translations
OPERATOR: Final = "operator"  # a gateway that may also manage nodes and dead letters: the dashboard
OBSERVER: Final = "observer"  # looks, and asks for nothing else
OWNER: Final = "owner"  # the user who runs the broker, on that computer
ROLES: Final = (NODE, GATEWAY, OPERATOR, OBSERVER)  # those that can be given away
LISTENERS: Final = frozenset({GATEWAY, OPERATOR, OBSERVER, OWNER})  # to whom telemetry is sent

_LOOK: Final = frozenset({Hello, Ping, Ask})
_TRANSLATE: Final = _LOOK | {Submit, Ack, Cancel, Report}
_WORK: Final = frozenset({Register, Heartbeat, Done, Failed, Goodbye})
MAY_SEND: Final[Mapping[str, frozenset[type]]] = {
    NODE: _WORK,
    GATEWAY: _TRANSLATE,
    OPERATOR: _TRANSLATE | {Manage},
    OBSERVER: _LOOK,
    OWNER: _TRANSLATE | {Manage} | _WORK,
}


def may_send(role: str | None, message: Message) -> bool:
    """Whether a peer whose key has ``role`` may send ``message``; None is a key that is not, or no longer, allowed."""
    return role is not None and type(message) in MAY_SEND[role]
