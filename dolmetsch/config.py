"""Configuration: defaults <- TOML file <- environment <- flags, as frozen structs.

Every key is documented here, with its unit, and nowhere else; ``python broker.py --show-config`` and
``python node.py --show-config`` print them. Parsing, types and ranges are msgspec's work.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


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
        float, Meta(ge=0.1, le=600, description="seconds of silence after which a peer is lost")
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
        int, Meta(ge=1, le=1000, description="leases, lost nodes included, after which a job is a dead letter")
    ] = 10
    bulk_age_s: Annotated[
        float, Meta(ge=0, le=86400, description="seconds after which a waiting bulk job gets its share")
    ] = 10.0
    resend_s: Annotated[
        float, Meta(ge=0.05, le=600, description="seconds before an unacked result is sent again")
    ] = 2.0
    result_ttl_s: Annotated[
        float, Meta(ge=1, description="seconds a result waits for its gateway before it is given up")
    ] = 86_400.0
    dead_ttl_s: Annotated[
        float, Meta(ge=1, description="seconds a dead letter is kept, with its text")
    ] = 86_400.0
    max_dead: Annotated[
        int, Meta(ge=0, le=1_000_000, description="dead letters kept; the oldest goes first")
    ] = 1_000
    max_settled: Annotated[
        int, Meta(ge=0, le=10_000_000, description="ids of settled jobs remembered, so that none is done twice")
    ] = 50_000


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a child translates."""

    beam_size: Annotated[
        int, Meta(ge=1, le=16, description="hypotheses kept while decoding; 1 is fastest")
    ] = 2
    batch_tokens: Annotated[
        int, Meta(ge=32, le=16384, description="tokens in one batch, padding counted")
    ] = 512
    compute_type: Annotated[
        str, Meta(description="CTranslate2 compute type: default, int8, int8_float32, float32, ...")
    ] = "default"


class PoolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a node runs its children."""

    min_workers: Annotated[int, Meta(ge=1, le=256, description="children kept at all times")] = 1
    max_workers: Annotated[
        int, Meta(ge=0, le=256, description="children at most; 0: one for each allowed core")
    ] = 0
    cores: Annotated[
        tuple[int, ...], Meta(description="cores children are pinned to; empty: all this process may use")
    ] = ()
    job_limit_s: Annotated[
        float, Meta(gt=0, le=3600, description="seconds a child may go without progress before it is killed")
    ] = 30.0
    idle_s: Annotated[
        float, Meta(ge=0, le=86400, description="seconds an idle child above min_workers is kept warm")
    ] = 300.0
    max_cpu: Annotated[
        float, Meta(gt=0, le=100, description="percent: no child is added on a core busier than this")
    ] = 85.0
    max_ram: Annotated[
        float, Meta(gt=0, le=100, description="percent: no child is added above this, idle ones end")
    ] = 85.0
