// From what a person drops, pastes or types to a medium that can be asked about.

import * as api from "./api.js";
import { say } from "./words.js";

const ADDRESS = /https?:\/\/[!-~]+/i; // printable ASCII only: Chinese may follow without a space
const IMAGE_NAME = /\.(jpe?g|png|webp|bmp|gif)$/i;
const VIDEO_NAME = /\.(mp4|m4v|mov|mkv|webm|avi|ts|m2ts|mts|mpg|mpeg|vob|wmv|flv|ogv|mxf|ivf|3gp)$/i;

const NO_SAMPLING = { num_frames: null, start: null, end: null };

/** The first address in a text, "" where there is none. */
export function addressIn(text) {
  return (text.match(ADDRESS)?.[0] ?? "").replace(/[.,;:!?)\]}'"]+$/, "");
}

export function fromAddress(url) {
  const path = new URL(url).pathname;
  return { kind: IMAGE_NAME.test(path) ? "image" : "video", name: url, url, sampling: { ...NO_SAMPLING } };
}

/**
 * Send a file to the server, where it keeps files; otherwise it goes along with each question.
 * @throws {api.ApiError} the file is not a medium, is empty, or was refused
 */
export async function fromFile(file, onProgress, signal) {
  const kind = kindOf(file);
  if (!kind) throw new api.ApiError(say("notMedia", { name: file.name }));
  if (!file.size) throw new api.ApiError(say("empty"));
  const id = await api.upload(file, onProgress, signal);
  const url = id ? `file-id:${id}` : await dataUrl(file);
  return { kind, name: file.name, url, sampling: { ...NO_SAMPLING } };
}

/** What a browser can play of a medium that it no longer holds; null where it cannot. */
export async function sourceOf(medium) {
  if (!medium.url) return null;
  if (!medium.url.startsWith("file-id:")) return medium.url;
  try {
    return await api.content(medium.url.slice("file-id:".length));
  } catch {
    return null;
  }
}

function kindOf(file) {
  if (file.type.startsWith("image/") && file.type !== "image/gif") return "image";
  if (file.type.startsWith("video/") || file.type === "image/gif" || VIDEO_NAME.test(file.name)) return "video";
  return IMAGE_NAME.test(file.name) ? "image" : null;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:;/, "data:application/octet-stream;"));
    reader.onerror = () => reject(new api.ApiError(reader.error.message));
    reader.readAsDataURL(file);
  });
}
