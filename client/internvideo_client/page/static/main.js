// The page: what a person does, and what follows from it.

import * as api from "./api.js";
import { ChatPanel } from "./chat_panel.js";
import { Conversation } from "./conversation.js";
import { addressIn, fromAddress, fromFile, sourceOf } from "./media.js";
import { VideoPanel } from "./video_panel.js";
import { fillTexts, say, chinese } from "./words.js";

const UNDO_MS = 8000;

const by = (id) => document.getElementById(id);
const conversation = new Conversation();
const video = new VideoPanel();
const chat = new ChatPanel({ seek: (time) => video.seek(time), box: (corners) => video.box(corners) }, askAgain);

let model = "InternVideo2_5";
let pending = []; // media of the next question
let uploading = null; // {promise, abort, share} while a file is on its way
let asking = null; // the AbortController of the answer under way

// --- the video --------------------------------------------------------------------------------------------------------------

async function take(file) {
  uploading?.abort.abort();
  const abort = new AbortController();
  const mine = { abort, share: 0 };
  uploading = mine;
  const onProgress = (share) => {
    mine.share = share;
    if (uploading === mine) video.uploading(share);
  };
  video.uploading(0);
  mine.promise = fromFile(file, onProgress, abort.signal);
  try {
    const medium = await mine.promise;
    await choose(medium, file);
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message);
  } finally {
    if (uploading === mine) {
      uploading = null;
      video.uploading(null);
    }
  }
}

async function choose(medium, source) {
  pending.push(medium);
  showPending();
  video.show(medium, source ?? (await sourceOf(medium)));
}

function showPending() {
  by("pending").hidden = !pending.length;
  by("pending").replaceChildren(...pending.map((medium) => chip(`▶ ${medium.name}`, say("remove"), () => {
    pending = pending.filter((each) => each !== medium);
    showPending();
    showNewest();
  })));
}

async function showNewest() {
  const medium = pending.at(-1) ?? conversation.medium;
  video.show(medium, medium && (await sourceOf(medium)));
}

function offerAddress() {
  const url = addressIn(by("question").value);
  const known = [...pending, conversation.medium].some((medium) => medium?.url === url);
  by("offer").hidden = !url || known;
  if (!url || known) return;
  by("offer").replaceChildren(chip("", say("useUrl", { url }), () => {
    by("question").value = by("question").value.replace(url, "").trim();
    by("offer").hidden = true;
    choose(fromAddress(url));
  }));
}

function chip(text, action, onAction) {
  const element = document.createElement("span");
  element.className = "chip";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = action;
  button.addEventListener("click", onAction);
  element.append(text, button);
  return element;
}

// --- asking -----------------------------------------------------------------------------------------------------------------

async function ask() {
  if (asking) return; // what is typed meanwhile stays
  const typed = by("question").value.trim();
  if (!typed && !pending.length && !uploading) return;
  if (uploading) {
    const upload = uploading;
    chat.working(() => `${say("uploading")} ${Math.round(100 * upload.share)} %`);
    try {
      await upload.promise;
      await Promise.resolve(); // take() has put it among the pending ones
    } catch {
      return chat.working(null); // take() tells why
    }
  }
  const turn = { question: typed || say("describe"), media: pending, answer: "", usage: null, ended: null, error: null };
  pending = [];
  showPending();
  by("question").value = "";
  offerAddress();
  by("examples").hidden = true;
  conversation.turns.push(turn);
  chat.add(turn);
  await answer(turn);
}

async function answer(turn) {
  const missing = conversation.turns.flatMap((each) => each.media).find((medium) => !medium.url);
  if (missing) return finish(turn, { error: say("gone", { name: missing.name }) });
  asking = new AbortController();
  busy(true);
  const first = turn.media.length > 0;
  chat.working(() => say(turn.answer ? "answering" : video.reading ? "decoding" : first ? "looking" : "thinking"));
  try {
    for await (const event of api.chat(body(), asking.signal)) {
      const choice = event.choices?.[0];
      if (choice?.delta?.content) {
        turn.answer += choice.delta.content;
        chat.grow(choice.delta.content);
      }
      turn.ended = choice?.finish_reason ?? turn.ended;
      turn.usage = event.usage ?? turn.usage;
    }
    finish(turn, { ended: turn.ended ?? "stop" });
  } catch (error) {
    if (asking.signal.aborted) stopped(turn);
    else finish(turn, { error: error.message });
  } finally {
    asking = null;
    busy(false);
    chat.working(null);
  }
}

function body() {
  const given = { max_tokens: Number(by("max-tokens").value) || undefined, temperature: Number(by("temperature").value) || undefined };
  return { model, messages: conversation.messages(by("system").value.trim()), ...given };
}

