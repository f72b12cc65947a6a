"""Teachers: what leaves the machine, what a hostile server can do, replicas, the budget, stages and repairs."""

import asyncio
import io
import json
import socket
import time
from email.utils import formatdate

import fake_server
import httpx2
import pytest
import torch
from fake_server import Reply, Server, answer, edit, good, good_chain, pictures, stage, texts
from PIL import Image

from cir_cot.chains import openai_client
from cir_cot.chains.answers import scores, without_fence, without_thinking
from cir_cot.chains.budget import Budget, BudgetSpent
from cir_cot.chains.conversation import verify, write_chain
from cir_cot.chains.openai_messages import Failure, answer_text, billed_tokens, content, retry_after
from cir_cot.chains.openai_teacher import OpenAITeacher
from cir_cot.chains.teacher import Answer, Plan, Unanswered, encode_jpeg
from cir_cot.chains.transformers_teacher import TransformersTeacher
from cir_cot.errors import InputError
from cir_cot.images import decode
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.prompts import PARTS
from cir_cot.records import Cot, Record

RECORD = Record(
    "1", "ref", "is red with <|im_end|> dots", ("tgt",), teacher={"model": "m", "key": "k"}
)
KEY = "sk-secret-of-the-test"
REFERENCE = encode_jpeg(Image.new("RGB", (40, 30), "red"), 10**6)
TARGET = encode_jpeg(Image.new("RGB", (40, 30), "blue"), 10**6)


def teacher_of(*urls: str, **options) -> OpenAITeacher:
    teacher = OpenAITeacher("m", urls, **{"key": KEY, "retries": 2, "timeout": 20.0} | options)
    teacher.backoff = 0.01
    return teacher


def ask(
    *urls: str, record: Record = RECORD, plan: Plan | None = None, **options
) -> tuple[Record, bool]:
    async def run():
        teacher = teacher_of(*urls, **options)
        try:
            return await write_chain(teacher, record, plan or Plan(), REFERENCE, TARGET)
        finally:
            await teacher.close()

    return asyncio.run(run())


def refused(*urls: str, **options) -> Unanswered:
    with pytest.raises(Unanswered) as error:
        ask(*urls, **options)
    return error.value


# What leaves the machine.


def test_a_picture_is_sent_small_and_without_any_metadata():
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = "camera of a user", "name of a user"
    file = io.BytesIO()
    photo = Image.effect_noise((600, 400), 60).convert("RGB")
    photo.save(
        file, "JPEG", exif=exif, comment=b"comment of a user", icc_profile=b"profile of a user"
    )
    assert file.getvalue().count(b" of a user") == 4
    sent = encode_jpeg(decode(file.getvalue(), "x"), 400 * 400)
    assert b"of a user" not in sent.jpeg
    assert b"Exif" not in sent.jpeg
    shape = Image.open(io.BytesIO(sent.jpeg)).size
    assert shape[0] * shape[1] == sent.pixels <= 400 * 400
    assert (shape[0] % 28, shape[1] % 28) == (
        0,
        0,
    )  # whole visual tokens, which a server does not resize again
    assert shape[0] / shape[1] == pytest.approx(1.5, rel=0.05)
    assert encode_jpeg(photo, 10**6).pixels == 600 * 400


def test_three_stages_each_with_what_it_may_see():
    with Server(good, keep=True) as server:
        record, repaired = ask(server.url)
    assert [stage(request) for request in server.seen] == list(PARTS)
    assert not repaired
    assert record.cot == Cot(**good_chain("is red with < |im_end|> dots", REFERENCE.jpeg))
    assert all(pictures(request) == [REFERENCE.jpeg] for request in server.seen)
    assert "is red" not in json.dumps(server.seen[0])  # the caption knows the picture alone
    assert record.cot.reasoning in texts(server.seen[2])
    assert "<|im_end|>" not in json.dumps(server.seen)
    for earlier, later in zip(
        server.seen, server.seen[1:], strict=False
    ):  # a prefix cache reads the picture once
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]


def test_the_target_is_shown_after_the_caption_and_only_where_asked():
    with Server(good, keep=True) as server:
        ask(server.url, plan=Plan(see_target=True))
        ask(server.url, plan=Plan(stages="joint", see_target=True))
    shown = [pictures(request) for request in server.seen]
    assert (
        shown
        == [[REFERENCE.jpeg], [REFERENCE.jpeg, TARGET.jpeg], [REFERENCE.jpeg, TARGET.jpeg]]
        + shown[1:2]
    )
    assert "never speak of a target" in json.dumps(server.seen[1])


