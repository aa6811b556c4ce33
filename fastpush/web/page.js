// The test page: registers at a WebSocket, shows every push, comes back when the connection is lost.
//
// States: idle -> connecting -> open -> registered, from each of them -> waiting (and connecting
// again) or -> closed, when the server said that coming back is no use.
"use strict";

const SHOWN_MESSAGES = 500;
const HEARTBEAT_SECONDS = 25;
const SILENT_SECONDS = 60; // JavaScript sees no pings: without a heartbeat for so long nobody is there
const FIRST_WAIT_SECONDS = 1;
const BUSY_WAIT_SECONDS = 4; // after "overloaded"
const LONGEST_WAIT_SECONDS = 30;
const STEADY_SECONDS = 10; // a connection that lasted so long starts the waits anew
const CONNECT_SECONDS = 15;
const PUSH_SECONDS = 15;

// What each close code means; the same table is in fastpush/errors.py and in README.md.
const CLOSE_CODES = {
  1000: "closed normally",
  1001: "the other side went away",
  1002: "protocol error",
  1006: "connection lost or refused",
  1007: "text that is not UTF-8",
  1008: "policy: registration time-out, rate limit or drop",
  1009: "message too big",
  1011: "a handler failed on the server",
  1012: "the server restarts or stops",
  1013: "overloaded, too slow, or authentication cannot be reached",
  4500: "replaced by a newer connection",
  4501: "token rejected",
  4502: "token expired",
};
// Coming back with the same token is no use.
const FINAL_CODES = {
  4500: "Connecting again would replace the newer one.",
  4501: "Enter another token and connect again.",
  4502: "Enter a fresh token and connect again.",
};

const $ = (id) => document.getElementById(id);

// -- Messages -----------------------------------------------------------------------

class MessageList {
  // Newest first. What arrives between two frames of the screen is drawn at once.
  constructor() {
    this.total = 0;
    this.waiting = [];
    $("clear").addEventListener("click", () => this.clear());
  }

  add(event, text) {
    this.total += 1;
    this.waiting.push({ when: new Date(), event, text });
    // A tab in the background draws nothing: it must not grow meanwhile.
    if (this.waiting.length > 2 * SHOWN_MESSAGES) this.waiting.splice(0, SHOWN_MESSAGES);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const list = $("messages");
    const rows = document.createDocumentFragment();
    for (const message of this.waiting.splice(0).slice(-SHOWN_MESSAGES)) rows.prepend(row(message));
    list.prepend(rows);
    while (list.childElementCount > SHOWN_MESSAGES) list.lastElementChild.remove();
    const shown = list.childElementCount;
    $("count").textContent = shown < this.total ? `${this.total}, the last ${shown} shown` : `${this.total}`;
    $("empty").hidden = shown > 0;
    list.hidden = shown === 0;
    $("clear").disabled = shown === 0;
  }

  clear() {
    this.total = 0;
    this.waiting = [];
    $("messages").replaceChildren();
    this.draw();
  }
}

function row({ when, event, text }) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.dateTime = when.toISOString();
  time.textContent = `${when.toLocaleTimeString([], { hour12: false })}.${String(when.getMilliseconds()).padStart(3, "0")}`;
  const label = document.createElement("b");
  label.textContent = event;
  const body = document.createElement("span");
  body.textContent = text; // never as HTML: anybody may have written it
  item.append(time, label, body);
  return item;
}

// -- Receiving ----------------------------------------------------------------------

class Receiver {
  constructor(messages) {
    this.messages = messages;
    this.socket = null;
    this.wish = null; // what to register; null: the user wants no connection
    this.attempts = 0;
  }

  connect(wish) {
    this.forget();
    this.wish = wish;
    this.attempts = 0;
    this.open();
  }

  disconnect() {
    this.wish = null;
    const socket = this.socket;
    this.forget();
    if (socket) socket.close(1000);
    this.show("idle", "Disconnected");
  }

  retryNow() {
    if (this.wish && !this.socket) this.open();
  }

  open() {
    this.forget();
    this.refusal = "";
    this.registeredAt = 0;
    this.show("connecting", this.attempts ? "Reconnecting…" : "Connecting…");
    const url = new URL(this.wish.url);
    const wanted = { envelope: 1, confirm: 1, heartbeat: HEARTBEAT_SECONDS };
    if (this.wish.how === "url") Object.assign(wanted, { token: this.wish.token, event: this.wish.event });
    for (const [name, value] of Object.entries(wanted)) url.searchParams.set(name, value);
    let socket;
    try {
      socket = new WebSocket(url);
    } catch (error) {
      this.stop(`Cannot connect: ${error.message}`);
      return;
    }
    this.socket = socket;
    // Handlers of a socket that was given up do nothing.
    const mine = (handle) => (event) => this.socket === socket && handle(event);
    socket.addEventListener("open", mine(() => this.onOpen()));
    socket.addEventListener("message", mine((event) => this.onMessage(event.data)));
    socket.addEventListener("close", mine((event) => this.onClose(event.code, event.reason)));
    this.expectWithin(CONNECT_SECONDS);
  }

  onOpen() {
    this.show("connecting", "Connected, registering…");
    const { how, token, event } = this.wish;
    if (how === "message") this.socket.send(JSON.stringify({ token, event }));
    this.expectWithin(SILENT_SECONDS);
  }

