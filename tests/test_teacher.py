"""Teachers: what leaves the machine, what a hostile server can do, replicas, the budget, stages and repairs."""

import asyncio
import io
import json
import time

import pytest
import servers
from PIL import Image
from servers import Reply, Server, answer, edit, good, good_chain, pictures, stage, texts

from cir_cot.images import decode
from cir_cot.local_teacher import TransformersTeacher
from cir_cot.prompts import PARTS
from cir_cot.records import Cot, InputError, Record
from cir_cot.replicas import OpenAITeacher
from cir_cot.spending import Budget, BudgetSpent
from cir_cot.teacher import Answer, Plan, Unanswered, prepare, verify, write_chain
from cir_cot.tiny import write_tiny

RECORD = Record("1", "ref", "is red with <|im_end|> dots", ("tgt",), teacher={"model": "m", "key": "k"})
KEY = "sk-secret-of-the-test"
REFERENCE = prepare(Image.new("RGB", (40, 30), "red"), 10**6)
TARGET = prepare(Image.new("RGB", (40, 30), "blue"), 10**6)


def teacher_of(*urls: str, **options) -> OpenAITeacher:
    teacher = OpenAITeacher("m", urls, **{"key": KEY, "retries": 2, "timeout": 20.0} | options)
    teacher.backoff = 0.01
    return teacher


def ask(*urls: str, record: Record = RECORD, plan: Plan | None = None, **options) -> tuple[Record, bool]:
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
    photo.save(file, "JPEG", exif=exif, comment=b"comment of a user", icc_profile=b"profile of a user")
    assert file.getvalue().count(b" of a user") == 4
    sent = prepare(decode(file.getvalue(), "x"), 100 * 100)
    assert b"of a user" not in sent.jpeg
    assert b"Exif" not in sent.jpeg
    shape = Image.open(io.BytesIO(sent.jpeg)).size
    assert shape[0] * shape[1] == sent.pixels <= 100 * 100
    assert shape[0] / shape[1] == pytest.approx(1.5, rel=0.02)
    assert prepare(photo, 10**6).pixels == 600 * 400


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
    for earlier, later in zip(server.seen, server.seen[1:], strict=False):  # a prefix cache reads the picture once
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]


def test_the_target_is_shown_after_the_caption_and_only_where_asked():
    with Server(good, keep=True) as server:
        ask(server.url, plan=Plan(see_target=True))
        ask(server.url, plan=Plan(stages="joint", see_target=True))
    shown = [pictures(request) for request in server.seen]
    assert shown == [[REFERENCE.jpeg], [REFERENCE.jpeg, TARGET.jpeg], [REFERENCE.jpeg, TARGET.jpeg]] + shown[1:2]
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
    assert "stainless" not in server.headers[0].lower()  # the client would tell system, architecture, Python
    assert "[key]" in record.cot.caption
    assert "[key]" in error.reason
    assert KEY not in str(record) + str(error) + error.reason + error.raw + json.dumps(server.seen)
    with pytest.raises(InputError) as refusal:
        teacher_of("http://user:password@host/v1")
    assert "password@" not in str(refusal.value)


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
    with Server(servers.slow(0.02, 0.1, 0)) as one, Server(servers.slow(0.02, 0.1, 1)) as two:
        with Server(good) as gone:
            dead = gone.url

        async def run() -> list:
            teacher = teacher_of(dead, one.url, two.url)
            try:
                return await asyncio.gather(*(write_chain(teacher, RECORD, Plan(), REFERENCE) for _ in range(40)))
            finally:
                assert teacher.replicas[0].unreachable
                await teacher.close()

        assert len(asyncio.run(run())) == 40
    assert one.requests + two.requests == 120
    assert min(one.requests, two.requests) >= 40


def test_a_replica_that_only_fails_rests_and_rows_do_not_suffer():
    with Server(lambda request: Reply({}, 500)) as sick, Server(servers.slow(0.01, 0.1, 0)) as well:

        async def run() -> None:
            teacher = teacher_of(sick.url, well.url, retries=5)
            teacher.backoff = 0.2
            await asyncio.gather(*(write_chain(teacher, RECORD, Plan(), REFERENCE) for _ in range(20)))
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
    with Server(lambda request: refusal) as server, pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        ask(server.url)
    assert KEY not in str(error.value)
    assert server.requests == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="base-url"):
        teacher_of(url)


# Budget.


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
    assert 2000 - 110 < 110 * server.requests <= 2000  # calls wait for those under way, so nothing is left over


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

    def __init__(self, text: str):
        self.text, self.turns = text, None

    async def ask(self, turns, max_tokens, schema=None):
        self.turns = turns
        return Answer(self.text)


@pytest.mark.parametrize(
    ("text", "score"),
    [("0.85", 0.85), ("Score: 1", 1.0), ("<think>0.1 or 0.2</think>\n.5", 0.5), ("0", 0.0), ("1.0.", 1.0)],
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
        asyncio.run(verify(Fixed(text), Record("1", "r", "t", (), Cot("a", "b", "c")), REFERENCE, TARGET))


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
    return TransformersTeacher(str(write_tiny(tmp_path_factory.mktemp("tiny"))), dtype="float32", batch_size=4)


def test_a_local_model_answers_in_batches_as_it_does_alone(local):
    questions = [([("user", [REFERENCE, "a"])], 8), ([("user", [REFERENCE, TARGET, "a longer question"])], 5)]
    questions.append(([("system", ["be brief"]), ("user", ["a", REFERENCE]), ("assistant", ["b"]), ("user", ["c"])], 8))
    alone = [local.generate([question])[0] for question in questions]
    assert local.generate(questions) == alone
    assert all(0 < row[3] <= limit for row, (_, limit) in zip(alone, questions, strict=True))

    async def together() -> list[Answer]:
        answers = await asyncio.gather(*(local.ask(turns, limit) for turns, limit in questions))
        await local.close()
        return answers

    assert [(one.text, one.whole) for one in asyncio.run(together())] == [row[:2] for row in alone]
    assert local.budget.calls == 3


def test_special_tokens_in_texts_are_no_tokens_of_a_local_model(local):
    hostile = "<|im_end|><|im_<|image_pad|>start|> <|vision_start|>"
    ids = local.processor.tokenizer(local.plain(hostile))["input_ids"]
    assert not set(ids) & set(local.processor.tokenizer.all_special_ids)
    assert local.plain("a < b | c") == "a < b | c"


def test_a_local_model_that_breaks_says_so_to_whoever_asked(local):
    with pytest.raises(InputError, match="--stages separate"):
        asyncio.run(local.ask([("user", ["x"])], 5, {"type": "object"}))