def test_the_joint_stage_is_one_call_with_a_schema_of_exactly_the_three_parts():
    with Server(good, keep=True) as server:
        record, _ = ask(server.url, plan=Plan(stages="joint"))
    (request,) = server.seen
    schema = request["response_format"]["json_schema"]["schema"]
    assert request["response_format"]["type"] == "json_schema"
    assert list(schema["properties"]) == schema["required"] == list(PARTS)
    assert all(kind == {"type": "string"} for kind in schema["properties"].values())
    assert record.cot.conclusion.startswith("A garment which now is red")


def test_a_redirect_takes_no_picture_to_another_server():
    with Server(good) as other:
        moved = Reply({}, 307, {"location": f"{other.url}/chat/completions"})
        with Server(lambda request: moved) as server:
            assert refused(server.url).reason.startswith("http 307")
        assert other.requests == 0


def test_the_key_goes_to_the_server_and_nowhere_else():
    def echo(request: dict) -> Reply:
        if "refuse" in edit(request):
            return Reply({"error": f"bad key {KEY}"}, 400)
        return answer(f"{good(request).body['choices'][0]['message']['content']} {KEY}")

    with Server(echo, keep=True) as server:
        record, _ = ask(server.url)
        error = refused(server.url, record=Record("2", "r", "refuse this", ()))
    assert f"authorization: bearer {KEY}" in server.headers[0].lower()
    assert (
        "stainless" not in server.headers[0].lower()
    )  # the client would tell system, architecture, Python
    assert "[key]" in record.cot.caption
    assert "[key]" in error.reason
    assert KEY not in str(record) + str(error) + error.reason + error.raw + json.dumps(server.seen)
    with pytest.raises(InputError) as refusal:
        teacher_of("http://user:password@host/v1")
    assert "password@" not in str(refusal.value)
    with pytest.raises(InputError) as refusal:
        teacher_of(KEY)  # given as the address by mistake
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize("before", [0, 60, 75, 285, 295, 4090])
@pytest.mark.parametrize("status", [200, 400])
def test_no_half_of_a_key_is_left_where_an_error_is_cut(before, status):
    said = b"x" * before + KEY.encode() + b" is wrong"
    with Server(lambda request: Reply(said, status)) as server:
        error = refused(server.url, retries=0)
    assert not any(KEY[:length] in error.reason for length in range(4, len(KEY) + 1))


def test_the_environment_adds_no_header_and_no_proxy(monkeypatch, tmp_path):
    """What a user set for OpenAI, or for the web, is not for the server that --base-url names."""
    with Server(good, keep=True) as server, Server(good, keep=True) as proxy:
        for name in (
            "OPENAI_ORG_ID",
            "OPENAI_PROJECT_ID",
            "OPENAI_ADMIN_KEY",
            "OPENAI_WEBHOOK_SECRET",
        ):
            monkeypatch.setenv(name, "private")
        monkeypatch.setenv(
            "OPENAI_CUSTOM_HEADERS", "X-Team: private\nAuthorization: Bearer private\nHost: private"
        )
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login private password private\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in (
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        ):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        ask(server.url)
    assert proxy.requests == 0
    heads = [
        dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        for head in server.headers
    ]
    assert [head.pop("Content-Length").isdigit() for head in heads] == [True] * 3
    expected = {
        "Host": f"127.0.0.1:{server.port}",
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
    }
    assert heads == [expected] * 3


def test_a_proxy_that_is_named_is_used():
    with Server(good, keep=True) as proxy:
        ask("http://teacher.invalid/v1", proxy=f"http://127.0.0.1:{proxy.port}")
    assert proxy.headers[0].startswith("POST http://teacher.invalid/v1/chat/completions ")
    with pytest.raises(InputError, match="proxy 'host' is no") as refusal:
        teacher_of("http://host/v1", proxy="socks5://user:password@host")
    assert "password" not in str(refusal.value)


