// The administration page: what this host is doing, why a user did not get something, and what may be done about it.
//
// Data flow one way: the server tells (live.js), and each message changes the parts that show it: figures and tables
// here, plots.js, trace.js, report.js. Nothing here changes the server but the forms that say so.

import {
  $,
  bytes,
  count,
  countOf,
  duration,
  element,
  joined,
  lag,
  lagLevel,
  named,
  rate,
  setText,
  setZone,
  span,
  tell,
  zone,
} from "./dom.js";
import { Live, leave, post, request, session } from "./live.js";
import { Board } from "./plots.js";
import { showReport } from "./report.js";
import { TraceView } from "./trace.js";

const SILENT_MS = 3000; // without live figures, from which on the page says so
const RENEW_MS = 15_000; // … and begins a new connection
const WATCH_MS = 500;
const VIEWS = ["overview", "user", "trace", "push"];

let heard = 0; // when figures came the last time; 0: not yet
let opened = 0; // when the connection was opened that there is
let waitsUntil = 0; // when the next connection is tried
let slots = 0; // worker slots of now
let mayAct = false; // [admin] actions of now
let isPushing = false;
let begun = null; // resolves when the session has been asked for: the time zone is known, if it can be

const board = new Board($("plots"));
const live = new Live({ session: onSession, message: onMessage, state: onState });
const trace = new TraceView((object) => live.send(object));

// -- The connection -------------------------------------------------------------------

function onSession() {
  setText($("host"), session.host);
  setZone(session.zone_minutes);
  setText($("zone"), `Times are ${zone()}`);
  showVersion(session.version);
  document.title = `${session.host} – fastpush administration`;
  showActions(session.actions);
}

function showVersion(version) {
  setText($("version"), version);
}

function onState(state, seconds) {
  waitsUntil = performance.now() + seconds * 1000;
  if (state === "open") opened = performance.now();
  if (state !== "open") trace.onLost();
  $("link").dataset.link = state;
  watch();
}

function onMessage(message) {
  if (message.hour) board.replace(message.hour);
  if (message.top) showTop(message.top);
  if (message.trace) trace.onStarted(message.trace);
  if (message.traced) trace.onTraced(message.traced);
  if (message.error) trace.onRefused(message.error);
}

/** Say how the live figures are, whatever the reason that they do not come. */
function watch() {
  const now = performance.now();
  const { link } = $("link").dataset;
  const silent = now - heard;
  const isSilent = heard > 0 && silent > SILENT_MS;
  const isLive = link === "open" && heard > 0 && !isSilent;
  $("link").dataset.state = isLive ? "open" : isSilent ? "bad" : "idle";
  setText(
    $("link-text"),
    isLive ? "Live" : link === "open" ? "No data" : link === "waiting" ? "Reconnecting" : "Connecting",
  );
  document.body.classList.toggle("stale", isSilent);
  const since = isSilent ? `No live figures for ${span(silent / 1000)}: what is shown is old. ` : "";
  const wait = Math.max(0, Math.ceil((waitsUntil - now) / 1000));
  const next =
    link === "waiting"
      ? `Next attempt in ${countOf(wait, "second")}.`
      : link === "open"
        ? "The server is connected but silent."
        : "Connecting…";
  const isFirst = heard === 0 && link === "waiting";
  setText($("stopped"), since ? since + next : isFirst ? `The server cannot be reached. ${next}` : "");
  $("stopped").hidden = !(isSilent || isFirst);
  // Said once a change; the seconds that go by are for the eye.
  setText(
    $("spoken"),
    isLive ? "Live figures" : isSilent ? "No live figures" : isFirst ? "The server cannot be reached" : "",
  );
  // A new connection gets its own time: what was missed before says nothing of it.
  if (link === "open" && now - Math.max(heard, opened) > RENEW_MS) live.renew();
}

// -- Figures of now -------------------------------------------------------------------

