"""Dramatiq with Redis: the actor, and the driver of its rounds. A message is acked once its actor has returned."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=os.environ["PEER_REDIS"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["PEER_REDIS"]), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor
def echo(text):
    return text


def run(texts):
    messages = [echo.send(text) for text in texts]
    return [message.get_result(block=True, timeout=300_000) for message in messages]


if __name__ == "__main__":
    import driver

    driver.serve(run)