@pytest.mark.parametrize("key", ["sk-of\nthe-test", "sk-of-thé-test", "sk-\x00test"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key):
    with pytest.raises(InputError, match="OPENAI_API_KEY") as refusal:
        teacher_of("http://host/v1", key=key)
    assert "test" not in str(refusal.value)
    assert teacher_of("http://host/v1", key=f" {KEY}\n").key == KEY


# What servers do.

GOOD = good_chain("is red with dots", b"")
HOSTILE = {
    "500": (lambda r: Reply({"error": "broken"}, 500), "http 500", 3),
    "400": (lambda r: Reply({"error": "too long"}, 400), "http 400", 1),
    "hang": (lambda r: Reply(hang=True), "timeout", 3),
    "cut": (lambda r: Reply(answer("x" * 500).body, cut=True), "connection lost", 3),
    "empty": (lambda r: Reply(b""), "not an answer", 3),
    "truncated": (lambda r: Reply(json.dumps(answer("a").body).encode()[:60]), "not an answer", 3),
    "no choices": (lambda r: Reply({"choices": []}), "not an answer", 3),
    "no object": (lambda r: Reply([1, 2]), "not an answer", 3),
    "deep": (lambda r: Reply(b"[" * 100_000), "not an answer", 3),
    "number": (lambda r: answer(7), "not an answer", 3),
    "10 MB": (lambda r: answer("x " * 5_000_000), "too large", 3),
    "10 MB error": (lambda r: Reply("x" * 10**7, 500), "too large", 3),
    "packed": (lambda r: Reply(b"\x1f\x8b", headers={"content-encoding": "gzip"}), "too large", 3),
    "blank": (lambda r: answer(None), "blank", 9),
    "refusal": (lambda r: answer(None, refusal="I'm sorry, I cannot help."), "refusal", 9),
    "endless": (lambda r: answer("word " * 10_000), "truncated: the caption", 3),
    "cut words": (lambda r: answer("A red", finish="length"), "truncated: the caption", 3),
    "tag": (lambda r: answer("<caption>A red"), "tags", 7),
}


@pytest.mark.parametrize(("script", "reason", "tries"), HOSTILE.values(), ids=HOSTILE)
def test_every_request_ends_and_says_why(script, reason, tries):
    with Server(script) as server:
        error = refused(server.url, timeout=1.0 if reason == "timeout" else 20.0)
    assert error.reason.startswith(reason)
    assert len(error.reason) < 500
    assert (error.tries, server.requests) == (tries, tries)


WORDY = {name: "word " * 900 for name in ("caption", "reasoning", "conclusion")}
ANSWERS = {  # what a teacher says -> the reason in a joint stage
    "400 KB": (
        json.dumps(GOOD | {"caption": "word " * 80_000}),
        "truncated: the answer goes beyond 1024 tokens",
    ),
    "a long caption": (
        json.dumps(GOOD | {"caption": "word " * 900}),
        "truncated: the caption goes beyond 256 tokens",
    ),
    "long parts": (json.dumps(WORDY), "truncated: the caption"),
    "cut JSON": (json.dumps(GOOD)[:-2], "json"),
    "two objects": (json.dumps(GOOD) * 2, "json"),
    "nested lists": ("[" * 16_000, "json"),
    "nested objects": ('{"caption":' * 1_400, "json"),
    "NUL in a part": (
        json.dumps(GOOD | {"caption": "A dress\0"}),
        "json: the answer: 'caption' holds a NUL",
    ),
    "NUL behind": (json.dumps(GOOD) + "\0", "json"),
    "half a surrogate": (
        json.dumps(GOOD | {"caption": "A \ud800 dress"}),
        "json: the answer: holds half",
    ),
    "half a surrogate as a key": (
        json.dumps(GOOD | {"\udfff": "x"}),
        "json: the answer: holds half",
    ),
    "a token in a part": (
        json.dumps(GOOD | {"caption": "A dress <|im_end|>"}),
        "tags: the caption holds '<|im_end|>'",
    ),
    "a long token": (
        json.dumps(GOOD | {"caption": f"A <|{'x' * 900}|>"}),
        "tags: the caption holds '<|xxx",
    ),
    "tokens": ("<|im_end|>" * 1_000, "json"),
    "a key twice": (
        '{"caption": "a", ' + json.dumps(GOOD)[1:],
        "json: the answer: key 'caption' occurs twice",
    ),
    "a long key": (json.dumps(GOOD | {"x" * 9_000: ""}), "json: the answer: 'cot': unknown key"),
    "a list": (json.dumps([GOOD]), "json"),
    "null": ("null", "json"),
    "NaN": ('{"caption": NaN, ' + json.dumps(GOOD)[1:], "json"),
    "a part of lists": (
        json.dumps(GOOD | {"caption": [["x"] * 900]}),
        "json: the answer: 'caption' must be a string",
    ),
    "a part that is null": (json.dumps(GOOD | {"reasoning": None}), "json"),
    "digits": ("9" * 9_000, "json"),
    "points": ("0." * 8_000, "json"),
    "backticks": ("`" * 16_000, "json"),
    "an open fence": ("```json" + " " * 16_000 + "{", "json"),
    "a fence of nothing": ("```" + "\n" * 16_000 + "```", "json"),
    "an open <think>": ("<think>" * 2_000, "json"),
    "HTML": ("<html><body><h1>502 Bad Gateway</h1></body></html>", "json"),
    "a byte order mark": ("\ufeff" + json.dumps(GOOD), "json"),
    "nothing": ("", "json"),
    "white space": (" \n\t" * 5_000, "json"),
}


@pytest.mark.parametrize(("text", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_a_hostile_answer_is_refused_by_name_in_every_mode(text, reason):
    plans = {"joint": Plan(stages="joint", repairs=0), "separate": Plan(repairs=0)}
    ended = {}
    for mode, plan in plans.items():
        with pytest.raises(Unanswered) as error:
            asyncio.run(write_chain(Fixed(text), RECORD, plan, REFERENCE, TARGET))
        ended[mode] = error.value
    with pytest.raises(Unanswered, match="^(verifier: no score|truncated: the score)") as error:
        asyncio.run(
            verify(Fixed(text), Record("1", "r", "t", (), Cot("a", "b", "c")), REFERENCE, TARGET)
        )
    ended["score"] = error.value
    assert ended["joint"].reason.startswith(reason)
    assert all(len(one.reason) <= 400 and len(one.raw) <= 2000 for one in ended.values())
    assert all(
        one.reason.encode() for one in ended.values()
    )  # no half of a surrogate pair is in them


@pytest.mark.parametrize("plan", [Plan(stages="joint"), Plan()], ids=["joint", "separate"])
def test_an_answer_that_its_limit_cut_is_refused_in_every_mode(plan):
    text = json.dumps(GOOD) if plan.stages == "joint" else GOOD["caption"]
    with Server(lambda request: answer(text, finish="length")) as server:
        assert refused(server.url, plan=plan).reason.startswith("truncated: the ")
    cut = Fixed("0.9", complete=False)
    with pytest.raises(Unanswered, match="truncated: the score goes beyond 16 tokens"):
        asyncio.run(verify(cut, Record("1", "r", "t", (), Cot("a", "b", "c")), REFERENCE, TARGET))


def test_a_complaint_sends_back_a_bounded_piece_of_a_long_answer():
    with Server(lambda request: answer("word " * 100_000), keep=True) as server:
        refused(server.url, plan=Plan(repairs=1))
    assert len(texts(server.seen[1])[-2]) == 16 * 1024


@pytest.mark.parametrize(
    "text",
    [
        "```" + " " * 10**6 + "x",
        "`" * 10**6,
        "```" + "\n" * 10**6 + "```",
        " " * 10**6 + "```",
        "``` `" * 10**5,
    ],
)
def test_a_fence_is_found_in_linear_time(text):
    """A million letters: a pattern that tries every pair of them would take days."""
    assert len(without_fence(without_thinking(text))) <= len(text)


@pytest.mark.parametrize(
    "text", ["0." + "1" * 10**6 + "x", "9" * 10**6, "0.1" * 10**6, "." * 10**6, "1." * 10**6]
)
def test_scores_are_looked_for_in_linear_time(text):
    assert scores(text) == ([text[:-1]] if text.endswith("x") else [])


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("```json\n{}\n```", "{}"),
        ("  ```\n{}```\n", "{}"),
        ("```{}```", "{}"),
        ("{}", "{}"),
        ("```{}", "```{}"),
        ("`````", "`````"),
        ("``````", ""),
    ],
)
def test_a_fence_around_the_whole_answer_is_removed(text, inside):
    assert without_fence(text) == inside


def test_thinking_is_removed_only_where_it_ends():
    assert without_thinking(" <think>a\nb</think>\n c ") == "c"
    assert without_thinking("<think>a") == "<think>a"
    assert without_thinking("a <think>b</think> c") == "a <think>b</think> c"


def test_special_tokens_of_a_text_are_broken_up_on_the_wire():
    said = "a <|im_end|><|im_start|> b <| c"
    assert content([said]) == "a < |im_end|>< |im_start|> b < | c"
    assert content([REFERENCE, said])[1] == {"type": "text", "text": content([said])}


def test_half_a_surrogate_pair_of_a_server_becomes_a_question_mark():
    reply = answer("A \ud800 dress \udfff")
    assert answer_text(reply.body) == ("A ? dress ?", True)
    with Server(lambda request: reply if stage(request) == "caption" else good(request)) as server:
        record, _ = ask(server.url)
    assert record.cot.caption == "A ? dress ?"


LEAKS = {
    "target_image": {"reasoning": GOOD["reasoning"] + " The target image shows red dots."},
    "repetition": {"reasoning": "red dots " * 20},
    "length": {"reasoning": "Red."},
    "copied_caption": {"conclusion": GOOD["caption"]},
    "salient_word": {"conclusion": "A garment of another kind."},
    "json": {"reasoning": 5},
}


@pytest.mark.parametrize(("name", "fault"), LEAKS.items(), ids=LEAKS)
def test_a_bad_chain_is_refused_by_name_and_asked_for_again_with_the_reason(name, fault):
    def script(request: dict) -> Reply:
        return answer(json.dumps(GOOD | fault if len(request["messages"]) == 2 else GOOD))

    with Server(script, keep=True) as server:
        record, repaired = ask(server.url, plan=Plan(stages="joint"))
        assert (record.cot, repaired, server.requests) == (Cot(**GOOD), True, 2)
        assert name in texts(server.seen[1])[-1]
        error = refused(server.url, plan=Plan(stages="joint", repairs=0))
    assert error.reason.startswith(f"{name}: ")
    assert json.loads(error.raw) == GOOD | fault


def test_only_the_part_at_fault_and_what_follows_is_asked_for_again():
    asked = []

    def script(request: dict) -> Reply:
        asked.append(stage(request))
        bad = asked[-1] == "reasoning" and asked.count("reasoning") == 1
        return answer("Red.") if bad else good(request)

    with Server(script) as server:
        _, repaired = ask(server.url)
    assert asked == [*PARTS, "reasoning", "conclusion"]
    assert repaired


def test_a_busy_server_is_left_alone_as_long_as_it_asks_for():
    times = []

    def script(request: dict) -> Reply:
        times.append(time.monotonic())
        return Reply({}, 429, {"retry-after": "0.4"}) if len(times) == 1 else good(request)

    with Server(script) as server:
        ask(server.url)
    assert times[1] - times[0] >= 0.4
    assert len(times) == 4


def test_an_answer_without_usage_is_billed_by_an_estimate():
    def script(request: dict) -> Reply:
        reply = good(request)
        reply.body["usage"] = {"prompt_tokens": -5, "completion_tokens": "many"}
        return reply

    budget = Budget()
    with Server(script) as server:
        ask(server.url, budget=budget)
    assert budget.prompt_tokens > 0
    assert budget.completion_tokens > 0


# Replicas.


def test_replicas_share_the_work_and_a_dead_one_is_taken_out():
    with (
        Server(fake_server.slow(0.02, 0.1, 0)) as one,
        Server(fake_server.slow(0.02, 0.1, 1)) as two,
    ):
        with Server(good) as gone:
            dead = gone.url

        async def run() -> list:
            teacher = teacher_of(dead, one.url, two.url)
            try:
                return await asyncio.gather(
                    *(write_chain(teacher, RECORD, Plan(), REFERENCE) for _ in range(40))
                )
            finally:
                assert teacher.replicas[0].unreachable
                await teacher.close()

        assert len(asyncio.run(run())) == 40
    assert one.requests + two.requests == 120
    assert min(one.requests, two.requests) >= 40


def test_a_replica_that_only_fails_rests_and_rows_do_not_suffer():
    with (
        Server(lambda request: Reply({}, 500)) as sick,
        Server(fake_server.slow(0.01, 0.1, 0)) as well,
    ):

        async def run() -> None:
            teacher = teacher_of(sick.url, well.url, retries=5)
            teacher.backoff = 0.2
            await asyncio.gather(
                *(write_chain(teacher, RECORD, Plan(), REFERENCE) for _ in range(20))
            )
            await teacher.close()

        asyncio.run(run())
    assert well.requests == 60
    assert sick.requests < 60


def test_no_server_at_all_stops_the_job_and_blames_no_row():
    with Server(good) as gone:
        dead = gone.url

    async def run() -> None:
        teacher = teacher_of(dead)
        teacher.startup = 0.1
        await teacher.ask([("user", ["hello"])], 5)

    with pytest.raises(InputError, match="no server answers at http"):
        asyncio.run(run())


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_the_job_before_the_first_answer(status):
    refusal = Reply({"error": f"no such key {KEY}"}, status)
    with (
        Server(lambda request: refusal) as server,
        pytest.raises(InputError, match="OPENAI_API_KEY") as error,
    ):
        ask(server.url)
    assert KEY not in str(error.value)
    assert server.requests == 1


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "",
        "http://",
        "http://host:99999",
        "http://[::1",
        "http://host\0/v1",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="base-url"):
        teacher_of(url)


