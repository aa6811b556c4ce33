// Talks and how they are shown: rooms, events and private talks, each with its last lines.
//
// What others wrote is only ever set as textContent. A stranger's image is loaded when the reader asks for
// it, because loading it tells the stranger's host the reader's address.
import { momentOf, say, timeOf } from "./words.js";

const LINES = 500; // kept of each talk
const PRIVATE_TALKS = 30; // kept; strangers can open them
const NEAR_END = 48; // pixels from the end that count as the end
const HUES = 6; // colours of names, in the style sheet

/** Create an element with text and attributes. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The URL that a text is, if it is one of http or https; else null. */
export function webUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

/**
 * All talks of a connection. A talk: { id, kind: "room" | "private", name, lines, unread, members, online }.
 *
 * A line: { kind: "own" | "other" | "system", author, text, when: Date }, and of an image or file { media:
 * "image" | "file", url }; a system line has { say, values } in place of its text. `fold`: follows on
 * lines with the same word are counted in one.
 */
export class Talks {
  #talks = new Map();
  #onChange;

  /** onChange(talk, line): a line was added; without a line: the list itself has changed. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.active = null;
  }

  /** All talks, in the order in which they were opened. */
  all() {
    return [...this.#talks.values()];
  }

  get(id) {
    return this.#talks.get(id);
  }

  /** The talk of this id, opened where there is none yet. */
  open(id, kind, name) {
    let talk = this.#talks.get(id);
    if (talk) return talk;
    talk = { id, kind, name, lines: [], unread: 0, members: null, online: 0, used: 0 };
    this.#talks.set(id, talk);
    this.active ??= talk;
    if (kind === "private") this.#boundPrivate();
    this.#onChange();
    return talk;
  }

  #boundPrivate() {
    const closable = this.all().filter((talk) => talk.kind === "private" && talk !== this.active);
    if (closable.length <= PRIVATE_TALKS) return;
    const [oldest] = closable.sort((one, other) => one.used - other.used);
    this.#talks.delete(oldest.id);
  }

  close(id) {
    if (this.active === this.#talks.get(id)) this.active = this.all()[0];
    this.#talks.delete(id);
    this.#onChange();
  }

  /** Show this talk from now on. */
  activate(id) {
    this.active = this.#talks.get(id);
    this.active.unread = 0;
    this.#onChange();
  }

  clear() {
    this.#talks.clear();
    this.active = null;
    this.#onChange();
  }

  add(talk, line) {
    line.when ??= new Date();
    talk.used = performance.now();
    const last = talk.lines.at(-1);
    if (line.fold && last?.fold === line.fold) {
      last.count += 1;
      last.when = line.when;
      this.#onChange(talk, last);
      return;
    }
    if (line.fold) line.count = 1;
    talk.lines.push(line);
    if (talk.lines.length > LINES) talk.lines.splice(0, talk.lines.length - LINES);
    if (line.kind === "other" && (talk !== this.active || document.hidden)) talk.unread += 1;
    this.#onChange(talk, line);
  }

  /** Unread lines of all talks. */
  unread() {
    return this.all().reduce((sum, talk) => sum + talk.unread, 0);
  }
}

/** The lines of one talk on the screen: always at the end, unless the reader has scrolled up. */
export class LineView {
  #list;
  #newButton;
  #empty;
  #talk = null;
  #shown = new Map(); // line -> its element
  #frame = 0;
  #missed = 0;
  #isAtEnd = true; // stays, unless the reader scrolls

  constructor(list, newButton, empty) {
    this.#list = list;
    this.#newButton = newButton;
    this.#empty = empty;
    newButton.addEventListener("click", () => {
      this.toEnd();
      list.focus({ preventScroll: true });
    });
    list.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    const stay = () => this.#isAtEnd && this.toEnd();
    list.addEventListener("load", stay, { capture: true }); // an image has its height now
    new ResizeObserver(stay).observe(list);
  }

