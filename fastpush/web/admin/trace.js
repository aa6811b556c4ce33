// A trace on the screen: its last lines, and how it is started and ended.

import { $, clock, count, countOf, element, named, setText, tell, zone } from "./dom.js";

const LINES = 500; // kept
const HUES = 6; // colours of pushes, in the style sheet
const TICK_MS = 1000; // of the time that is left
const ID_CHARACTERS = 4; // of a connection's id, at its beginning (the worker's) and at its end (the connection's)
const NEAR_END = 40; // pixels from the end that count as the end

/**
 * The form and the lines. send(object) hands a request to the server, false where it cannot.
 *
 * One trace at a time: starting another ends the one that runs. The server ends all of them with the connection.
 */
export class TraceView {
  #send;
  #id = null;
  #subject = null; // { user } or { channel }, of the trace that runs, is asked for, or was last
  #isAsked = false;
  #seconds = 0; // that it was asked for
  #ends = 0; // performance.now(): the server's clock may be another
  #leftOut = 0;
  #seen = 0;
  #lines = []; // Traced, as the server tells them
  #timer = 0;

  constructor(send) {
    this.#send = send;
    $("trace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const kind = document.querySelector("input[name=subject]:checked").value;
      this.start({ [kind]: $("trace-name").value }, Number($("trace-seconds").value));
    });
    $("trace-stop").addEventListener("click", () => this.stop());
    $("trace-clear").addEventListener("click", () => this.clear());
    $("trace-save").addEventListener("click", () => this.#save());
    $("trace-follow").addEventListener("change", () => this.#follow());
    // Who scrolls up wants to read: new lines do not pull them down until they are at the end again.
    $("trace-lines").addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = $("trace-lines");
      $("trace-follow").checked = scrollHeight - scrollTop - clientHeight < NEAR_END;
    });
  }

  /** Put a user or channel into the form. */
  name(subject) {
    const [[kind, name]] = Object.entries(subject);
    document.querySelector(`input[name=subject][value=${kind}]`).checked = true;
    $("trace-name").value = name;
  }

  start(subject, seconds) {
    this.stop();
    this.clear();
    this.#subject = subject;
    this.#seconds = seconds;
    this.#isAsked = this.#send({ trace: subject, seconds });
    if (this.#isAsked) tell($("trace-outcome"), "Starting…");
    else tell($("trace-outcome"), "Not connected to the server. Start again once the page says Live.", "bad");
    this.#draw();
  }

  stop() {
    if (this.#id === null) return;
    this.#send({ untrace: this.#id });
    this.#end("Stopped.");
  }

  clear() {
    this.#lines = [];
    this.#leftOut = this.#seen = 0;
    $("trace-list").replaceChildren();
    this.#draw();
  }

  /** The connection has ended, and the trace with it. */
  onLost() {
    if (this.#id === null && !this.#isAsked) return;
    this.#isAsked = false;
    this.#end("The connection to the server was lost, and the trace ended with it. Start it again.", "bad");
  }

  onRefused(text) {
    if (!this.#isAsked) return;
    this.#isAsked = false;
    tell($("trace-outcome"), `Not started: ${text}`, "bad");
    this.#draw();
  }

  onStarted({ id, ends_seconds: ends }) {
    this.#isAsked = false;
    this.#id = id;
    this.#ends = performance.now() + this.#seconds * 1000;
    this.#timer = setInterval(() => this.#draw(), TICK_MS);
    const [[kind, name]] = Object.entries(this.#subject);
    tell($("trace-outcome"), "", "good");
    $("trace-outcome").append(`Tracing the ${kind} `, named(name), ` until ${clock(ends)} (${zone()}).`);
    $("trace-outcome").hidden = false;
    this.#draw();
  }

  onTraced({ id, events, left_out: leftOut, is_over: isOver }) {
    if (id !== this.#id) return;
    this.#seen += events.length;
    this.#leftOut = leftOut;
    this.#add(events.slice(-LINES));
    if (isOver) this.#end("The trace is over.");
    this.#draw();
  }

  #end(text, kind = "") {
    clearInterval(this.#timer);
    this.#id = null;
    tell($("trace-outcome"), text, kind);
    this.#draw();
  }

  #add(events) {
    const list = $("trace-list");
    this.#lines.push(...events);
    this.#lines.splice(0, this.#lines.length - LINES);
    list.append(...events.map(row));
    while (list.children.length > LINES) list.firstChild.remove();
    this.#follow();
  }

  #follow() {
    const lines = $("trace-lines");
    if ($("trace-follow").checked) lines.scrollTop = lines.scrollHeight;
  }

  #draw() {
    const isRunning = this.#id !== null;
    $("trace-start").disabled = this.#isAsked;
    $("trace-stop").disabled = !isRunning;
    setText($("trace-start"), isRunning ? "Start anew" : "Start");
    $("trace-save").disabled = $("trace-clear").disabled = this.#lines.length === 0;
    $("trace-empty").hidden = this.#lines.length > 0;
    setText($("trace-empty"), isRunning ? "Waiting for the first push…" : this.#about);
    $("tracing").hidden = $("tracing-text").hidden = !isRunning;
    const parts = [
      this.#seen > LINES ? `last ${count(LINES)} of ${countOf(this.#seen, "line")}` : countOf(this.#seen, "line"),
    ];
    if (this.#leftOut) parts.push(`${count(this.#leftOut)} left out: there were too many`);
    if (isRunning) parts.push(`${Math.max(0, Math.round((this.#ends - performance.now()) / 1000))} s left`);
    setText($("trace-count"), parts.join(" · "));
  }

  #about = $("trace-empty").textContent;

  #save() {
    const text = this.#lines.map((line) => `${words(line).join("\t")}\n`).join("");
    const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    element("a", { href: url, download: `trace-${clock(Date.now() / 1000).replaceAll(":", "")}.txt` }).click();
    setTimeout(() => URL.revokeObjectURL(url), TICK_MS);
  }
}

/** A step as texts: time, process, step, milliseconds, push, what, connection, detail. */
function words([, seconds, process, step, push, afterMs, what, connection, detail]) {
  const after = push ? `+${afterMs.toFixed(2)} ms` : "";
  return [clock(seconds, 3), process, step, after, push ? `push ${push}` : "", what, connection, detail].map((text) =>
    named(text).textContent.replace("(empty)", ""),
  );
}

const shortId = (id) => id && `${id.slice(0, ID_CHARACTERS)}…${id.slice(-ID_CHARACTERS)}`;

function row(traced) {
  const [at, process, step, after, push, what, connection, detail] = words(traced);
  const cell = (name, text, title) => element("span", { class: name, title }, element("bdi", {}, text));
  return element(
    "li",
    { "data-step": step, "data-hue": push ? traced[4] % HUES : undefined, title: push || undefined },
    element("time", {}, at),
    cell("process", process),
    cell("step", step),
    cell("after", after),
    cell("what", what, what || undefined),
    cell("connection", shortId(connection), connection || undefined),
    cell("detail", detail),
  );
}