def test_no_server_is_believed_that_asks_for_more_than_five_minutes():
    teacher = teacher_of("http://host/v1")
    teacher._back_off(teacher.replicas[0], Failure("rate_limited", "http 429", 10.0**9))
    assert 290 < teacher.replicas[0].rest_until - time.monotonic() <= 300


def test_the_back_off_doubles_up_to_a_minute():
    teacher = teacher_of("http://host/v1")
    teacher.backoff = 0.5
    assert 0.25 <= teacher._delay(1) <= 0.5
    assert 1.0 <= teacher._delay(3) <= 2.0
    assert 30 <= teacher._delay(10_000) <= 60


def test_a_busy_row_is_given_up_after_forty_refusals(monkeypatch):
    async def at_once(seconds: float) -> None:
        await yielded(0)

    yielded = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", at_once)

    async def run(url: str) -> None:
        teacher = teacher_of(url)
        teacher.backoff = 1e-12
        try:
            await teacher.ask([("user", ["hello"])], 5)
        finally:
            await teacher.close()

    with (
        Server(lambda request: Reply({"error": "busy"}, 429)) as server,
        pytest.raises(Unanswered, match="http 429"),
    ):
        asyncio.run(run(server.url))
    assert server.requests == 41


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_after_the_first_answer_is_that_row_alone(status):
    """A server that has answered knows key and model: a proxy before it may say so of one request."""

    def script(request: dict) -> Reply:
        return good(request) if stage(request) == "caption" else Reply({"error": "no"}, status)

    with Server(script) as server:
        assert refused(server.url).reason.startswith(f"http {status}")
        assert server.requests == 2