function figure(id, [value, unit], level = "") {
  const node = $(id);
  if (!node.firstElementChild) node.replaceChildren(element("span"), element("small"));
  setText(node.firstChild, value);
  setText(node.lastChild, unit);
  node.dataset.level = level;
  node.style.setProperty("--characters", value.length); // a number that is long gets smaller, and is never cut
}

function showTop(top) {
  heard = performance.now();
  const [, connections, pushes, deliveries, p50, p99, drops, queue, lags] = top.point;
  figure("now-connections", [count(connections), ""]);
  figure("now-pushes", [rate(pushes), "/s"]);
  figure("now-deliveries", [rate(deliveries), "/s"]);
  figure("now-p50", duration(p50));
  figure("now-p99", duration(p99));
  figure("now-drops", [rate(drops), "/s"], drops > 0 ? "warn" : "");
  figure("now-queue", bytes(queue));
  const worst = lags.length ? Math.max(...lags.map(([, ms]) => ms)) : null;
  figure("now-lag", lag(worst), lagLevel(worst));
  board.add(top.point);
  showVersion(top.version);
  showActions(top.actions);
  showServing(top.workers);
  showWorkers(top.workers, top.actions);
  showBusy("users", top.users, "user");
  showBusy("channels", top.channels, "channel");
  for (const node of document.querySelectorAll(".busy-seconds"))
    setText(node, `within the last ${count(top.busy_seconds)} s`);
  watch();
}

function showServing(workers) {
  const stale = workers.filter((worker) => worker.is_stale).length;
  const all = new Set(workers.map((worker) => worker.slot)).size;
  const leaving = workers.length - all;
  $("serving").dataset.state = stale ? "bad" : leaving ? "warn" : all ? "open" : "idle";
  const text = stale ? `${stale} of ${countOf(workers.length, "worker")} silent` : countOf(all, "worker");
  setText($("serving"), leaving && !stale ? `${text}, ${leaving} leaving` : text);
  slots = all;
}

// -- Tables ---------------------------------------------------------------------------

const COLUMNS = [
  "Slot",
  "Process",
  "Connections",
  "Slow",
  "Pushes/s",
  "Deliveries/s",
  "Gathering",
  "Lag",
  "Queued",
  "Drops/s",
  "Up",
];

/** Bring rows in line with items: rows stay what they are, so that a focused button stays focused. */
function fillRows(body, items, keyOf, make, update) {
  const rows = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    const row = rows.get(key) ?? make(item);
    rows.delete(key);
    row.dataset.key = key;
    update(row, item);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  for (const row of rows.values()) row.remove();
}

function showWorkers(workers, actions) {
  $("no-workers").hidden = workers.length > 0;
  fillRows(
    $("workers").tBodies[0],
    workers,
    (worker) => worker.worker,
    makeWorker,
    (row, worker) => updateWorker(row, worker, actions),
  );
}

function makeWorker({ slot, worker }) {
  const cells = COLUMNS.map((label) =>
    element("td", { role: "cell", "data-label": label, class: label === "Process" && "text" }),
  );
  const drain = element(
    "button",
    {
      type: "button",
      class: "small",
      "aria-label": `Drain slot ${slot}, worker-${worker}`,
      onclick: () => confirmDrain(slot, worker),
    },
    "Drain…",
  );
  return element("tr", { role: "row" }, ...cells, element("td", { role: "cell", class: "act" }, drain));
}

function updateWorker(row, worker, actions) {
  const values = [
    String(worker.slot),
    `worker-${worker.worker}`,
    count(worker.connections),
    count(worker.slow_connections),
    rate(worker.pushes),
    rate(worker.deliveries),
    worker.gathering.toFixed(1),
    worker.is_stale ? "silent" : joined(lag(worker.lag_ms)),
    joined(bytes(worker.queue_bytes)),
    rate(worker.drops),
    span(worker.uptime_seconds),
  ];
  values.forEach((value, at) => setText(row.cells[at], value));
  row.cells[1].title = `pid ${worker.pid}`;
  row.cells[3].dataset.level = worker.slow_connections ? "warn" : "";
  row.cells[7].dataset.level = worker.is_stale ? "bad" : lagLevel(worker.lag_ms);
  row.cells[9].dataset.level = worker.drops ? "warn" : "";
  row.classList.toggle("silent", worker.is_stale);
  row.cells[11].firstChild.hidden = !actions;
}

