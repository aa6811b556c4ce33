// Elements, and numbers as people read them. What others have written is only ever set as textContent.

export const $ = (id) => document.getElementById(id);

/** Create an element with attributes and children; a child that is a string becomes text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key === "onclick") made.addEventListener("click", value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Set a text only where it differs: an untouched node costs no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show a sentence about what has been done; kind: "good", "bad" or "". An empty text hides it. */
export function tell(node, text, kind = "") {
  node.hidden = !text;
  node.dataset.kind = kind;
  node.textContent = text;
}

/** A name that clients gave, as one line: control and direction characters do not act, they show. */
export function named(text) {
  const shown = String(text).replace(
    /[\p{Cc}\p{Zl}\p{Zp}\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/gu,
    (sign) => `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
  return element("bdi", { class: "name" }, shown || "(empty)");
}

// -- Numbers ------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NOTHING = "–";
const [LAG_WARN_MS, LAG_BAD_MS] = [50, 500]; // as `fastpush top`

export const count = (value) => whole.format(value);

/** "1 worker", "2 workers". */
export const countOf = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

/** A number with three significant digits below 100, whole from there on. */
function short(value) {
  if (value === 0 || value >= 100) return count(value);
  return value >= 10 ? value.toFixed(1) : value.toFixed(value < 0.1 ? 3 : 2);
}

/** Things a second. */
export function rate(value) {
  return value === 0 || value >= 100 ? count(value) : value.toFixed(1);
}

/** [number, unit] of milliseconds; null: nothing was measured. */
export function duration(ms) {
  if (ms === null || ms === undefined) return [NOTHING, ""];
  return ms < 10_000 ? [short(ms), "ms"] : [short(ms / 1000), "s"];
}

/** [number, unit] of a lag, which is measured to a tenth of a millisecond. */
export function lag(ms) {
  return ms !== null && ms !== undefined && ms < 100 ? [ms.toFixed(1), "ms"] : duration(ms);
}

/** "warn" or "bad" of a lag that clients notice; "" of any other. */
export function lagLevel(ms) {
  return ms >= LAG_BAD_MS ? "bad" : ms >= LAG_WARN_MS ? "warn" : "";
}

/** [number, unit] of bytes. */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at++) value /= 1000;
  return [at === 0 ? count(value) : short(value), units[at]];
}

/** A number with its unit as one text. */
export const joined = ([value, unit]) => (unit ? `${value} ${unit}` : value);

/** A number of seconds as people say it: "48 s", "12 min", "3 h 05 min", "4 d 2 h". */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const two = (value) => String(value).padStart(2, "0");

/** The time of day, in the server's time zone; with `digits` of a second. */
export function clock(unixSeconds, digits = 0) {
  const at = dateOf(unixSeconds);
  const fraction = digits ? `.${String(at.getMilliseconds()).padStart(3, "0").slice(0, digits)}` : "";
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}${fraction}`;
}

let zoneMinutes = 0; // the server's, ahead of UTC

/** Tell times as the server does in its sentences, its commands and on its clock, wherever the reader is. */
export function setZone(minutes) {
  zoneMinutes = minutes;
}

/** The server's time zone: "UTC", "UTC+05:30". */
export function zone() {
  const ahead = Math.abs(zoneMinutes);
  const sign = zoneMinutes < 0 ? "−" : "+";
  return ahead === 0 ? "UTC" : `UTC${sign}${two(Math.floor(ahead / 60))}:${two(ahead % 60)}`;
}

/** A date whose hours, minutes and day, as this browser tells them, are the server's. */
export function dateOf(unixSeconds) {
  const aside = zoneMinutes + new Date(unixSeconds * 1000).getTimezoneOffset();
  return new Date(unixSeconds * 1000 + aside * 60_000);
}

/** The time of day, and the date where it is not today's. */
export function moment(unixSeconds) {
  const at = dateOf(unixSeconds);
  const today = at.toDateString() === dateOf(Date.now() / 1000).toDateString();
  const date = today ? "" : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
  return date + clock(unixSeconds);
}
