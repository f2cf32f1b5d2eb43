// Seconds and how people write them.

/** 75.25 -> "1:15.3"; whole seconds without a fraction. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const hours = Math.floor(tenths / 36000), minutes = Math.floor(tenths / 600) % 60, rest = tenths % 600;
  const tail = String(Math.floor(rest / 10)).padStart(2, "0") + (rest % 10 ? `.${rest % 10}` : "");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

/** "75", "1:15" or "0:01:15.5" -> seconds; null for an empty text, NaN for anything else. */
export function seconds(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  if (!/^(\d+:){0,2}\d+([.,]\d+)?$/.test(trimmed)) return NaN;
  return trimmed.replace(",", ".").split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
}
