// What was said so far. Kept in the browser; the same content goes to the server each time, so that its caches know it.

const KEY = "internvideo.conversation";

/**
 * A medium: `{kind: "video"|"image", name, url, sampling: {num_frames, start, end}}`; `url` is an address, a file id of the server
 * ("file-id:...") or a data: URL. A turn: `{question, media, answer, usage, ended, error}`.
 */
export class Conversation {
  constructor() {
    this.turns = [];
  }

  /** OpenAI's messages; a turn that failed is not part of the conversation, except the last, which waits for its answer. */
  messages(system) {
    const result = system ? [{ role: "system", content: system }] : [];
    const last = this.turns.at(-1);
    for (const turn of this.turns) {
      if (turn.error && turn !== last) continue;
      result.push({ role: "user", content: [...turn.media.map(part), { type: "text", text: turn.question }] });
      if (turn !== last) result.push({ role: "assistant", content: turn.answer });
    }
    return result;
  }

  /** The newest medium, which the panel shows. */
  get medium() {
    return this.turns.flatMap((turn) => turn.media).at(-1) ?? null;
  }

  save() {
    const kept = this.turns.map((turn) => ({ ...turn, media: turn.media.map(storable) }));
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch { /* full or forbidden: the conversation lives in this tab alone */ }
  }

  load() {
    try {
      this.turns = JSON.parse(localStorage.getItem(KEY)) ?? [];
    } catch {
      this.turns = [];
    }
    for (const turn of this.turns) if (!turn.ended && !turn.error) turn.ended = "stopped"; // the page went while it was answered
  }

  json() {
    return JSON.stringify({ messages: this.messages(), turns: this.turns.map((turn) => ({ ...turn, media: turn.media.map(storable) })) }, null, 2);
  }

  markdown() {
    const blocks = [];
    for (const turn of this.turns) {
      for (const medium of turn.media) blocks.push(`*${medium.name}*`);
      blocks.push(`**${turn.question}**`, turn.answer || (turn.error ? `> ${turn.error}` : ""));
    }
    return blocks.join("\n\n") + "\n";
  }
}

/** The content part of a medium. */
export function part(medium) {
  const type = medium.kind === "image" ? "image_url" : "video_url";
  const sampling = medium.kind === "image" ? {} : Object.fromEntries(Object.entries(medium.sampling).filter(([, value]) => value !== null));
  return { type, [type]: { url: medium.url, ...sampling } };
}

// A data: URL would fill the browser's store; after a reload such a medium has to be added again.
function storable({ kind, name, url, sampling }) {
  return { kind, name, sampling, url: url.startsWith("data:") ? null : url };
}
