"""The page as people use it, in a real browser before a real server."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from internvideo_server.launch import RunningServer
from tests.conftest import ROOT

pytestmark = [pytest.mark.server, pytest.mark.ci]

DEMO = ROOT / "examples" / "demo.mp4"
AXE = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"
ANSWER = "A yellow star moves to the left. A green triangle moves up."


def show(page: Page, video: Path = DEMO) -> None:
    page.set_input_files("#file", video)
    expect(page.locator("#pending")).to_contain_text(video.name)


def ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def answered(page: Page, text: str) -> None:
    expect(page.locator(".answer").last).to_have_text(text, timeout=60_000)
    expect(page.locator("#send")).to_be_visible()


def stream(*events: dict[str, object], done: bool = True) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")


def said(text: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def scripted(page: Page, body: str) -> None:
    """Answers as no test can make the real model answer."""
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def test_a_video_is_shown_asked_about_and_asked_about_again(page: Page) -> None:
    show(page)
    expect(page.locator("#player")).to_be_visible()
    ask(page, "Describe the video.")
    answered(page, ANSWER)
    ask(page, "What colour is the star?")
    answered(page, "It is yellow.")
    expect(page.locator("summary").last).to_contain_text("8 of 8 frames from the cache")


def test_the_sampled_frames_are_shown_with_their_times_before_asking(page: Page) -> None:
    show(page)
    expect(page.locator("#strip button")).to_have_count(8)
    times = page.locator("#strip button").all_inner_texts()
    assert times == sorted(times) and times[0] != times[-1]
    page.fill("#num-frames", "12")
    page.locator("#num-frames").blur()
    expect(page.locator("#strip button")).to_have_count(12)
    page.locator("#strip button").last.click()
    assert page.evaluate("document.getElementById('player').currentTime") > 2
    expect(page.locator("#strip-note")).to_contain_text("12 frames")


def test_a_file_is_uploaded_once_and_asked_about_by_its_id(page: Page) -> None:
    with page.expect_request("**/v1/files") as uploaded:
        show(page)
    assert uploaded.value.method == "POST"
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "What colour is the star?")
    (part, _) = asked.value.post_data_json["messages"][0]["content"]
    assert part["video_url"]["url"].startswith("file-id:file-")
    answered(page, "It is yellow.")
    page.reload()
    expect(page.locator("#player")).to_be_visible()  # from the kept file
    ask(page, "Which way does the green triangle move?")
    answered(page, "It moves up.")


@pytest.mark.parametrize("number", range(4))
def test_the_examples_are_answered_rightly(page: Page, number: int) -> None:
    example = json.loads((ROOT / "examples" / "page" / "examples.json").read_text())["examples"][number]
    page.locator("#examples button").nth(number).click()
    answered(page, example["answer"])


def test_the_page_speaks_chinese_to_a_chinese_browser(browser: Browser, demo: RunningServer) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(demo.page_url)
    page.locator("#examples button").first.click()
    answered(page, "黄色星形向左移动。绿色三角形向上移动。")
    expect(page.locator("#send")).to_have_text("发送")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, body="{}", headers={"Retry-After": "7"}))
    ask(page, "再问一次")
    expect(page.locator(".error")).to_contain_text("服务器暂时不可用，请在 7 秒后重试。")
    context.close()


def test_enter_on_an_empty_entry_changes_nothing(page: Page) -> None:
    page.press("#question", "Enter")
    page.press("#question", "Enter")
    expect(page.locator(".turn")).to_have_count(0)
    show(page)
    ask(page, "What colour is the star?")
    answered(page, "It is yellow.")
    page.press("#question", "Enter")
    expect(page.locator(".turn")).to_have_count(1)


def test_a_video_without_a_question_is_described(page: Page) -> None:
    show(page)
    page.press("#question", "Enter")
    answered(page, ANSWER)


def test_what_is_typed_while_an_answer_streams_is_kept(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    ask(page, "First?")
    page.fill("#question", "Second, typed meanwhile")
    page.press("#question", "Enter")  # not sent: one question at a time
    expect(page.locator("#work")).to_contain_text("s")
    held[0].fulfill(content_type="text/event-stream", body=stream(said("Yes.", "stop")))
    answered(page, "Yes.")
    expect(page.locator("#question")).to_have_value("Second, typed meanwhile")
    expect(page.locator(".turn")).to_have_count(1)


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_before_the_first_word_gives_the_question_back(page: Page, way: str) -> None:
    page.route("**/v1/chat/completions", lambda route: None)
    show(page)
    ask(page, "Describe the video.")
    page.fill("#question", "typed meanwhile")
    page.locator("#stop").click() if way == "button" else page.keyboard.press("Escape")
    expect(page.locator("#question")).to_have_value("Describe the video.\ntyped meanwhile")
    expect(page.locator("#pending")).to_contain_text("demo.mp4")
    expect(page.locator(".turn")).to_have_count(0)


def test_a_stream_that_ends_without_done_is_told_as_cut_off(page: Page) -> None:
    scripted(page, stream(said("A yellow"), done=False))
    ask(page, "What?")
    expect(page.locator(".error")).to_contain_text("The answer was cut off")
    expect(page.locator(".answer")).to_have_text("A yellow")


def test_the_limit_of_tokens_and_a_fault_in_the_stream_are_told(page: Page) -> None:
    scripted(page, stream(said("A yellow", "length")))
    ask(page, "What?")
    expect(page.locator(".note")).to_contain_text("cut at the limit of tokens")
    scripted(page, stream(said("A"), {"error": {"message": "the engine failed", "code": "internal"}}, done=False))
    ask(page, "What?")
    expect(page.locator(".error")).to_contain_text("the engine failed")


def test_a_refused_question_can_be_asked_again(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, body='{"error": {"message": "full"}}'))
    ask(page, "What?")
    expect(page.locator(".error")).to_contain_text("The server is busy")
    page.unroute("**/v1/chat/completions")
    scripted(page, stream(said("Now.", "stop")))
    page.get_by_role("button", name="Ask again").click()
    answered(page, "Now.")
    expect(page.locator(".error")).to_have_count(0)


def test_markup_of_the_model_is_text_and_times_and_boxes_are_links(page: Page) -> None:
    text = "<img src=x onerror=alert(1)> <ref>star</ref><box>[[100, 200, 300, 400]]</box> at 00:01 &amp;"
    scripted(page, stream(said(text, "stop")))
    show(page)
    expect(page.locator("#handles")).to_be_visible()  # the player knows the length
    ask(page, "Where?")
    answered(page, text)
    expect(page.locator(".answer img")).to_have_count(0)
    page.locator(".answer .link").first.click()
    expect(page.locator("#box")).to_have_css("left", re.compile(r"\d"))
    assert page.evaluate("document.getElementById('box').style.width") == "20%"
    page.locator(".answer .link").last.click()
    assert page.evaluate("document.getElementById('player').currentTime") == 1
    expect(page.locator("#box")).to_be_hidden()


def test_a_video_dropped_anywhere_or_pasted_is_taken(page: Page) -> None:
    data = DEMO.read_bytes()
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.mp4", {type: "video/mp4"}));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event("header", "drop", {"dataTransfer": transfer})
    expect(page.locator("#pending")).to_contain_text("dropped.mp4")
    page.evaluate(
        "(transfer) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, cancelable: true}))", transfer
    )
    expect(page.locator("#pending .chip")).to_have_count(2)


def test_an_address_anywhere_in_the_text_is_offered_as_the_video(page: Page) -> None:
    page.fill("#question", "请看https://media.example/clip.mp4。里面有什么？")
    page.locator("#offer button").click()
    expect(page.locator("#pending")).to_contain_text("https://media.example/clip.mp4")
    expect(page.locator("#question")).to_have_value("请看。里面有什么？")


def test_a_file_that_is_no_medium_is_refused_at_once(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a video")
    page.set_input_files("#file", tmp_path / "notes.txt")
    expect(page.locator("#toast")).to_contain_text("notes.txt is neither a video nor a picture")


def test_the_clip_belongs_to_its_video_and_goes_with_the_question(page: Page) -> None:
    bodies: list[dict[str, object]] = []

    def note(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(content_type="text/event-stream", body=stream(said("Yes.", "stop")))

    page.route("**/v1/chat/completions", note)
    show(page)
    page.fill("#start-text", "0:01")
    page.fill("#end-text", "2,5")
    page.fill("#num-frames", "8")
    page.locator("#num-frames").blur()
    ask(page, "What?")
    answered(page, "Yes.")
    asked = bodies[0]["messages"][0]["content"][0]["video_url"]  # type: ignore[index]
    assert {name: asked[name] for name in ("start", "end", "num_frames")} == {"start": 1, "end": 2.5, "num_frames": 8}
    show(page)
    expect(page.locator("#start-text")).to_have_value("")
    page.fill("#start-text", "soon")
    page.locator("#start-text").blur()
    expect(page.locator("#start-text")).to_have_value("")  # no time: as before


def test_the_conversation_survives_a_reload_and_clearing_can_be_undone(page: Page) -> None:
    scripted(page, stream(said("Yes.", "stop")))
    ask(page, "Are you there?")
    answered(page, "Yes.")
    page.reload()
    expect(page.locator(".mine")).to_have_text("Are you there?")
    page.locator("#clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".answer")).to_have_text("Yes.")


def test_clearing_while_an_answer_is_awaited_and_its_undoing_keep_one_question(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page, "What?")
    page.locator("#clear").click()
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#question")).to_have_value("")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".mine")).to_have_text(["What?"])
    expect(page.locator(".note")).to_contain_text("stopped")
    expect(page.locator("#question")).to_have_value("")


def test_the_conversation_is_saved_as_json_and_markdown(page: Page) -> None:
    scripted(page, stream(said("Yes.", "stop")))
    ask(page, "Are you there?")
    answered(page, "Yes.")
    with page.expect_download() as saved:
        page.locator("#export-json").click()
    document = json.loads(saved.value.path().read_text())
    assert document["turns"][0]["answer"] == "Yes."
    with page.expect_download() as saved:
        page.locator("#export-md").click()
    assert saved.value.path().read_text() == "**Are you there?**\n\nYes.\n"


def test_the_view_follows_the_newest_question_and_its_error(page: Page) -> None:
    scripted(page, stream(said("word " * 400, "stop")))
    for number in range(4):
        ask(page, f"Question {number}?")
        expect(page.locator(".turn")).to_have_count(number + 1)
        expect(page.locator("#send")).to_be_visible()
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=500, body='{"error": {"message": "broken"}}'))
    ask(page, "And now?")
    expect(page.locator(".error").last).to_be_in_viewport()


def test_a_word_costs_little_even_in_a_long_conversation(page: Page) -> None:
    """By counting what is changed: a word appends to one text node, whatever stands before it."""
    scripted(page, stream(*[said(f"word{number} ") for number in range(500)], said("", "stop")))
    page.evaluate(
        """() => {
            window.changes = 0;
            new MutationObserver((all) => { for (const each of all) window.changes += each.addedNodes.length; })
                .observe(document.getElementById("log"), {subtree: true, childList: true});
        }"""
    )
    ask(page, "Tell me much.")
    expect(page.locator(".answer")).to_contain_text("word499")
    assert page.evaluate("window.changes") < 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_there_is_no_serious_barrier(page: Page, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: make test-ci")
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    scripted(page, stream(said("At 00:01 a star.", "stop")))
    show(page)
    ask(page, "What?")
    answered(page, "At 00:01 a star.")
    page.locator("#settings summary").click()
    page.evaluate(AXE.read_text())  # not as a script element, which the page's policy forbids
    found = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_works_by_keyboard_alone(page: Page) -> None:
    scripted(page, stream(said("Yes.", "stop")))
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("Are you there?")
    page.keyboard.press("Enter")
    answered(page, "Yes.")
    expect(page.locator("#question")).to_be_focused()


def test_nothing_is_loaded_from_another_host(browser: Browser, demo: RunningServer) -> None:
    context = browser.new_context()
    page, hosts = context.new_page(), set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
    page.goto(demo.page_url)
    page.wait_for_load_state("networkidle")
    assert hosts == {demo.adapter_url.removeprefix("http://")}
    context.close()


def test_an_upload_shows_how_far_it_is(page: Page, tmp_path: Path) -> None:
    """On a slow line; the box behind the video makes the file large."""
    filler = 3 << 20
    video = tmp_path / "large.mp4"
    video.write_bytes(DEMO.read_bytes() + filler.to_bytes(4, "big") + b"free" + bytes(filler - 8))
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1 << 20}
    network.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#file", video)
    expect(page.locator("#upload-text")).to_contain_text(re.compile(r"[1-9]\d? %"), timeout=30_000)
    expect(page.locator("#pending")).to_contain_text("large.mp4", timeout=60_000)
    expect(page.locator("#upload")).to_be_hidden()


def test_the_page_works_behind_a_path_prefix_and_with_an_api_key(browser: Browser, guarded: str) -> None:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.goto(guarded)
    expect(page.locator("#toast")).to_contain_text("The API key is missing or wrong")
    page.fill("#api-key", "key-of-the-tests")
    page.locator("#api-key").blur()
    expect(page.locator("#model")).not_to_be_empty()
    show(page)
    expect(page.locator("#strip button")).to_have_count(8)
    ask(page, "Describe the video.")
    answered(page, ANSWER)
    assert page.url.startswith(guarded)
    context.close()