  /** Show this talk's lines from its end. */
  show(talk) {
    if (this.#talk === talk) return;
    this.#talk = talk;
    this.redraw();
  }

  /** Draw everything anew, in the language of now. */
  redraw() {
    this.#shown.clear();
    this.#list.ariaBusy = "true"; // what was read out before is not read again
    this.#list.replaceChildren();
    this.#missed = 0;
    this.#draw();
    this.toEnd();
    requestAnimationFrame(() => (this.#list.ariaBusy = "false"));
  }

  /** A line was added or has changed. What comes between two frames of the screen is drawn at once. */
  update(line) {
    const drawn = this.#shown.get(line);
    if (drawn) {
      const anew = drawLine(line);
      drawn.replaceWith(anew);
      this.#shown.set(line, anew);
      return;
    }
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  toEnd() {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#reached();
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const lines = this.#talk?.lines ?? [];
    const kept = new Set(lines);
    for (const [line, drawn] of this.#shown) {
      if (kept.has(line)) continue;
      drawn.remove();
      this.#shown.delete(line);
    }
    const added = lines.filter((line) => !this.#shown.has(line));
    const rows = document.createDocumentFragment();
    for (const line of added) {
      const drawn = drawLine(line, lines[lines.indexOf(line) - 1]);
      this.#shown.set(line, drawn);
      rows.append(drawn);
    }
    this.#list.append(rows);
    this.#empty.hidden = lines.length > 0;
    if (this.#isAtEnd || added.some((line) => line.kind === "own")) this.toEnd();
    else this.#miss(added.length);
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    this.#isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (this.#isAtEnd) this.#reached();
  }

  #miss(count) {
    this.#missed += count;
    this.#newButton.hidden = !this.#missed;
    this.#newButton.textContent = say("newMessages", { count: this.#missed });
  }

  #reached() {
    this.#isAtEnd = true;
    this.#missed = 0;
    this.#newButton.hidden = true;
  }
}

/** The colour of a name: always the same for the same name. */
export function hueOf(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 65_521;
  return String(sum % HUES);
}

function drawLine(line, before) {
  const item = element("div", { className: `line ${line.kind}` });
  const time = element("time", { dateTime: line.when.toISOString(), title: momentOf(line.when) }, timeOf(line.when));
  if (line.fold) item.setAttribute("aria-live", "off"); // it is not read out again and again
  if (line.kind === "system") {
    item.append(element("span", { className: "text" }, systemText(line)), time);
    return item;
  }
  const author = line.kind === "own" ? say("own") : line.author;
  if (author) {
    const follows = before?.kind === line.kind && before.author === line.author && line.when - before.when < 120_000;
    if (follows) item.classList.add("follows");
    const name = element("span", { className: "author" }, author);
    if (line.kind === "other") name.dataset.hue = hueOf(author);
    item.append(name);
  }
  const bubble = element("div", { className: "bubble" });
  if (line.media) bubble.append(drawMedia(line));
  else bubble.append(element("span", { className: "text", dir: "auto" }, line.text));
  bubble.append(time);
  item.append(bubble);
  return item;
}

function systemText(line) {
  if (line.fold) return line.count > 1 ? `${line.fold} × ${line.count}` : line.fold;
  return line.say ? say(line.say, line.values) : line.text;
}

function drawMedia(line) {
  const { media, text, url } = line;
  const address = webUrl(url);
  const box = element("div", { className: "media" });
  if (!address) {
    box.append(element("span", { className: "text" }, `${text ? `${text} · ` : ""}${say("badUrl", { url })}`));
    return box;
  }
  const link = element("a", { href: address.href, rel: "noopener noreferrer nofollow", target: "_blank" });
  link.append(text || address.href);
  const row = element("div", { className: "media-row" });
  row.append(element("span", { className: "media-kind" }, say(media)), link);
  if (text) row.append(element("span", { className: "media-host" }, address.host));
  box.append(row);
  if (media === "image") box.append(line.isShown ? imageOf(line, address) : imageOffer(line, address));
  return box;
}

function imageOffer(line, address) {
  const button = element("button", { type: "button", className: "small" }, say("showImage"));
  const warning = element("span", { className: "media-note" }, say("hostLearns", { host: address.host }));
  const offer = element("div", { className: "media-row" }, button, warning);
  button.addEventListener("click", () => {
    line.isShown = true;
    const image = imageOf(line, address);
    offer.replaceWith(image);
    image.focus();
  });
  return offer;
}

function imageOf({ text, author }, address) {
  const alt = `${say("image")} ${text || author || ""}`.trim();
  const image = element("img", { alt, referrerPolicy: "no-referrer", tabIndex: -1 });
  image.addEventListener("error", () => image.replaceWith(element("span", {}, say("imageFailed"))));
  image.src = address.href;
  return image;
}
