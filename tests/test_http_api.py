"""The HTTP API by itself: every field, every refusal, every limit; a translator of the tests' own behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dolmetsch import httpapi
from dolmetsch.apikeys import Allowance, Keys
from dolmetsch.calls import Work
from dolmetsch.config import HttpConfig
from dolmetsch.detect import Detector
from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, LedgerError, LocalError, NoBroker, RemoteError
from dolmetsch.html import Page
from dolmetsch.httpapi import Api, Reply
from dolmetsch.httpspec import Request, address_of
from dolmetsch.messages import Answer
from dolmetsch.reports import Route

GERMAN = "Guten Morgen, wie geht es dir?"
ROUTES = tuple(Route(route, "m") for route in ("de→en", "de→fr", "en→pb"))


class Fake:
    """Translates by shouting, and notes what it was asked."""

    def __init__(self) -> None:
        self.routes = ROUTES
        self.trouble = ""
        self.works: list[Work] = []
        self.deadline_s = 0.0
        self.error: Exception | None = None
        self.leave = asyncio.Event()
        self.leave.set()

    async def translate(self, works: Sequence[Work], *, deadline_s: float, since: float | None = None) -> list[Answer]:
        assert since is not None
        self.works += works
        self.deadline_s = deadline_s
        await asyncio.wait_for(self.leave.wait(), 10)
        if self.error is not None:
            raise self.error
        return [Answer(b"", tuple(self._all(work)), "", "", "m", 1, False, 1, b"") for work in works]

    def _all(self, work: Work) -> Iterator[str]:
        for rank in range(1 + work.alternatives):
            for text in work.texts:
                yield text.upper() + "!" * min(rank, 2)  # the second alternative is the third as well


class Said:
    """A reply, read."""

    def __init__(self, reply: Reply) -> None:
        self.status, self.headers, self.body = reply

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """Asks the API as a server would."""

    def __init__(self, folder: Path, detector: Detector, **config: Any) -> None:
        self.translator = Fake()
        self.keys = Keys(folder / "keys.sqlite3")
        self.api = Api(HttpConfig(**config), self.translator, self.keys, detector)
        self.loop = asyncio.Runner()

    def close(self) -> None:
        self.loop.close()
        self.api.__exit__(None, None, None)
        self.keys.close()

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "", address: str = "192.0.2.1") -> Said:
        return self.loop.run(self.ask(method, path, body, kind, address))

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "", address: str = "192.0.2.1") -> Said:
        path, _, query = path.partition("?")
        reply = await self.api.answer(Request(method, path, query.encode("latin-1"), kind, body, address))
        assert reply.headers["Access-Control-Allow-Origin"] == "*", "every answer can be read by a page"
        return Said(reply)

    def post(self, path: str = "/translate", **fields: Any) -> Said:
        return self.call("POST", path, json.dumps(fields).encode(), "application/json")

    def form(self, fields: Any, path: str = "/translate") -> Said:
        return self.call("POST", path, urlencode(fields, doseq=True).encode(), "application/x-www-form-urlencoded")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture
def make(tmp_path: Path, detector: Detector) -> Iterator[Callable[..., Site]]:
    """Sites with a configuration of the test's own."""
    sites: list[Site] = []

    def made(**config: Any) -> Site:
        sites.append(Site(tmp_path, detector, **config))
        return sites[-1]

    yield made
    for site in sites:
        site.close()


@pytest.fixture
def site(make: Callable[..., Site]) -> Site:
    return make(per_minute=0, chars_per_minute=0)


def assert_refused(reply: Said, status: int, words: str = "") -> None:
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert words in reply.json["error"]
    assert reply.headers["Content-Type"] == "application/json"
    assert ("Retry-After" in reply.headers) == (status in (429, 503))


# ---- translate ----


def test_a_text_by_json_by_form_by_multipart_and_by_query(site: Site) -> None:
    fields = {"q": GERMAN, "source": "de", "target": "en"}
    multipart = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    replies = [
        site.post(**fields),
        site.call("POST", "/translate", json.dumps(fields).encode(), "application/json; charset=utf-8"),
        site.call("POST", "/translate", json.dumps(fields).encode(), "application/vnd.api+json"),
        site.form(fields),
        site.call("POST", "/translate", f"{multipart}--x--\r\n".encode(), "multipart/form-data; boundary=x"),
        site.call("POST", f"/translate?{urlencode(fields)}"),
        site.call("POST", "/translate?source=de&target=en", urlencode({"q": GERMAN}).encode()),
        site.call("POST", "/translate", f"q={GERMAN}&source=de&target=en".encode()),
    ]
    for reply in replies:
        assert (reply.status, reply.json) == (200, {"translatedText": GERMAN.upper()})
    works = {work._replace(texts=()) for work in site.translator.works}
    assert works == {Work("de→en", (), "http:ip:192.0.2.1", 0, 1)}, "in the bulk lane"
    assert site.translator.deadline_s == 60.0