  onMessage(data) {
    this.expectWithin(SILENT_SECONDS);
    if (data === "heartbeat") return;
    let fields;
    try {
      fields = JSON.parse(data);
    } catch {
      fields = null;
    }
    if (typeof fields?.event === "string" && typeof fields.message === "string") {
      this.messages.add(fields.event, fields.message);
    } else if (typeof fields?.registered === "string") {
      this.registeredAt = Date.now();
      this.show("registered", `Connected: receiving ${fields.registered}`);
    } else if (typeof fields?.error === "string") {
      this.refusal = fields.error;
      this.show("refused", `Not registered: ${fields.error}`);
    } else {
      this.messages.add("?", String(data)); // a server of another kind
    }
  }

  onClose(code, reason) {
    const words = CLOSE_CODES[code] ?? "unknown code";
    const detail = reason && reason !== words ? ` (${reason})` : "";
    const what = `Closed with ${code}, ${words}${detail}`;
    if (FINAL_CODES[code]) this.stop(`${what}. Not reconnecting. ${FINAL_CODES[code]}`);
    else if (code === 1008 && this.refusal) this.stop(`${what}. Correct token or event and connect again.`);
    else this.wait(code, what);
  }

  wait(code, what) {
    const lasted = this.registeredAt ? (Date.now() - this.registeredAt) / 1000 : 0;
    if (lasted > STEADY_SECONDS) this.attempts = 0;
    const first = code === 1013 ? BUSY_WAIT_SECONDS : FIRST_WAIT_SECONDS;
    const longest = Math.min(LONGEST_WAIT_SECONDS, first * 2 ** this.attempts);
    this.attempts += 1;
    // Jitter: after a restart not all clients come back in the same moment.
    const until = Date.now() + 1000 * longest * (0.5 + Math.random() / 2);
    this.forget();
    const tick = () => {
      const left = until - Date.now();
      if (left <= 0) this.open();
      else {
        this.show("waiting", `Reconnecting in ${Math.ceil(left / 1000)} s. ${what}`, `Reconnecting. ${what}`);
        this.timer = setTimeout(tick, Math.min(left, 250));
      }
    };
    tick();
  }

  stop(text) {
    this.wish = null;
    this.forget();
    this.show("closed", text);
  }

  // Give up the socket and every timer.
  forget() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (socket && socket.readyState <= WebSocket.OPEN) socket.close();
  }

  expectWithin(seconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onClose(1006, `nothing heard for ${seconds} s`), seconds * 1000);
  }

  // spoken: for screen readers, which would read every second of a countdown.
  show(state, text, spoken = text) {
    const status = $("status");
    status.dataset.state = state;
    if (status.textContent !== text) status.textContent = text;
    if ($("spoken").textContent !== spoken) $("spoken").textContent = spoken;
    $("disconnect").disabled = !this.wish;
    $("connect").textContent = state === "waiting" ? "Connect now" : this.wish ? "Reconnect" : "Connect";
    document.title = `${state === "registered" ? "●" : "○"} fastpush`;
  }
}

// -- Sending ------------------------------------------------------------------------

async function push(path, key, body) {
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  if (key) headers["X-API-Key"] = key;
  const response = await fetch(path, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
    credentials: "omit",
    signal: AbortSignal.timeout(PUSH_SECONDS * 1000),
  });
  const reply = await response.json().catch(() => null);
  if (response.ok && reply) return reply;
  throw new Error(`${response.status}: ${reply?.error?.message ?? "the answer is not fastpush's"}`);
}

function outcome({ sent, unconfirmed }) {
  const reached = `Sent to ${sent} ${sent === 1 ? "connection" : "connections"}`;
  if (unconfirmed) return `${reached}; ${unconfirmed} worker(s) did not confirm`;
  return sent ? reached : `${reached}: this user is not registered for this event`;
}

async function onPush(event) {
  event.preventDefault();
  const result = $("push-result");
  result.dataset.state = "";
  result.textContent = "Pushing…";
  const body = { userId: $("push-user").value, event: $("push-event").value, message: $("push-message").value };
  try {
    const reply = await push($("push-path").value, $("push-key").value, body);
    result.dataset.state = reply.sent && !reply.unconfirmed ? "good" : "";
    result.textContent = outcome(reply);
  } catch (error) {
    result.dataset.state = "bad";
    result.textContent = error.name === "TimeoutError" ? `No answer within ${PUSH_SECONDS} s` : `Failed: ${error.message}`;
  }
}

// -- The page -----------------------------------------------------------------------

const receiver = new Receiver(new MessageList());

function onConnect(event) {
  event.preventDefault();
  const wish = {
    url: $("websocket-url").value,
    how: $("receive").elements.how.value,
    token: $("token").value,
    event: $("event").value,
  };
  if (!$("push-user").value) $("push-user").value = wish.token; // right where the token is the user
  if (!$("push-event").value) $("push-event").value = wish.event;
  receiver.connect(wish);
}

$("websocket-url").value = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
$("receive").addEventListener("submit", onConnect);
$("push").addEventListener("submit", onPush);
$("disconnect").addEventListener("click", () => receiver.disconnect());
$("push-message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("push").requestSubmit();
});
addEventListener("online", () => receiver.retryNow());

// /#token=aaa&event=topic1 connects at once; what follows # is not sent to the server and not logged.
const preset = new URLSearchParams(location.hash.slice(1));
for (const name of ["token", "event"]) $(name).value = preset.get(name) ?? $(name).value;
if (preset.get("how") === "url") $("receive").elements.how.value = "url";
if (preset.get("token") && preset.get("event")) $("receive").requestSubmit();
