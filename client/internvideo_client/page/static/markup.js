// An answer as nodes: text as it is, with times and boxes as links into the video.

import { say } from "./words.js";
import { seconds } from "./time.js";

const LINK = /\[\[\s*(\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3})\s*\]\]|(?<![\d:.])(?:\d{1,2}:)?\d{1,2}:\d{2}(?:\.\d+)?(?![\d:])/g;

/**
 * @param {string} text
 * @param {{seek: function(number), box: function(number[])}} actions
 * @returns {DocumentFragment} text nodes and buttons, never the model's text as markup
 */
export function answerNodes(text, actions) {
  const fragment = document.createDocumentFragment();
  let done = 0;
  for (const match of text.matchAll(LINK)) {
    fragment.append(text.slice(done, match.index));
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = match[0];
    if (match[1]) {
      const corners = match[1].split(",").map(Number); // of a picture of 1000 x 1000
      button.title = say("box");
      button.addEventListener("click", () => actions.box(corners));
    } else {
      button.title = say("seek", { time: match[0] });
      button.addEventListener("click", () => actions.seek(seconds(match[0])));
    }
    fragment.append(button);
    done = match.index + match[0].length;
  }
  fragment.append(text.slice(done));
  return fragment;
}
