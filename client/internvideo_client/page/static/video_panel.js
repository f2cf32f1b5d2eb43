// The video: player, clip, number of frames, and the strip of the frames that the model will see.

import * as api from "./api.js";
import { part } from "./conversation.js";
import { clock, seconds } from "./time.js";
import { say } from "./words.js";

const PAUSE_MS = 400; // after a change of the clip, before the strip is asked for

const by = (id) => document.getElementById(id);

export class VideoPanel {
  constructor() {
    this.medium = null;
    this.reading = false; // while the server reads the video for the strip
    this._timer = 0;
    this._asking = null;
    this._objectUrl = null;
    const player = by("player");
    player.addEventListener("loadedmetadata", () => this._showClip());
    player.addEventListener("play", () => this.box(null));
    for (const name of ["start", "end"]) {
      by(name).addEventListener("input", () => this._setClip(name, Number(by(name).value)));
      by(`${name}-text`).addEventListener("change", () => this._typed(name));
    }
    by("num-frames").addEventListener("change", () => this._set("num_frames", Number(by("num-frames").value) || null));
  }

  /**
   * Show a medium, null: none.
   * @param {string|Blob|null} source what the browser can play: an address, or the file itself
   */
  show(medium, source = null) {
    if (this._objectUrl) URL.revokeObjectURL(this._objectUrl);
    this._objectUrl = source instanceof Blob ? URL.createObjectURL(source) : null;
    this.medium = medium;
    const address = this._objectUrl ?? source;
    const video = medium?.kind === "video" && address, image = medium?.kind === "image" && address;
    by("drop").hidden = Boolean(video || image);
    by("player").hidden = !video;
    by("picture").hidden = !image;
    by("clip").hidden = medium?.kind !== "video";
    by("medium-name").textContent = medium?.name ?? "";
    if (video) by("player").src = address;
    else by("player").removeAttribute("src");
    if (image) by("picture").src = address;
    by("picture").alt = medium?.name ?? "";
    this.box(null);
    by("strip").replaceChildren();
    by("strip-note").textContent = "";
    if (medium) {
      this._fill();
      this.refresh(0);
    }
  }

  /** How far an upload is, null: none is under way. */
  uploading(share) {
    by("upload").hidden = share === null;
    if (share === null) return;
    by("upload-bar").value = share;
    by("upload-text").textContent = `${say("uploading")} ${Math.round(100 * share)} %`;
  }

  seek(time) {
    const player = by("player");
    this.box(null);
    if (!player.hidden && time <= player.duration) player.currentTime = time;
  }

  /** Draw a box, given in thousandths of the picture; null: none. */
  box(corners) {
    const box = by("box");
    box.hidden = !corners;
    if (!corners) return;
    by("player").pause();
    const [x1, y1, x2, y2] = corners;
    box.style.left = `${x1 / 10}%`;
    box.style.top = `${y1 / 10}%`;
    box.style.width = `${(x2 - x1) / 10}%`;
    box.style.height = `${(y2 - y1) / 10}%`;
  }

  /** Ask the server which frames it would take, after a pause in which more changes may come. */
  refresh(pause = PAUSE_MS) {
    clearTimeout(this._timer);
    this._asking?.abort();
    if (this.medium?.kind !== "video" || !this.medium.url) return;
    this._timer = setTimeout(() => this._readStrip(this.medium), pause);
  }

  async _readStrip(medium) {
    const asking = new AbortController();
    this._asking = asking;
    this.reading = true;
    by("strip-note").textContent = say("stripWaiting");
    try {
      const { frames } = await api.frames(part(medium), asking.signal);
      by("strip").replaceChildren(...frames.map((frame) => this._thumbnail(frame)));
      by("strip-note").textContent = say("stripNote", { count: frames.length });
    } catch (error) {
      if (asking.signal.aborted) return;
      by("strip").replaceChildren();
      // A server of another make has no such address: the page works without the strip.
      by("strip-note").textContent = error.status === 404 ? "" : say("stripNone", { reason: error.message });
    } finally {
      if (this._asking === asking) this.reading = false;
    }
  }

  _thumbnail({ time, image }) {
    const button = document.createElement("button");
    const picture = document.createElement("img");
    button.type = "button";
    button.setAttribute("role", "listitem");
    picture.src = image;
    picture.alt = "";
    button.append(picture, clock(time));
    button.title = say("seek", { time: clock(time) });
    button.addEventListener("click", () => this.seek(time));
    return button;
  }

  _fill() {
    const { start, end, num_frames: frames } = this.medium.sampling;
    by("start-text").value = start === null ? "" : clock(start);
    by("end-text").value = end === null ? "" : clock(end);
    by("num-frames").value = frames ?? "";
    this._showClip();
  }

  _showClip() {
    const { duration } = by("player");
    const known = Number.isFinite(duration) && duration > 0;
    by("handles").hidden = !known;
    if (!known || !this.medium) return;
    const { start, end } = this.medium.sampling;
    for (const name of ["start", "end"]) by(name).max = duration;
    by("start").value = start ?? 0;
    by("end").value = end ?? duration;
    by("start").setAttribute("aria-valuetext", clock(start ?? 0));
    by("end").setAttribute("aria-valuetext", clock(end ?? duration));
    by("selected").style.left = `${(100 * (start ?? 0)) / duration}%`;
    by("selected").style.right = `${100 - (100 * (end ?? duration)) / duration}%`;
  }

  _typed(name) {
    const value = seconds(by(`${name}-text`).value);
    if (Number.isNaN(value)) this._fill();
    else this._setClip(name, value);
  }

  _setClip(name, value) {
    const { duration } = by("player");
    const other = this.medium.sampling[name === "start" ? "end" : "start"];
    if (value !== null && other !== null) value = name === "start" ? Math.min(value, other - 0.1) : Math.max(value, other + 0.1);
    const whole = (name === "start" && value <= 0) || (name === "end" && Number.isFinite(duration) && value >= duration);
    this._set(name, value === null || whole ? null : Math.round(value * 10) / 10);
    if (value !== null) this.seek(value);
  }

  _set(name, value) {
    this.medium.sampling = { ...this.medium.sampling, [name]: value };
    this._fill();
    this.refresh();
  }
}