function finish(turn, end) {
  Object.assign(turn, end);
  chat.finish(turn);
  conversation.save();
}

function stopped(turn) {
  const cleared = !conversation.turns.includes(turn);
  if (turn.answer || cleared) return finish(turn, { ended: "stopped" });
  // Nothing was said yet: the question goes back, in front of what was typed meanwhile.
  conversation.turns.pop();
  chat.removeLast();
  pending = [...turn.media, ...pending];
  showPending();
  by("question").value = [turn.question, by("question").value].filter(Boolean).join("\n");
  conversation.save();
}

function askAgain(turn) {
  if (asking || turn !== conversation.turns.at(-1)) return;
  Object.assign(turn, { answer: "", usage: null, ended: null, error: null });
  chat.finish(turn);
  answer(turn);
}

function busy(is) {
  by("send").hidden = is;
  by("stop").hidden = !is;
}

// --- the rest ---------------------------------------------------------------------------------------------------------------

let fading = 0;

function toast(text, action = null, onAction = null) {
  clearTimeout(fading);
  const box = by("toast");
  box.replaceChildren(text);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action;
    button.addEventListener("click", () => {
      box.hidden = true;
      onAction();
    });
    box.append(" ", button);
  }
  box.hidden = false;
  fading = setTimeout(() => (box.hidden = true), UNDO_MS);
}

function clear() {
  asking?.abort();
  const before = { turns: conversation.turns, pending };
  conversation.turns = [];
  pending = [];
  redraw();
  toast(say("cleared"), say("undo"), () => {
    conversation.turns = before.turns;
    pending = before.pending;
    redraw();
  });
}

function redraw() {
  chat.show(conversation.turns);
  showPending();
  showNewest();
  by("examples").hidden = conversation.turns.length > 0 || !by("examples").childElementCount;
  conversation.save();
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href));
}

async function greet() {
  try {
    const [first] = await api.models();
    model = first.id;
    by("model").textContent = first.id;
  } catch (error) {
    if (error.status === 401) by("settings").open = true;
    toast(error.message);
  }
  try {
    const response = await fetch("examples/examples.json");
    if (response.ok) offerExamples(await response.json());
  } catch { /* a server without examples */ }
  try {
    by("docs").hidden = !(await fetch("../docs/", { method: "HEAD" })).ok;
  } catch { /* a server without the docs */ }
}

function offerExamples({ demo, examples }) {
  by("about").hidden = !demo;
  by("about").textContent = demo ? say("demo") : "";
  by("examples").replaceChildren(...examples.map((example) => {
    const button = document.createElement("button");
    const clip = document.createElement("video");
    const question = chinese ? example.question_zh : example.question;
    button.type = "button";
    clip.src = `examples/${example.video}#t=1`; // a frame in which something is to be seen
    clip.muted = true;
    button.append(clip, question);
    button.addEventListener("click", async () => {
      const blob = await (await fetch(`examples/${example.video}`)).blob();
      by("question").value = question;
      await take(new File([blob], example.video, { type: "video/mp4" }));
      await ask();
    });
    return button;
  }));
  by("examples").hidden = conversation.turns.length > 0;
}

function files(transfer) {
  return [...(transfer?.files ?? [])];
}

function listen() {
  by("entry").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  by("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  by("question").addEventListener("input", offerAddress);
  by("stop").addEventListener("click", () => asking?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && asking?.abort());
  for (const id of ["drop", "attach"]) by(id).addEventListener("click", () => by("file").click());
  by("file").addEventListener("change", () => {
    if (by("file").files[0]) take(by("file").files[0]);
    by("file").value = "";
  });
  by("clear").addEventListener("click", clear);
  by("export-json").addEventListener("click", () => download("conversation.json", "application/json", conversation.json()));
  by("export-md").addEventListener("click", () => download("conversation.md", "text/markdown", conversation.markdown()));
  by("api-key").addEventListener("change", () => {
    api.settings.key = by("api-key").value.trim();
    sessionStorage.setItem("internvideo.key", api.settings.key);
    greet();
  });
  by("key-form").addEventListener("submit", (event) => event.preventDefault());
  let inside = 0;
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    by("dropping").hidden = ++inside === 0;
  });
  document.addEventListener("dragleave", () => (by("dropping").hidden = --inside <= 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    by("dropping").hidden = true;
    const [file] = files(event.dataTransfer);
    const url = file ? "" : addressIn(event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain"));
    if (file) take(file);
    else if (url) choose(fromAddress(url));
  });
  document.addEventListener("paste", (event) => {
    const [file] = files(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}

fillTexts();
api.settings.key = sessionStorage.getItem("internvideo.key") ?? "";
by("api-key").value = api.settings.key;
listen();
conversation.load();
redraw();
greet();
by("question").focus();