def test_a_list_is_a_job_a_text_and_what_has_no_words_is_none(site: Site) -> None:
    q = ["Eins", "", "12 🙂", "Zwei\nDrei"]
    assert site.post(q=q, source="de", target="en").json == {"translatedText": ["EINS", "", "12 🙂", "ZWEI\nDREI"]}
    assert [work.texts for work in site.translator.works] == [("Eins",), ("Zwei\nDrei",)]
    assert site.form({"q": ["a", "b"], "source": "de", "target": "en"}).json == {"translatedText": ["A", "B"]}
    assert site.post(q=["a"], source="de", target="en").json == {"translatedText": ["A"]}


def test_line_ends_of_forms_are_those_of_texts(site: Site) -> None:
    assert site.form({"q": "a\r\nb", "source": "de", "target": "en"}).json == {"translatedText": "A\nB"}


def test_alternatives_are_those_that_differ(site: Site) -> None:
    reply = site.post(q="eins", source="de", target="en", alternatives=3).json
    assert reply == {"translatedText": "EINS", "alternatives": ["EINS!", "EINS!!"]}
    reply = site.post(q=["eins", "2", "drei"], source="de", target="en", alternatives="1").json
    assert reply["alternatives"] == [["EINS!"], [], ["DREI!"]]
    assert "alternatives" not in site.post(q="eins", source="de", target="en", alternatives=-1).json
    assert site.post(q="<p>x</p>", source="de", target="en", format="html", alternatives=1).json["alternatives"] == []


def test_pages_keep_their_tags_and_are_jobs_of_many_texts(site: Site) -> None:
    page = "<p>Das ist <b>gut</b> &amp; schön.</p>"
    reply = site.post(q=page, source="de", target="en", format="html").json
    assert reply == {"translatedText": "<p>DAS IST <b>GUT</b> &amp; SCHÖN.</p>"}
    site.translator.works.clear()
    many = "".join(f"<p>Absatz {number}a</p>" for number in range(100)) + f"<p>{'lang ' * 500}</p>"
    reply = site.post(q=[many, page], source="de", target="en", format="html").json
    assert reply["translatedText"][0].count("ABSATZ") == 100
    assert reply["translatedText"][1].startswith("<p>DAS IST")
    assert [len(work.texts) for work in site.translator.works] == [64, 36, 1, 2]


