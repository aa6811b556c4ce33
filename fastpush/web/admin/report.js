// What is known of a user, as the server tells it (Why), on the screen.

import { bytes, clock, count, countOf, duration, element, joined, moment, named, span, zone } from "./dom.js";

const BY = {
  client: "by the client",
  server: "by the server",
  "back-end": "by a back-end",
  network: "by the network, without a close frame",
};

/** Put a report into `root`, in place of what it shows. */
export function showReport(root, why) {
  const asked = why.asked_seconds;
  root.replaceChildren(
    element("ol", { class: "findings" }, ...why.findings.map((text) => element("li", {}, plainly(text)))),
    element("p", { class: "soft" }, ...provenance(why)),
    part("Connections now", why.connections.length, connections(why, asked), "None is open."),
    part("What happened", why.notes.length + why.lost.length, timeline(why), "Nothing is remembered."),
    part("Pushes to this user", why.pushes.length, pushes(why.pushes), "None is remembered."),
    strangers(why.strangers),
  );
}

// Findings repeat names; what acts on direction must not act on the sentence.
const plainly = (text) => named(text);

function part(title, size, content, empty) {
  const head = element("h3", {}, title, " ", element("span", { class: "soft" }, size ? count(size) : ""));
  return element("section", {}, head, size ? content : element("p", { class: "empty" }, empty));
}

function provenance(why) {
  const parts = [
    `Asked ${countOf(why.workers, "worker")} at ${clock(why.asked_seconds)} (${zone()}); nothing older than ${moment(why.since_seconds)} is known.`,
  ];
  if (why.missing)
    parts.push(
      element(
        "b",
        { class: "warn" },
        ` ${countOf(why.missing, "worker")} did not answer: what they hold is missing here.`,
      ),
    );
  return parts;
}

// -- Connections ----------------------------------------------------------------------

function connections(why, asked) {
  const cards = why.connections.map((held) => connection(held, asked));
  const rest = why.connections_left_out;
  if (rest) cards.push(element("p", { class: "soft rest" }, `and ${countOf(rest, "more connection")}`));
  return element("div", { class: "cards" }, ...cards);
}

function connection(held, asked) {
  const size = (value) => joined(bytes(value));
  const left = held.keys - held.events.length - held.channels.length;
  const facts = [
    ["Application", named(held.path)],
    ["From", named(held.peer)],
    ["By", held.transport === "sse" ? "server-sent events" : "WebSocket"],
    ["Open for", `${span(asked - held.since_seconds)}, since ${moment(held.since_seconds)}`],
    ["Last heard", `${span(held.heard_seconds_ago)} ago`],
    [
      "Queue",
      `${countOf(held.queued_messages, "message")}, ${size(held.queued_bytes)}; at its worst ${size(held.worst_queued_bytes)}`,
    ],
    ["Events", names(held.events)],
  ];
  // What is usual is not worth a line.
  if (held.channels.length) facts.push(["Channels", names(held.channels)]);
  if (left > 0) facts.push(["Not shown", `${count(left)} more events and channels`]);
  if (held.dropped_messages) facts.push(["Dropped", countOf(held.dropped_messages, "message")]);
  if (held.unhandled_messages) facts.push(["Not handled yet", countOf(held.unhandled_messages, "message")]);
  if (held.expires_seconds !== null) facts.push(["Token ends", moment(held.expires_seconds)]);
  const title = element("h4", {}, named(held.id), ` on worker-${held.worker} `, state(held.state));
  return element("article", { class: "card" }, title, list(facts));
}

const list = (facts) =>
  element(
    "dl",
    { class: "facts" },
    ...facts.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))),
  );

const names = (all) => (all.length ? element("span", { class: "chips" }, ...all.map((name) => named(name))) : "none");

const state = (name) => element("span", { class: "badge", "data-state": name === "open" ? "open" : "warn" }, name);

// -- Notes ----------------------------------------------------------------------------