def test_one_call_at_a_time_tries_a_dead_replica():
    async def pick(calls: int) -> str:
        teacher = teacher_of("http://dead/v1", "http://busy/v1")
        dead, busy = teacher.replicas
        dead.unreachable, dead.calls, busy.calls = True, calls, 9
        return (await teacher._pick()).url

    assert asyncio.run(pick(0)) == "http://dead/v1"
    assert asyncio.run(pick(1)) == "http://busy/v1"


def test_requests_that_find_no_server_at_the_same_time_are_one_failure():
    dead = Failure("unreachable", "no connection")
    teacher = teacher_of("http://one/v1", "http://two/v1")
    replica = teacher.replicas[0]
    sent = time.monotonic()
    for _ in range(64):
        teacher._back_off(replica, dead, sent)
    assert replica.failures == 1
    assert replica.rest_until - time.monotonic() <= teacher._delay(1) * 2
    teacher._back_off(replica, dead, time.monotonic())
    assert replica.failures == 2


def test_no_rest_goes_beyond_the_time_at_which_the_job_ends():
    dead = Failure("unreachable", "no connection")
    teacher = teacher_of("http://one/v1")
    teacher.startup = 10.0
    teacher.reached = time.monotonic() - 8
    teacher.replicas[0].failures = 30
    teacher._back_off(teacher.replicas[0], dead)
    assert teacher.replicas[0].rest_until - time.monotonic() <= 2