/** Items in the order that the rows of a table have now, new ones behind them. */
function asShown(body, items, keyOf) {
  const places = new Map([...body.rows].map((row, at) => [row.dataset.key, at]));
  const place = (item) => places.get(keyOf(item)) ?? places.size;
  return [...items].sort((a, b) => place(a) - place(b));
}

function showBusy(id, all, kind) {
  $(id).hidden = all.length === 0;
  $(`no-${id}`).hidden = all.length > 0;
  const body = $(id).tBodies[0];
  // Rows do not change places under a pointer, nor under the focus, which they would lose.
  const isHeld = body.matches(":hover, :focus-within");
  fillRows(
    body,
    isHeld ? asShown(body, all, ([name]) => name) : all,
    ([name]) => name,
    ([name]) => makeBusy(name, kind),
    (row, [, pushes, deliveries]) => {
      setText(row.cells[1], rate(pushes));
      setText(row.cells[2], rate(deliveries));
    },
  );
}

function makeBusy(name, kind) {
  const title = kind === "user" ? "Look up this user" : "Trace this channel";
  const link = element(
    "a",
    { href: kind === "user" ? `#user/${encode(name)}` : `#trace/${encode(name)}`, title },
    named(name),
  );
  return element("tr", {}, element("th", { scope: "row", class: "text" }, link), element("td"), element("td"));
}

// -- Actions --------------------------------------------------------------------------

function showActions(actions) {
  $("restart").hidden = !actions;
  $("actions-note").hidden = actions;
  $("push-note").hidden = actions;
  mayAct = actions;
  showPushing();
}

function showPushing() {
  $("push-send").disabled = isPushing || !mayAct;
}

/** Ask before something is done; returns {"seconds": S or null}, or null for no. */
function confirm(title, text, verb) {
  const dialog = $("confirm");
  setText($("confirm-title"), title);
  setText($("confirm-text"), text);
  setText($("confirm-do"), verb);
  $("confirm-seconds").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const { value } = $("confirm-seconds");
        resolve(dialog.returnValue === "do" ? { seconds: value === "" ? null : Number(value) } : null);
      },
      { once: true },
    );
  });
}

async function confirmDrain(slot, worker) {
  const text = [
    `A new process takes slot ${slot} first; then worker-${worker} tells its clients to come back, evenly over the time`,
    "given, and ends.",
  ].join(" ");
  const answer = await confirm(`Drain slot ${slot}?`, text, "Drain");
  if (answer)
    await act(
      "/admin/drain",
      { worker: slot, ...answer },
      ({ seconds }) => `Slot ${slot} drains over ${span(seconds)}, once its new process is ready.`,
    );
}

async function confirmRestart() {
  const text = [
    `Each of the ${countOf(slots, "worker")} is replaced by a new process, one after the other, and the server goes on.`,
    "Every client is told once to come back.",
  ].join(" ");
  const answer = await confirm("Restart all workers?", text, "Restart all");
  if (answer)
    await act(
      "/admin/restart",
      answer,
      ({ workers, seconds }) => `${countOf(workers, "worker")} are replaced one by one, ${span(seconds)} each.`,
    );
}

async function act(path, body, sentence) {
  tell($("acted"), "Asking the server…");
  try {
    const reply = await post(path, body);
    if (reply.error) tell($("acted"), `Not done: ${reply.error}`, "bad");
    else tell($("acted"), sentence(reply), "good");
  } catch (error) {
    tell($("acted"), `Not done. ${error.message}`, "bad");
  }
}

