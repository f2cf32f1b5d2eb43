// The server's API. Addresses are relative to the page's, so that a path prefix of a proxy stays.

import { say } from "./words.js";

const ROOT = new URL("../", document.baseURI);

/** An answer of the server that is not a success, or no answer at all (status 0). */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const settings = { key: "" };

function headers(extra = {}) {
  return settings.key ? { ...extra, Authorization: `Bearer ${settings.key}` } : extra;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(say("unreachable"));
  }
  if (!response.ok) throw refusal(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

function refusal(status, body, after) {
  let error = {};
  try {
    error = JSON.parse(body).error ?? {};
  } catch { /* a proxy's page */ }
  const known = { 401: "e401", 413: "e413", 429: "e429", 503: "e503", 504: "e504" }[status];
  const detail = typeof error.message === "string" ? error.message : `HTTP ${status}`;
  return new ApiError(known ? `${say(known, { after: after ?? 5 })} (${detail})` : detail, status, error.code ?? null);
}

/** The models' ids. */
export async function models() {
  return (await (await call("v1/models")).json()).data;
}

/** The frames that a question would see: `{frames: [{time, image}], ...}`. */
export async function frames(part, signal) {
  const body = JSON.stringify(part);
  return await (await call("v1/video/frames", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal })).json();
}

/** A kept file's content, for showing it again after a reload. */
export async function content(id) {
  return await (await call(`v1/files/${encodeURIComponent(id)}/content`)).blob();
}

/**
 * Upload a file; XMLHttpRequest, because fetch tells no progress.
 * @returns {Promise<string|null>} its id, or null where the server keeps no files
 */
export function upload(file, onProgress, signal) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", file, file.name || "video");
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", new URL("v1/files", ROOT));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(say("unreachable")));
    request.onabort = () => reject(new DOMException("", "AbortError"));
    request.onload = () => {
      if (request.status === 404 || request.status === 405 || request.status === 501) resolve(null);
      else if (request.status >= 300) reject(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      else resolve(JSON.parse(request.responseText).id);
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** The answer's events as they come; throws where the stream ends without `[DONE]`. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.getReader(), decoder = new TextDecoder(); // a TextDecoderStream costs more for each word
  let buffer = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(say("broken"));
    }
    if (piece.done) throw new ApiError(say("broken"));
    buffer += decoder.decode(piece.value, { stream: true });
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // comments keep the connection open
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
      yield event;
    }
  }
}
