"""ipyparallel: two engines, its fastest scheduler (pure ZeroMQ, in C), one task a text; nothing is kept on disk."""

import os

import driver
import ipyparallel


def echo(text):
    return text


def main():
    cluster = ipyparallel.Cluster(
        n=2,
        profile_dir=os.environ["PEER_FOLDER"],
        controller_args=["--scheme=pure"],
        log_level=40,
    )
    with cluster as client:
        client.wait_for_engines(2, timeout=60)
        view = client.load_balanced_view()
        driver.serve(lambda texts: view.map_async(echo, texts, chunksize=1).get(timeout=300))


if __name__ == "__main__":
    main()