def test_a_page_keeps_nobody_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is taken apart, others are answered."""
    begun, leave = threading.Event(), threading.Event()

    def slow(text: str, language: str) -> Page:
        begun.set()
        assert leave.wait(10)
        return Page(text, language)

    monkeypatch.setattr(httpapi, "Page", slow)
    page = json.dumps({**GOOD, "q": "<p>Haus</p>", "format": "html"}).encode()

    async def ask() -> None:
        asked = asyncio.create_task(site.ask("POST", "/translate", page, "application/json"))
        assert await asyncio.to_thread(begun.wait, 10)
        assert (await site.ask("GET", "/health")).status == 200
        leave.set()
        assert (await asked).json == {"translatedText": "<p>HAUS</p>"}

    site.loop.run(ask())


@pytest.mark.parametrize(
    ("q", "target", "answer", "language"),
    [
        (GERMAN, "en", GERMAN.upper(), "de"), ("Good morning, how are you?", "en", None, "en"),
        ("Good morning, how are you?", "pt-br", "GOOD MORNING, HOW ARE YOU?", "en"), ("123", "en", None, "en"),
        ("OK", "fr", None, "en"),
    ],
)  # fmt: skip
def test_auto(site: Site, q: str, target: str, answer: str | None, language: str) -> None:
    reply = site.post(q=q, source="auto", target=target).json
    assert reply["translatedText"] == (answer or q)
    assert reply["detectedLanguage"]["language"] == language
    assert (reply["detectedLanguage"]["confidence"] > 50) == any(len(word) > 3 for word in q.split())
    reply = site.post(q=[q, q], source="AUTO", target=target).json
    assert [one["language"] for one in reply["detectedLanguage"]] == [language] * 2


def test_auto_of_a_page_looks_at_its_words(site: Site) -> None:
    page = "<article class='the house and the garden of the people'>Das ist ein schönes Haus</article>"
    reply = site.post(q=page, source="auto", target="en", format="html").json
    assert reply["detectedLanguage"]["language"] == "de"


def test_codes_in_any_case_and_of_either_kind(site: Site) -> None:
    for target in ("pb", "PB", "pt-BR", "pt-br"):
        assert site.post(q="house", source="EN", target=target).json == {"translatedText": "HOUSE"}
    assert {work.route for work in site.translator.works} == {"en→pb"}
    assert site.post(q="Haus", source="de", target="de").json == {"translatedText": "Haus"}


# ---- what is refused ----

GOOD = {"q": GERMAN, "source": "de", "target": "en"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": None}, "missing q"), ({"q": ""}, "missing q"), ({"q": []}, "missing q"), ({"q": 5}, "q is a text"),
        ({"q": [5]}, "q is a text"), ({"q": {"a": 1}}, "q is a text"), ({"q": [[]]}, "q is a text"),
        ({"source": None}, "missing source"), ({"target": ""}, "missing target"), ({"source": ["de"]}, "language code"),
        ({"source": "xx"}, "xx is not supported"), ({"target": "xx"}, "xx is not supported"),
        ({"source": "en", "target": "de"}, "English to German is not available"),
        ({"q": "Good morning to all of you", "source": "auto", "target": "de"}, "English to German is not available"),
        ({"format": "xml"}, "format"), ({"format": {}}, "format"), ({"alternatives": 4}, "alternatives must be <= 3"),
        ({"alternatives": "x"}, "not a number"), ({"alternatives": True}, "not a number"),
        ({"alternatives": [1]}, "not a number"), ({"alternatives": "9" * 5000}, "not a number"),
        ({"alternatives": 1.5}, "not a number"), ({"q": "x" * 20_001}, "request (20001) exceeds text limit (20000)"),
        ({"q": ["x"] * 257}, "request (257) exceeds text limit (256)"), ({"q": "\ud800"}, "JSON"),
    ],
)  # fmt: skip
def test_fields_that_are_wrong(site: Site, change: dict[str, Any], words: str) -> None:
    assert_refused(site.post(**(GOOD | change)), 400, words)
    assert site.translator.works == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"), (b"{", "application/json"), (b"[]", "application/json"), (b"5", "application/json"),
        (b'{"q": "\xff"}', "application/json"), (b"[" * 100_000, "application/json"),
        (b"q=%ff&source=de&target=en", ""), (b"q=\xff", ""), (b"q=a&" * 6000, ""), (b"", ""),
        (b"--x", "multipart/form-data; boundary=x"), (b"--x", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\n\\ud800\r\n--x--\r\n',
         "multipart/form-data; boundary=x; charset=unicode_escape"),
        (b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\nx\r\n--x--\r\n',
         "multipart/form-data; boundary=x; charset=nonsense"),
        (b'--x\r\nContent-Disposition: form-data; name="q"; filename="a"\r\n\r\nx\r\n--x--\r\n',
         "multipart/form-data; boundary=x"),
    ],
)  # fmt: skip
def test_bodies_that_are_wrong(site: Site, body: bytes, kind: str) -> None:
    assert_refused(site.call("POST", "/translate", body, kind), 400, "Invalid request")
    assert_refused(site.call("POST", "/detect", body, kind), 400, "Invalid request")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60) | st.from_regex(rb"\{\"q\": .{0,20}\}"),
    st.sampled_from(["application/json", "", "multipart/form-data; boundary=x", "x", "multipart/form-data; charset=x"])
    | st.text(st.characters(max_codepoint=255), max_size=20),
    st.text(st.characters(max_codepoint=255), max_size=20), st.sampled_from(["/translate", "/detect", "/", "/x"]),
)  # fmt: skip
def test_whatever_comes_is_answered(site: Site, body: bytes, kind: str, query: str, path: str) -> None:
    reply = site.call("POST", f"{path}?{query}", body, kind)
    assert reply.status in (200, 400, 404, 405)
    assert reply.json


def test_paths_and_methods(site: Site) -> None:
    assert_refused(site.call("GET", "/nowhere"), 404)
    assert_refused(site.call("GET", "/translate"), 405)
    assert "POST" in site.call("GET", "/translate").headers["Allow"]
    assert_refused(site.call("POST", "/translate_file"), 403, "files")
    assert_refused(site.call("POST", "/suggest"), 403, "suggestions")


def test_preflight(site: Site) -> None:
    for path in ("/translate", "/detect", "/languages"):
        reply = site.call("OPTIONS", path)
        assert (reply.status, reply.body) == (200, b"")
        assert "POST" in reply.headers["Access-Control-Allow-Methods"]
        assert "Content-Type" in reply.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (JobRejected("overloaded", "try again in 2.5 s", 2.5), 429, "3"), (JobRejected("overloaded", "full"), 429, "1"),
        (JobRejected("draining", "stopping", 5.0), 503, "5"), (JobFailed("draining", "stopping", 0), 503, "5"),
        (JobRejected("unknown_route", "no node offers it"), 400, None),
        (JobRejected("bad_text", "no Unicode"), 400, None),
        (JobFailed("deadline", "no result within 60 s", 0), 504, None),
        (JobFailed("degenerate_output", "the model repeated itself", 3), 502, None),
        (NoBroker("tcp://192.0.2.9:5570", 5.0), 503, "5"), (RemoteError("refused", "wrong version"), 503, "5"),
        (LedgerError("disk full"), 503, "5"), (LocalError("a secret text"), 500, None),
        (KeyError("a secret text"), 500, None),
    ],
)  # fmt: skip
def test_what_goes_wrong_behind(
    site: Site, error: Exception, status: int, retry: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    site.translator.error = error
    with caplog.at_level(logging.DEBUG):
        reply = site.post(**GOOD)
    assert reply.status == status
    assert reply.headers.get("Retry-After") == retry
    assert "192.0.2.9" not in reply.json["error"], "addresses within are nobody's business"
    assert "secret" not in caplog.text + reply.json["error"]
    assert GERMAN not in caplog.text
    assert isinstance(error, DolmetschError) or "KeyError at" in caplog.text


# ---- what there is ----


def test_languages(site: Site) -> None:
    assert site.call("GET", "/languages").json == [
        {"code": "en", "name": "English", "targets": ["en", "pt-BR"]},
        {"code": "fr", "name": "French", "targets": ["fr"]},
        {"code": "de", "name": "German", "targets": ["de", "en", "fr"]},
        {"code": "pt-BR", "name": "Portuguese (Brazil)", "targets": ["pt-BR"]},
    ]


def test_routes_that_come_and_go(site: Site) -> None:
    assert site.call("GET", "/health").json == {"status": "ok"}
    assert site.post(**GOOD).status == 200
    site.translator.routes = (Route("de→fr", "m"), Route("en→fr", "m"))
    assert_refused(site.post(**GOOD), 503, "German to English at this moment")
    assert site.post(**(GOOD | {"target": "fr"})).status == 200
    site.translator.routes = ()
    for reply in (site.post(**GOOD), site.call("GET", "/languages"), site.call("GET", "/health"),
                  site.post("/detect", q="x")):  # fmt: skip
        assert_refused(reply, 503, "no node is there")
    assert site.call("GET", "/frontend/settings").json["language"]["target"]["code"] == "en"
    assert site.call("GET", "/spec").status == 200
    site.translator.routes, site.translator.trouble = ROUTES, "the broker does not answer"
    assert_refused(site.call("GET", "/health"), 503, "the broker does not answer")


def test_detect(site: Site) -> None:
    assert site.post("/detect", q=GERMAN).json[0]["language"] == "de"
    assert site.form({"q": GERMAN}, "/detect").json[0]["confidence"] > 90
    assert site.post("/detect", q=["Guten", "Morgen ihr Lieben"]).json[0]["language"] == "de"
    assert site.post("/detect", q="123").json == [{"confidence": 0.0, "language": "en"}]
    assert_refused(site.post("/detect"), 400, "missing q")


def test_settings_and_pages(make: Callable[..., Site]) -> None:
    site = make(char_limit=500)
    assert site.call("GET", "/frontend/settings").json == {
        "charLimit": 500, "frontendTimeout": 500, "apiKeys": False, "keyRequired": False, "suggestions": False,
        "filesTranslation": False, "supportedFilesFormat": [],
        "language": {"source": {"code": "auto", "name": "Auto Detect"}, "target": {"code": "en", "name": "English"}},
    }  # fmt: skip
    site.keys.add("a", Allowance(1, 1))
    assert site.call("GET", "/frontend/settings").json["apiKeys"] is True
    index = site.call("GET", "/")
    assert index.status == 200
    assert "/translate" in index.body.decode()
    assert site.call("HEAD", "/").status == 200
    spec = site.call("GET", "/spec").json
    assert b"$fill" not in msgspec.json.encode(spec)
    request = spec["components"]["schemas"]["TranslateRequest"]["properties"]
    assert request["source"]["enum"] == ["auto", "de", "en", "fr", "pt-BR"]
    assert request["q"]["oneOf"][0]["maxLength"] == 500


# ---- who asks, and for how much ----


def test_keys_where_they_are_optional(make: Callable[..., Site]) -> None:
    site = make(per_minute=1)
    assert site.post(**GOOD, api_key="from elsewhere").status == 200, "where nobody has a key, one does no harm"
    assert_refused(site.post(**GOOD, api_key="from elsewhere"), 429, "1 requests")
    key = site.keys.add("anna", Allowance(2, 0))
    assert_refused(site.post(**GOOD, api_key="from elsewhere"), 403, "Invalid API key")
    assert_refused(site.post(**GOOD, api_key=["x"]), 400, "api_key")
    assert site.post(**GOOD, api_key=key).status == 200
    assert site.form({**GOOD, "api_key": key}).status == 200
    reply = site.post("/detect", q="x", api_key=key)
    assert_refused(reply, 429, "2 requests")
    assert 59 <= int(reply.headers["Retry-After"]) <= 61
    assert [work.tenant for work in site.translator.works] == ["http:ip:192.0.2.1", "http:key:anna", "http:key:anna"]
    site.keys.remove("anna")
    site.keys.add("bert", Allowance(1, 1))
    assert_refused(site.post(**GOOD, api_key=key), 403)


def test_keys_where_they_are_needed(make: Callable[..., Site]) -> None:
    site = make(require_key=True)
    assert_refused(site.post(**GOOD), 400, "an API key is needed")
    assert_refused(site.post("/detect", q="x"), 400, "an API key is needed")
    assert_refused(site.post(**GOOD, api_key="x"), 403)
    assert site.post(**GOOD, api_key=site.keys.add("a", Allowance(0, 0))).status == 200
    assert site.call("GET", "/languages").status == 200
    assert site.call("GET", "/frontend/settings").json["keyRequired"] is True
    site.keys.close()
    assert_refused(site.post(**GOOD, api_key="x"), 503, "keys")


def test_requests_and_characters_of_an_address(make: Callable[..., Site]) -> None:
    site = make(per_minute=3, chars_per_minute=2 * len(GERMAN))
    assert [site.post(**GOOD).status for _ in range(3)] == [200, 200, 429]
    assert_refused(site.post(**GOOD), 429, f"3 requests or {2 * len(GERMAN)} characters")
    body = json.dumps(GOOD).encode()
    assert site.call("POST", "/translate", body, "application/json", "192.0.2.2").status == 200
    assert [site.call("GET", "/languages").status for _ in range(10)] == [200] * 10


def test_too_many_at_once(make: Callable[..., Site]) -> None:
    site = make(concurrent=2)
    body = json.dumps(GOOD).encode()

    async def ask() -> Said:
        return await site.ask("POST", "/translate", body, "application/json")

    async def ask_all() -> None:
        site.translator.leave.clear()
        asked = [asyncio.create_task(ask()) for _ in range(2)]
        async with asyncio.timeout(10):
            while len(site.translator.works) < 2:
                await asyncio.sleep(0)
        assert_refused(await ask(), 429, "at once")
        assert (await site.ask("GET", "/health")).status == 200
        site.translator.leave.set()
        assert [one.status for one in await asyncio.gather(*asked)] == [200, 200]
        assert (await ask()).status == 200

    site.loop.run(ask_all())


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"), ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.7, 203.0.113.9, 10.0.0.2", "203.0.113.9"), ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1"), ("10.0.0.1", "x" * 500, "unknown"),
        ("10.0.0.1", "203.0.113.9, ", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"), ("::ffff:192.0.2.1", "", "192.0.2.1"), ("", "", "unknown"),
    ],
)  # fmt: skip
def test_whose_address_is_believed(remote: str, forwarded: str, address: str) -> None:
    request = Request("GET", "/", address=remote, forwarded=forwarded)
    assert address_of(request, ("10.0.0.1", "10.0.0.2")) == address