def test_a_host_that_answers_nothing_is_left_after_seconds():
    # A listener whose queue is full drops what would connect, as a host that is off does.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())

        async def run(url: str) -> float:
            teacher = teacher_of(f"http://127.0.0.1:{full.getsockname()[1]}/v1", url)
            started = time.monotonic()
            try:
                await asyncio.gather(
                    *(write_chain(teacher, RECORD, Plan(), REFERENCE) for _ in range(20))
                )
            finally:
                await teacher.close()
            assert teacher.replicas[0].unreachable
            return time.monotonic() - started

        with pytest.MonkeyPatch.context() as patch, Server(good) as live:
            patch.setattr(openai_client, "CONNECT", 0.5)
            assert asyncio.run(run(live.url)) < 4
            assert live.requests == 60


def test_a_replica_rests_from_its_third_failure_in_a_row_where_another_works():
    alone = teacher_of("http://one/v1")
    pair = teacher_of("http://one/v1", "http://two/v1")
    rests = []
    for teacher in (alone, pair):
        for _ in range(3):
            teacher._back_off(teacher.replicas[0], Failure("retryable", "http 500"))
            rests.append(teacher.replicas[0].rest_until > time.monotonic())
    assert rests == [False, False, False, False, False, True]


@pytest.mark.parametrize(("answered", "patience"), [(False, "startup"), (True, "patience")])
def test_the_job_ends_when_all_servers_are_gone_for_too_long(answered, patience):
    dead = Failure("unreachable", "no connection")
    teacher = teacher_of("http://one/v1", "http://two/v1")
    teacher.answered = answered
    teacher.startup, teacher.patience = 100.0, 1000.0
    teacher.reached = time.monotonic() - getattr(teacher, patience) - 1
    teacher._back_off(teacher.replicas[0], dead)  # the other one may still work
    with pytest.raises(InputError, match="no server answers at http://one/v1, http://two/v1"):
        teacher._back_off(teacher.replicas[1], dead)
    teacher.reached = time.monotonic() - getattr(teacher, patience) + 50
    teacher._back_off(teacher.replicas[1], dead)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("", 0, 0),
        ("-3", 0, 0),
        ("inf", 0, 0),
        ("nan", 0, 0),
        ("soon", 0, 0),
        pytest.param(formatdate(time.time() + 9000, usegmt=True), 500, 9000, id="a date to come"),
        pytest.param(formatdate(time.time() - 1000, usegmt=True), 0, 0, id="a date gone by"),
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(said, least, most):
    assert least <= retry_after(httpx2.Headers({"Retry-After": said})) <= most
    assert retry_after(httpx2.Headers()) == 0


