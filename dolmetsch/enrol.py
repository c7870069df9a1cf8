"""A newcomer's side of the door: knock with an invitation, or without one and wait to be approved.

    python -m dolmetsch.enrol INVITATION    for a computer of gateways; `python node.py --join` enrols and works
    python -m dolmetsch.enrol -             the same, and it reads the invitation from a line of standard input

Once admitted, the broker's address and key are kept, and this computer's programs connect to it from then on.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from socket import gethostname
from typing import Final

import zmq

from dolmetsch import logs
from dolmetsch.config import KeysConfig, load
from dolmetsch.errors import DolmetschError, NodeError, RemoteError
from dolmetsch.keyring import ADMITTED, REFUSED
from dolmetsch.keys import Credentials, Invitation, fingerprint, given_invitation, own_pair, remember_broker
from dolmetsch.lifecycle import Signals
from dolmetsch.messages import Error, Knock, Message, Verdict
from dolmetsch.transport import DealerPort, address
from dolmetsch.wire import decode

KNOCK_S: Final = 5.0  # between knocks of one who waits, and the longest wait for an answer
READ_AT_ONCE: Final = 16

log = logging.getLogger("enrol")


def enrol(config: KeysConfig, invitation: Invitation, name: str, signals: Signals) -> bool:
    """Knock until the broker lets us in, and keep its key; False when a signal came first.

    Raises ``NodeError`` when it refuses, and ``KeyFileError``.
    """
    where = address(invitation.broker)
    keys = Credentials(own_pair(config), invitation.key)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = DealerPort(context, address(invitation.door), f"newcomer/{name}/{time.monotonic_ns()}", keys)
    try:
        knock = Knock(name=name, token=invitation.token)
        if not _Knocking(port, knock, fingerprint(keys.own.public), signals).run():
            return False
    finally:
        port.close()
        context.term()
    remember_broker(config, where, invitation.key, first=True)
    log.info("the broker at %s has let this computer in; from now on no invitation is needed", where)
    return True


class _Knocking:
    def __init__(self, port: DealerPort, knock: Knock, ours: str, signals: Signals) -> None:
        self._port = port
        self._knock = knock
        self._ours = ours  # our key's fingerprint
        self._signals = signals
        self._said = ""
        self._poller = zmq.Poller()

    def run(self) -> bool:
        """Whether we were let in. There is no deadline: an owner may take an hour to approve, or to switch it on."""
        self._poller.register(self._signals.fd, zmq.POLLIN)
        while True:
            self._poller.register(self._port.socket, zmq.POLLIN)
            self._port.send(self._knock)
            verdict = self._verdict(time.monotonic() + KNOCK_S)
            if self._signals.stop:
                return False
            if verdict is None:
                self._poller.unregister(self._port.socket)
                self._say(f"the broker at {self._port.where} {self._port.trouble or 'does not answer'}; trying again")
                self._port.reconnect()
            elif verdict.state == ADMITTED:
                return True
            elif verdict.state == REFUSED:
                raise NodeError(f"the broker refuses this computer: {verdict.detail}")
            else:
                self._say(
                    f"{self._knock.name} waits to be approved, its key is {self._ours}:"
                    f" in the dashboard, or on the broker: python broker.py approve {self._knock.name}"
                )
                self._wait(time.monotonic() + KNOCK_S)

    def _verdict(self, until: float) -> Verdict | None:
        while not self._signals.stop and (left_s := until - time.monotonic()) > 0:
            self._poller.poll(math.ceil(left_s * 1000))
            for frames in self._port.receive(READ_AT_ONCE):
                message = _read(frames)
                if isinstance(message, Verdict):
                    return message
        return None

    def _wait(self, until: float) -> None:
        poller = zmq.Poller()
        poller.register(self._signals.fd, zmq.POLLIN)
        while not self._signals.stop and (left_s := until - time.monotonic()) > 0:
            poller.poll(math.ceil(left_s * 1000))

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("%s", text)


def _read(frames: list[bytes]) -> Message:
    try:
        return decode(frames)
    except RemoteError as error:
        return Error(code=error.code, detail=error.detail)


def main(argv: Sequence[str]) -> int:
    """Enrol this computer; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dolmetsch.enrol", description="Lets this computer's programs in.")
    parser.add_argument("invitation", help="what `python broker.py invite` printed; - reads it")
    arguments = parser.parse_args(argv)
    logs.start("enrol")
    try:
        settings = load(None, os.environ, {})
        invitation = given_invitation(arguments.invitation)
        with Signals() as signals:
            return 0 if enrol(settings.keys, invitation, gethostname(), signals) else 1
    except DolmetschError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
