"""A bad cable between two network interfaces: each frame is late by 200 ms ± 100 ms, and one in twenty is lost.

    python -m chaos.cable PORT PATCH

Does what ``tc qdisc ... netem delay 200ms 100ms loss 5%`` does, both ways, where the kernel has no netem. Frames pass
as they are, by packet sockets with virtio headers, so that checksums and segments left to the hardware stay so.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

MEAN_S: Final = 0.2
SPREAD_S: Final = 0.1
LOSS: Final = 0.05
MOST_FRAMES: Final = 1000  # on their way at once, as netem's own limit; more are lost
FRAME_BYTES: Final = 1 << 17  # above the largest bundle of segments
ETH_P_ALL: Final = 3  # linux/if_ether.h
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15  # linux/if_packet.h
PACKET_OUTGOING: Final = 4


def _port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.bind((name, ETH_P_ALL))
    port.setblocking(False)
    return port


def main(argv: Sequence[str]) -> None:
    """Carry frames until killed."""
    one, other = map(_port, argv)
    across = {one.fileno(): (one, other), other.fileno(): (other, one)}
    poll = select.poll()
    for descriptor in across:
        poll.register(descriptor, select.POLLIN)
    rng = random.Random()
    late: list[tuple[float, int, bytes, socket.socket]] = []
    count = 0
    while True:
        wait_s = late[0][0] - time.monotonic() if late else 60.0
        for descriptor, _ in poll.poll(max(0.0, wait_s) * 1000):
            source, target = across[descriptor]
            frame, (_, _, kind, *_) = source.recvfrom(FRAME_BYTES)
            if kind == PACKET_OUTGOING or rng.random() < LOSS or len(late) >= MOST_FRAMES:
                continue
            count += 1
            due = time.monotonic() + rng.uniform(MEAN_S - SPREAD_S, MEAN_S + SPREAD_S)
            heapq.heappush(late, (due, count, frame, target))
        while late and late[0][0] <= time.monotonic():
            _, _, frame, target = heapq.heappop(late)
            with contextlib.suppress(OSError):  # an interface that is down: the frame is lost
                target.send(frame)


if __name__ == "__main__":
    main(sys.argv[1:])
