// The conversation as it is shown, and the line that says what is being done.

import { answerNodes } from "./markup.js";
import { say } from "./words.js";

const PAINT_MS = 150; // showing text costs layout and painting, 2 to 4 ms, however much of it there is
const NEAR_THE_END = 80; // pixels: who has scrolled further up is reading
const STAGES = ["queue_ms", "fetch_ms", "decode_ms", "vision_queue_ms", "vision_ms", "first_token_ms"];

export class ChatPanel {
  /** @param {{seek: function, box: function}} actions of the video; @param {function} onAgain asks the last question again */
  constructor(actions, onAgain) {
    this._actions = actions;
    this._onAgain = onAgain;
    this._log = document.getElementById("log");
    this._work = document.getElementById("work");
    this._ticking = 0;
    this._painting = 0;
    this._waiting = null; // text that came and is not shown yet; null: the last turn has none so far
  }

  show(turns) {
    this._waiting = null;
    this._log.replaceChildren(...turns.map((turn) => this._element(turn)));
    this._toEnd();
  }

  add(turn) {
    this._waiting = null;
    this._log.append(this._element(turn));
    this._toEnd();
  }

  /** Text that came for the last turn: appended to its node, the first at once, then a few times a second. */
  grow(text) {
    const first = this._waiting === null;
    this._waiting = (this._waiting ?? "") + text;
    if (first) this._paint();
    else this._painting ||= setTimeout(() => this._paint(), PAINT_MS);
  }

  _paint() {
    clearTimeout(this._painting);
    this._painting = 0;
    if (!this._waiting) return;
    const answer = this._log.lastElementChild?.querySelector(".answer");
    const follow = this._log.scrollHeight - this._log.scrollTop - this._log.clientHeight < NEAR_THE_END;
    if (answer) {
      answer.hidden = false;
      if (!answer.firstChild) answer.append("");
      answer.firstChild.appendData(this._waiting);
    }
    this._waiting = "";
    if (follow) this._toEnd();
  }

  /** The last turn as it ended. */
  finish(turn) {
    this._paint();
    this._waiting = null;
    this._log.lastElementChild?.replaceWith(this._element(turn));
    this._toEnd();
  }

  removeLast() {
    this._waiting = null;
    this._log.lastElementChild?.remove();
  }

  /** Say what is being done, with its seconds; null: nothing. @param {function(): string} stage */
  working(stage) {
    clearInterval(this._ticking);
    this._work.textContent = "";
    if (!stage) return;
    const began = performance.now();
    const tell = () => {
      const text = `${stage()} · ${Math.floor((performance.now() - began) / 1000)} s`;
      if (this._work.textContent !== text) this._work.textContent = text;
    };
    tell();
    this._ticking = setInterval(tell, 200);
  }

  _toEnd() {
    this._log.lastElementChild?.scrollIntoView({ block: "end" }); // the page too, where it is narrow and scrolls
  }

  _element(turn) {
    const element = block("div", "turn");
    for (const medium of turn.media) element.append(block("span", "chip", `▶ ${medium.name}`));
    element.append(block("div", "said mine", turn.question));
    const answer = block("div", "said answer");
    answer.hidden = !turn.answer;
    // A stream in progress grows one text node; the links are made when it has ended.
    answer.append(turn.ended || turn.error ? answerNodes(turn.answer, this._actions) : turn.answer);
    element.append(answer);
    if (turn.error) {
      const error = block("div", "said error", turn.error);
      error.setAttribute("role", "alert");
      const again = block("button", "", say("again"));
      again.type = "button";
      again.addEventListener("click", () => this._onAgain(turn));
      element.append(error, again);
    }
    const notes = notesOf(turn);
    if (notes.length) element.append(turn.usage ? timings(turn.usage, notes) : block("div", "note", notes.join(" · ")));
    return element;
  }
}

function notesOf(turn) {
  const notes = [];
  const stages = turn.usage?.internvideo ?? {};
  if (stages.first_token_ms) notes.push(say("firstToken", { seconds: (stages.first_token_ms / 1000).toFixed(2) }));
  if (stages.frames) notes.push(say("cached", { cached: stages.cached_frames ?? 0, frames: stages.frames }));
  if (turn.ended === "length") notes.push(say("cut"));
  if (turn.ended === "stopped") notes.push(say("stopped"));
  return notes;
}

function timings(usage, notes) {
  const details = block("details", "note");
  details.append(block("summary", "", notes.join(" · ")));
  const table = document.createElement("table");
  for (const name of STAGES) {
    const value = usage.internvideo?.[name];
    if (value === undefined) continue;
    const row = table.insertRow();
    row.insertCell().textContent = say(name);
    row.insertCell().textContent = `${value.toFixed(1)} ms`;
  }
  details.append(table);
  return details;
}

function block(tag, classes, text = "") {
  const element = document.createElement(tag);
  element.className = classes;
  element.textContent = text;
  return element;
}
