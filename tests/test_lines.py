"""Whole files, without a cluster: how lines are packed, and what becomes of a pack that fails or was half written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dolmetsch.errors import DolmetschError, JobFailed
from dolmetsch.lines import PACK_CHARS, PACK_LINES, WINDOW, Line, LineRun, Order, Pack, file_packs, packs
from dolmetsch.messages import Answer, JobSpec

ORDER = Order(route="de→en", tenant="somebody", deadline_s=60.0, run_id="run")


class Desk:
    """Takes jobs as a client does and answers at once: each text in capitals, but a job with "bad" in it fails."""

    def __init__(self, code: str = "engine_error") -> None:
        self.code = code
        self.specs: list[JobSpec] = []
        self.acked: list[bytes] = []

    def submit(self, spec: JobSpec, on_end: Callable[[Answer | DolmetschError], None]) -> None:
        self.specs.append(spec)
        bad = any("bad" in text for text in spec.texts)
        texts = None if bad else tuple([text.upper() for text in spec.texts])
        answer = Answer(spec.job_id, texts, self.code if bad else "", "", "echo", 1, False, 1, b"")
        asyncio.get_running_loop().call_soon(on_end, answer)

    def ack(self, job_id: bytes) -> None:
        self.acked.append(job_id)


def run(desk: Desk, lines: list[str], after: int = 0, early: dict[bytes, Answer] | None = None) -> list[Line]:
    written: list[Line] = []

    async def some() -> AsyncIterator[Pack]:
        for pack in packs(enumerate(lines, 1)):
            if pack[-1][0] > after:
                yield pack

    line_run = LineRun(desk, ORDER, written.extend, {} if early is None else early, after)  # type: ignore[arg-type]
    asyncio.run(asyncio.wait_for(line_run.run(some()), 10))
    return written


def texts(written: list[Line]) -> list[str]:
    return [line.answer.texts[0] if line.answer and line.answer.texts else "" for line in written]


@given(st.lists(st.sampled_from(["", " ", "kurz", "x" * 300, "y" * 900]), max_size=100))
def test_packs_hold_all_lines_in_order_and_are_small(lines: list[str]) -> None:
    made = list(packs(enumerate(lines, 1)))
    assert [line for pack in made for line in pack] == list(enumerate(lines, 1))
    for pack in made:
        filled = [text for _, text in pack if text.strip()]
        assert len(filled) <= PACK_LINES
        assert sum(map(len, filled)) <= PACK_CHARS or len(filled) == 1


def test_blank_lines_without_end_are_packed_too() -> None:
    assert [len(pack) for pack in packs((number, "") for number in range(2 * WINDOW + 1))] == [WINDOW, WINDOW, 1]


def test_short_lines_go_as_one_job_and_come_back_as_lines() -> None:
    desk = Desk()
    written = run(desk, [f"line {number}" if number % 5 else "" for number in range(1, 41)])
    assert [line.number for line in written] == list(range(1, 41))
    assert texts(written) == [f"LINE {number}" if number % 5 else "" for number in range(1, 41)]
    assert [len(spec.texts) for spec in desk.specs] == [16, 16]
    assert desk.acked == [spec.job_id for spec in desk.specs]


def test_of_a_pack_that_fails_only_the_lines_at_fault_are_not_translated() -> None:
    desk = Desk()
    written = run(desk, ["eins", "bad", "", "drei"])
    assert texts(written) == ["EINS", "", "", "DREI"]
    assert [line.number for line in written if line.error] == [2]
    assert [spec.texts for spec in desk.specs] == [("eins", "bad", "drei"), ("eins",), ("bad",), ("drei",)]
    assert sorted(desk.acked) == sorted(spec.job_id for spec in desk.specs)


def test_of_a_pack_that_fails_what_is_written_already_is_not_translated_once_more() -> None:
    desk = Desk()
    assert texts(run(desk, ["eins", "bad", "drei"], after=1)) == ["", "DREI"]
    assert [spec.texts for spec in desk.specs] == [("eins", "bad", "drei"), ("bad",), ("drei",)]
    assert sorted(desk.acked) == sorted(spec.job_id for spec in desk.specs)


def test_a_pack_whose_time_is_over_is_not_tried_again_line_by_line() -> None:
    desk = Desk("deadline")
    written = run(desk, ["eins", "bad"])
    assert [isinstance(line.error, JobFailed) for line in written] == [True, True]
    assert len(desk.specs) == len(desk.acked) == 1


def test_a_run_that_goes_on_within_a_pack_writes_no_line_twice_and_asks_for_the_same_job() -> None:
    first = Desk()
    lines = [f"line {number}" for number in range(1, 13)]
    run(first, lines)
    for after in range(len(lines)):
        again = Desk()
        written = run(again, lines, after)
        assert [line.number for line in written] == list(range(after + 1, len(lines) + 1))
        assert [spec.job_id for spec in again.specs] == [spec.job_id for spec in first.specs][after // PACK_LINES :]
        assert again.acked == [spec.job_id for spec in again.specs]


def test_what_was_finished_meanwhile_is_not_asked_for_again() -> None:
    lines = ["eins", "", "drei"]
    job_id = ORDER.job_id([(1, "eins"), (3, "drei")])
    for after in range(3):
        desk = Desk()
        early = {job_id: Answer(job_id, ("ONE", "THREE"), "", "", "echo", 1, False, 1, b"")}
        assert texts(run(desk, lines, after, early)) == ["ONE", "", "THREE"][after:]
        assert (desk.specs, desk.acked) == ([], [job_id])
    early = {job_id: Answer(job_id, ("ONE", "THREE"), "", "", "echo", 1, False, 1, b"")}
    assert run(desk := Desk(), lines, 3, early) == []
    assert (desk.specs, desk.acked) == ([], [job_id])


def test_a_file_goes_on_with_the_pack_of_its_next_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("".join(f"line {number}\n" for number in range(1, 41)))

    async def firsts(after: int) -> list[int]:
        return [pack[0][0] async for pack in file_packs(tmp_path / "in", after)]

    found = [asyncio.run(firsts(after)) for after in (0, 15, 16, 39, 40)]
    assert found == [[1, 17, 33], [1, 17, 33], [17, 33], [33], []]