function timeline(why) {
  const rows = why.notes.map((note) => [note[0], noteLine(note)]);
  for (const { worker, seconds } of why.lost) {
    rows.push([
      seconds,
      line(seconds, "lost", ["worker-", String(worker), " ended without a drain; the user had connections there"]),
    ]);
  }
  rows.sort((a, b) => b[0] - a[0]);
  return element("ol", { class: "timeline" }, ...rows.map(([, row]) => row));
}

function line(seconds, kind, words) {
  return element(
    "li",
    { "data-kind": kind },
    element("time", { datetime: new Date(seconds * 1000).toISOString() }, moment(seconds)),
    element("b", {}, kind),
    element("span", {}, ...words),
  );
}

function noteLine(note) {
  const [seconds, kind, user, worker, id, path, peer, code, reason, by, what, messages, isClaimed] = note;
  const words = [];
  const say = (...parts) => words.push(...(words.length ? [", "] : []), ...parts);
  if (kind === "dropped") say(countOf(messages, "message"));
  if (what) say(kind === "refused" || kind === "dropped" ? "" : "of ", named(what));
  if (code) say(String(code));
  if (reason) say(named(reason));
  if (by) say(BY[by] ?? named(by));
  if (isClaimed) say("a token that was not accepted names the user ", named(user));
  if (path) say("at ", named(path));
  say(`worker-${worker}`);
  if (peer) say("from ", named(peer));
  if (id) say("connection ", named(id));
  return line(seconds, kind, words);
}

function strangers(notes) {
  if (!notes.length) return "";
  const title = element("summary", {}, `Last refusals on this host that name nobody (${notes.length})`);
  const about = element("p", { class: "soft" }, "The user may be among them: their requests did not say who they are.");
  return element(
    "details",
    {},
    title,
    about,
    element("ol", { class: "timeline" }, ...[...notes].reverse().map(noteLine)),
  );
}

// -- Pushes ---------------------------------------------------------------------------

const GOOD = new Set(["delivered"]);

function pushes(all) {
  const hasMessages = all.some((push) => push[10] !== null && push[10] !== undefined);
  const columns = [
    ["When", "text"],
    ["Source", "text"],
    ["Event", "text event"],
    ["Outcome", "text"],
    ["Reached", ""],
    ["Took", ""],
    ["Size", ""],
    ["Addressed to", ""],
    ["Worker", ""],
  ];
  if (hasMessages) columns.push(["Message", "text message"]);
  const head = element(
    "tr",
    { role: "row" },
    ...columns.map(([title, kind]) => element("th", { scope: "col", role: "columnheader", class: kind }, title)),
  );
  const body = [...all].reverse().map((push) => {
    const cells = pushCells(push, hasMessages);
    return element(
      "tr",
      { role: "row" },
      ...cells.map((cell, at) =>
        element("td", { role: "cell", class: columns[at][1], "data-label": columns[at][0] }, cell),
      ),
    );
  });
  const table = element("table", {
    role: "table",
    class: "figures-table stacks pushes",
    "aria-label": "Pushes to this user",
  });
  table.append(element("thead", { role: "rowgroup" }, head), element("tbody", { role: "rowgroup" }, ...body));
  return table;
}

function pushCells(push, hasMessages) {
  const [seconds, source, event, size, users, worker, outcome, sent, unconfirmed, ms, message] = push;
  const reached =
    (sent ? countOf(sent, "connection") : "nobody") +
    (unconfirmed ? `, ${countOf(unconfirmed, "worker")} not counted` : "");
  const cells = [
    moment(seconds),
    source,
    event ? named(event) : "–",
    element("span", { class: "badge", "data-state": GOOD.has(outcome) ? "open" : "warn" }, outcome),
    reached,
    joined(duration(ms)),
    joined(bytes(size)),
    users ? countOf(users, "user") : "everybody",
    String(worker),
  ];
  if (hasMessages) cells.push(message === null || message === undefined ? "–" : named(message));
  return cells;
}