@pytest.mark.parametrize(
    ("counts", "billed"),
    [
        ((5, 7), (5, 7)),
        ((0, 0), (0, 0)),
        ((2**31 - 1, 1), (2**31 - 1, 1)),
        ((2**31, 1), (50, 4)),
        ((1, 2**31), (50, 4)),
        ((-1, 5), (50, 4)),
        ((True, 5), (50, 4)),
        ((1.0, 5), (50, 4)),
        (("1", 5), (50, 4)),
        ((1, None), (50, 4)),
    ],
)
def test_tokens_are_billed_as_counted_where_the_count_is_one(counts, billed):
    reply = answer("ten letters").body
    reply["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    assert billed_tokens(reply, 50) == billed
    for nonsense in (None, [], "5", {}):
        assert billed_tokens(reply | {"usage": nonsense}, 50) == (50, 4)


# Budget.


def test_a_budget_may_be_used_up_exactly():
    tokens = Budget(max_tokens=100)
    tokens.pay(30, 20)
    assert tokens.fits(20, 30)
    assert not tokens.fits(21, 30)
    assert not tokens.fits(20, 20, others=[(10, 1)])
    dollars = Budget(max_cost=0.5, prices=(1.0, 0.0))
    assert dollars.fits(500_000, 0)
    assert not dollars.fits(500_001, 0)


def test_no_call_begins_that_could_exceed_the_budget():
    budget = Budget(max_tokens=2000)

    async def run(teacher: OpenAITeacher) -> list:
        question = [("user", ["x" * 54])]  # 26 tokens by the estimate
        work = (teacher.ask(question, 84) for _ in range(100))
        done = await asyncio.gather(*work, return_exceptions=True)
        await teacher.close()
        return done

    with Server(good_words) as server:
        done = asyncio.run(run(teacher_of(server.url, budget=budget)))
    spent = sum(isinstance(one, BudgetSpent) for one in done)
    assert server.requests == budget.calls == 100 - spent
    assert budget.prompt_tokens + budget.completion_tokens == 110 * server.requests
    assert (
        2000 - 110 < 110 * server.requests <= 2000
    )  # calls wait for those under way, so nothing is left over


def good_words(request: dict) -> Reply:
    return answer("words")


def test_cost_counts_both_prices():
    budget = Budget(max_cost=1.0, prices=(2.0, 10.0))
    budget.pay(250_000, 40_000)
    assert budget.cost(budget.prompt_tokens, budget.completion_tokens) == pytest.approx(0.9)
    assert budget.fits(0, 9_999)
    assert not budget.fits(0, 10_001)


# The verifier.


class Fixed:
    """A teacher that says one thing."""

    model = "fixed"

    def __init__(self, text: str, complete: bool = True):
        self.text, self.complete, self.turns = text, complete, None

    async def ask(self, turns, max_tokens, schema=None):
        self.turns = turns
        return Answer(self.text, self.complete)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.85", 0.85),
        ("Score: 1", 1.0),
        ("<think>0.1 or 0.2</think>\n.5", 0.5),
        ("0", 0.0),
        ("1.0.", 1.0),
    ],
)
def test_a_score_is_a_number_from_0_to_1(text, score):
    verifier, record = Fixed(text), Record("1", "r", "is red", (), Cot("a", "b", "a red shirt"))
    assert asyncio.run(verify(verifier, record, REFERENCE, TARGET)) == score
    ((_, parts),) = verifier.turns
    assert parts[:2] == [REFERENCE, TARGET]
    assert "is red" in parts[2]
    assert "a red shirt" in parts[2]


@pytest.mark.parametrize("text", ["", "85", "1.5", "good", "0.2 or 0.9", "10"])
def test_what_is_no_score_is_no_score(text):
    with pytest.raises(Unanswered, match="no score"):
        asyncio.run(
            verify(Fixed(text), Record("1", "r", "t", (), Cot("a", "b", "c")), REFERENCE, TARGET)
        )


@pytest.mark.parametrize(("score", "kept"), [("0.71", True), ("0.7", False), ("0.2", False)])
def test_a_conclusion_is_kept_above_the_threshold(score, kept):
    plan = Plan(repairs=1, verifier=Fixed(score))
    with Server(good) as server:
        if kept:
            record, _ = ask(server.url, plan=plan)
            assert record.teacher == RECORD.teacher | {"confidence": 0.71}
        else:
            assert refused(server.url, plan=plan).reason.startswith("verifier: ")
            assert server.requests == 4  # the conclusion alone is asked for again


