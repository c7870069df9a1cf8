"""Celery with Redis: the task, and the driver of its rounds.

Settings as its guide to optimizing says for many short tasks: a large prefetch multiplier, no rate limits, no events; a
pool of two processes; acks_late, so that a task survives its worker.
"""

import os

import driver
from celery import Celery, group

app = Celery("celery_peer", broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=128,
    worker_concurrency=2,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    result_expires=600,
    broker_connection_retry_on_startup=True,
)
AT_ONCE = 1000  # a group: its results come over one subscription


@app.task(name="echo")
def echo(text):
    return text


def run(texts):
    results = [
        group(echo.s(text) for text in texts[start : start + AT_ONCE]).apply_async()
        for start in range(0, len(texts), AT_ONCE)
    ]
    answers = []
    for result in results:
        answers += result.join_native(timeout=300)
        result.forget()
    return answers


if __name__ == "__main__":
    driver.serve(run)
