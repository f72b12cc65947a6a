"""The page of a review in a browser: keys, edits that are kept, text that is never markup."""

import threading
import time

import pytest
from conftest_review import queue_of

from cir_cot.data.chain_decisions import last_decisions
from cir_cot.review.app import application
from cir_cot.search.local_server import address_of, listen, make_server


@pytest.fixture
def address(folder):
    with listen(0) as listening:
        server = make_server(
            application(queue_of(folder, "ann", "--second", folder / "second.jsonl"))
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield address_of(listening)
        server.should_exit = True
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_review_by_keyboard(browser, address, folder, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    page.wait_for_selector(".chain")
    assert page.locator(".chain").count() == 2
    heads = page.locator(".chain h2 small").all_text_contents()
    assert heads == ["teacher/a", "teacher/b, saw the target"]
    # The second teacher's chain is accepted.
    page.keyboard.press("2")
    page.keyboard.press("a")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 2')")
    # What looks like markup is text.
    box = page.locator(".chain textarea").first
    assert box.input_value() == "<img src=x onerror=alert(1)>"
    assert page.locator(".finding", has_text="refusal").count() == 1
    # An edit, saved with the keyboard.
    box.fill("a red shirt")
    box.press("Control+Enter")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 3')")
    assert "no answer" in page.locator("#quarantined").text_content()
    assert page.locator("#raw").text_content() == "I see <b>a bar</b>"
    page.keyboard.press("g")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 4')")
    page.keyboard.press("x")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 5')")
    # Back to the edited row: it is shown as it was saved.
    for _ in range(3):
        page.keyboard.press("k")
    assert page.locator("#verdict").text_content() == "edit by ann"
    assert page.locator(".chain textarea").first.input_value() == "a red shirt"
    # The buttons are in view, and nothing is wider than the window.
    assert page.locator("footer button").first.bounding_box()["y"] < 800
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A queue that is empty: keys do nothing, and say so.
    page.select_option("#state", "quarantined")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 3')")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "last row" in page.locator("#message").text_content()
    bottom = page.locator("#message").bounding_box()
    assert bottom["y"] + bottom["height"] <= 800
    page.select_option("#state", "accept")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 1,')")
    page.get_by_role("button", name="Agreement").click()
    page.wait_for_selector("dialog[open]")
    assert "chain B kept 1 times" in page.locator("#numbers").text_content()
    assert errors == []
    decided = {key[0]: one for key, one in last_decisions(folder / "decisions.jsonl").items()}
    verdicts = {name: one.decision for name, one in decided.items()}
    assert verdicts == {"0": "accept", "1": "edit", "2": "again", "3": "reject"}
    assert decided["0"].choice == "B"
    assert decided["1"].cot.caption == "a red shirt"
    page.close()


@pytest.mark.slow
def test_an_empty_queue_takes_no_decision(browser, address, folder):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".chain")
    page.select_option("#state", "reject")
    page.wait_for_selector("#empty:not([hidden])")
    for key in "axgskj":
        page.keyboard.press(key)
    assert page.locator("footer [data-do=accept]").is_disabled()
    assert errors == []
    assert not (folder / "decisions.jsonl").exists()
    page.close()


def delayed_decisions(page):
    """Hold every decision back for a while, as a slow disk or a long way to the machine does."""

    def hold(route):
        time.sleep(0.3)
        route.continue_()

    page.route("**/data/decide", hold)


@pytest.mark.slow
def test_keys_during_a_decision_decide_nothing_unseen(browser, address, folder):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector(".chain")
    delayed_decisions(page)
    # A key that repeats, and one that would leave the row before its answer is there.
    for key in "aaj":
        page.keyboard.press(key)
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 2,')")
    page.wait_for_timeout(500)
    assert page.locator("#place").text_content() == "row 2, query 1"
    assert len((folder / "decisions.jsonl").read_text().splitlines()) == 1
    # The answer belongs to the row that was decided.
    page.keyboard.press("k")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 1,')")
    assert page.locator("#verdict").text_content() == "accept by ann"
    page.close()


@pytest.mark.slow
def test_what_was_typed_is_not_lost(browser, address, folder):
    page = browser.new_page()
    asked = []

    def stay(dialog):
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", stay)
    page.goto(address)
    page.wait_for_selector(".chain")
    page.keyboard.press("a")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 2,')")
    page.keyboard.press("k")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 1,')")
    # A row that was decided before is edited: neither moving on, nor taking the other chain, nor
    # another queue drops the text unasked.
    box = page.locator(".chain textarea").first
    box.fill("a changed caption")
    box.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("2")
    page.keyboard.press("a")
    page.select_option("#state", "quarantined")
    page.wait_for_timeout(200)
    assert len(asked) == 3
    assert page.locator("#state").input_value() == "open"
    assert page.locator("#place").text_content() == "row 1, query 0"
    assert page.locator(".chain textarea").first.input_value() == "a changed caption"
    # Accepting what was typed saves it.
    page.keyboard.press("1")
    page.keyboard.press("a")
    page.wait_for_function("document.getElementById('place').textContent.startsWith('row 2,')")
    assert len(asked) == 3
    last = last_decisions(folder / "decisions.jsonl")
    assert [one.cot.caption for one in last.values()] == ["a changed caption"]
    page.close()


@pytest.mark.slow
def test_another_queue_while_one_is_loading(browser, address, folder):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector(".chain")

    def hold(route):
        answer = route.fetch()
        page.evaluate("""() => {
          const select = document.getElementById("state");
          select.value = "quarantined"; select.dispatchEvent(new Event("change"));
        }""")
        page.wait_for_function("state.rows.length === 1")
        route.fulfill(response=answer)

    page.route("**/data/rows?state=all*", hold)
    page.select_option("#state", "all")
    page.wait_for_timeout(800)
    # Only the rows of the queue that is shown.
    assert page.evaluate("state.rows.map((row) => row.id)") == ["2"]
    page.close()


@pytest.mark.slow
def test_what_another_reviewer_decided_meanwhile_is_shown(browser, address, folder):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector(".chain")
    queue_of(folder, "bob").decide(1, "reject", "", None)
    page.keyboard.press("j")
    page.wait_for_function("document.getElementById('verdict').textContent === 'reject by bob'")
    assert page.locator("#place").text_content() == "row 2, query 1"
    page.close()