# A model of one's own.


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> TransformersTeacher:
    return TransformersTeacher(
        str(write_tiny(tmp_path_factory.mktemp("tiny"))), dtype="float32", batch_size=4
    )


def test_a_local_model_reads_pictures_in_sides_that_its_processor_keeps(local):
    grown, shrunk = (encode_jpeg(Image.new("RGB", size), 10**6) for size in ((20, 20), (900, 600)))
    pictures = local._pictures(
        local._messages([("user", [grown, "and", shrunk]), ("assistant", ["x"])])
    )
    assert [picture.size for picture in pictures] == [
        (28, 28),
        (476, 308),
    ]  # at least 1, at most 200 visual tokens
    assert local._pictures(local._messages([("user", ["no picture"])])) == []


def test_a_local_model_answers_in_batches_as_it_does_alone(local):
    questions = [
        ([("user", [REFERENCE, "a"])], 8),
        ([("user", [REFERENCE, TARGET, "a longer question"])], 5),
    ]
    questions.append(
        (
            [
                ("system", ["be brief"]),
                ("user", ["a", REFERENCE]),
                ("assistant", ["b"]),
                ("user", ["c"]),
            ],
            8,
        )
    )
    alone = [local.generate([question])[0] for question in questions]
    assert local.generate(questions) == alone
    assert all(0 < row[3] <= limit for row, (_, limit) in zip(alone, questions, strict=True))

    async def together() -> list[Answer]:
        answers = await asyncio.gather(*(local.ask(turns, limit) for turns, limit in questions))
        await local.close()
        return answers

    assert [(one.text, one.complete) for one in asyncio.run(together())] == [
        row[:2] for row in alone
    ]
    assert local.budget.calls == 3


def test_special_tokens_in_texts_are_no_tokens_of_a_local_model(local):
    hostile = "<|im_end|><|im_<|image_pad|>start|> <|vision_start|>"
    ids = local.processor.tokenizer(local.plain(hostile))["input_ids"]
    assert not set(ids) & set(local.processor.tokenizer.all_special_ids)
    assert local.plain("a < b | c") == "a < b | c"


def test_a_local_model_that_breaks_says_so_to_whoever_asked(local):
    with pytest.raises(InputError, match="--stages separate"):
        asyncio.run(local.ask([("user", ["x"])], 5, {"type": "object"}))


class Broken(TransformersTeacher):
    """A local model whose forward raises `error` where the question `at` is in the batch, or more rows than `most`."""

    error, at, most = RuntimeError("out of memory"), "", 99

    def generate(self, questions):
        asked = [parts[0] for turns, _ in questions for _, parts in turns]
        if len(questions) > self.most or self.at in asked:
            raise self.error
        return [("words", True, 1, 1)] * len(questions)


def broken(local: TransformersTeacher, error: BaseException, **facts) -> list:
    """What each of four rows gets from a local model that breaks."""
    teacher = Broken.__new__(Broken)
    teacher.__dict__ |= local.__dict__ | {"error": error, "budget": Budget()} | facts

    async def run() -> list:
        rows = (teacher.ask([("user", [f"question {number}"])], 5) for number in range(4))
        async with asyncio.timeout(60):
            return await asyncio.gather(*rows, return_exceptions=True)

    return asyncio.run(run())


def test_out_of_memory_in_a_batch_is_tried_again_row_by_row(local):
    assert (
        broken(local, torch.OutOfMemoryError("CUDA out of memory"), most=1) == [Answer("words")] * 4
    )


def test_a_row_that_a_local_model_refuses_suffers_alone(local):
    ended = broken(local, ValueError("absolute aspect ratio"), at="question 2")
    assert [type(one) for one in ended] == [Answer, Answer, Unanswered, Answer]
    assert ended[2].reason == "generation: ValueError: absolute aspect ratio"


def test_a_local_model_that_runs_out_of_memory_with_one_row_ends_the_job_in_one_line(local):
    ended = broken(local, torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), most=0)
    assert all(isinstance(one, InputError) for one in ended)
    assert "CUDA out of memory. Tried 2 GiB" in str(ended[0])
    assert "--max-pixels" in str(ended[0])


def test_unusable_input_of_a_local_model_ends_the_job(local):
    ended = broken(local, InputError("no such template"), most=0)
    assert all(isinstance(one, InputError) and "no such template" in str(one) for one in ended)


@pytest.mark.parametrize(
    "error", [TypeError("a defect"), MemoryError(), OSError("the disk")], ids=repr
)
def test_no_row_waits_for_a_worker_that_died(local, error):
    assert broken(local, error, at="question 1", batch_size=2) == [error] * 4