async function push() {
  const [userId, event, message] = [$("push-user").value, $("push-event").value, $("push-message").value];
  isPushing = true;
  showPushing();
  $("push-why").hidden = true;
  tell($("push-outcome"), "Pushing…");
  try {
    const reply = await post("/admin/push", { userId, event, message });
    const missing = reply.unconfirmed ? ` ${countOf(reply.unconfirmed, "worker")} did not count in time.` : "";
    if (reply.sent) tell($("push-outcome"), `Sent to ${countOf(reply.sent, "connection")}.${missing}`, "good");
    else
      tell(
        $("push-outcome"),
        `Sent to nobody: no connection of this user is registered for this event.${missing}`,
        "warn",
      );
    $("push-why").hidden = Boolean(reply.sent);
  } catch (error) {
    tell($("push-outcome"), error.message, "bad");
  } finally {
    isPushing = false;
    showPushing();
  }
}

// -- Looking up -----------------------------------------------------------------------

let asked = 0; // number of the last look-up; the answer to an older one is not shown
let lookedUp = ""; // the user; a field would take line ends out of the name

async function lookUp(user) {
  const number = ++asked;
  lookedUp = user;
  $("user-name").value = user;
  $("user-empty").hidden = true;
  tell($("user-outcome"), "Asking every worker…");
  $("report").classList.add("old");
  try {
    await begun;
    const why = await request(`/admin/why.json?user=${encodeURIComponent(user)}`);
    if (number !== asked) return;
    showReport($("report"), why);
    tell($("user-outcome"), "");
    $("report").hidden = $("user-trace").hidden = false;
  } catch (error) {
    if (number !== asked) return;
    tell($("user-outcome"), error.message, "bad");
    $("report").hidden = true;
  }
  $("report").classList.remove("old");
}

// -- Views ----------------------------------------------------------------------------

const encode = (name) => encodeURIComponent(name.toWellFormed ? name.toWellFormed() : name);

/** Show the view that the address names: #overview, #user/NAME, #trace/CHANNEL, #push. */
function showView() {
  const [view, name] = window.location.hash.slice(1).split("/", 2);
  const shown = VIEWS.includes(view) ? view : "overview";
  document.body.dataset.view = shown;
  for (const each of VIEWS) $(`view-${each}`).hidden = each !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  board.draw();
  const given = decoded(name);
  if (shown === "user" && given) lookUp(given);
  if (shown === "trace" && given) trace.name({ channel: given });
}

function decoded(text) {
  try {
    return decodeURIComponent(text ?? "");
  } catch {
    return ""; // not an address that this page made
  }
}

/** Whoever comes to ask types at once; whoever comes for a user reads, and no keyboard covers a phone's screen. */
function moveFocus() {
  const view = $(`view-${document.body.dataset.view}`);
  if (view.contains(document.activeElement)) return;
  if (document.body.dataset.view === "user" && lookedUp && window.location.hash.includes("/")) {
    window.scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  } else view.querySelector("input:is([type=text], :not([type]))")?.focus();
}

function start() {
  $("user-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const hash = `#user/${encode($("user-name").value)}`;
    if (window.location.hash === hash) lookUp($("user-name").value);
    else window.location.hash = hash;
  });
  $("user-trace").addEventListener("click", () => {
    window.location.hash = "#trace";
    trace.name({ user: lookedUp });
    trace.start({ user: lookedUp }, Number($("trace-seconds").value));
  });
  $("push-form").addEventListener("submit", (event) => {
    event.preventDefault();
    push();
  });
  $("push-why").addEventListener("click", () => (window.location.hash = `#user/${encode($("push-user").value)}`));
  $("restart").addEventListener("click", confirmRestart);
  $("confirm-cancel").addEventListener("click", () => $("confirm").close());
  $("ranges").addEventListener("change", ({ target }) => board.setRange(Number(target.value)));
  $("log-out").addEventListener("click", () =>
    post("/admin/logout", {}).then(leave, ({ message }) => tell($("acted"), message, "bad")),
  );
  window.addEventListener("hashchange", () => {
    showView();
    moveFocus();
  });
  setInterval(watch, WATCH_MS);
  begun = live.connect();
  showView();
}

start();
