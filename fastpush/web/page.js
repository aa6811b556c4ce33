// The page: picks an application, connects, and puts its talks, members and states on the screen.
//
// Data flows one way: what happens on the connection changes the talks (talks.js, by way of an
// application of applications.js), and every change draws the parts that show it.
import { applicationOf } from "./applications.js";
import { LineView, Talks, element, hueOf } from "./talks.js";
import { meaning, randomName, say, switchLanguage, translate } from "./words.js";

const $ = (id) => document.getElementById(id);
const MEMBERS_SHOWN = 1000;
const TICK_MS = 250; // of the countdown
const SIDE_MS = 50; // however many come and go, and write in other talks: the side is drawn so often at most

// -- State ---------------------------------------------------------------------------

let entries = []; // { path, handler, anonymous } of each application of the server
let picked = null; // one of them
let application = null; // the picked one, while it is connected or coming back
let connection = null;
let until = 0; // when the next attempt comes
let ticking = 0;
let drawingSide = 0;
const drafts = new Map(); // talk -> what is written and not sent
const talks = new Talks(onTalks);
const view = new LineView($("lines"), $("new-lines"), $("empty"));

// What an application sees of this page.
const page = {
  talks,
  me: "",
  say: (talk, line) => talk && talks.add(talk, line),
  refresh: drawSideSoon,
};

// -- Connecting ----------------------------------------------------------------------

function pick(entry) {
  if (application) end();
  picked = entry;
  closeMenu();
  drawStart();
  drawSide();
}

function connect(values) {
  application = applicationOf(picked);
  page.me = "";
  try {
    connection = application.connect(values, page);
  } catch (error) {
    application = null;
    $("outcome").textContent = error.message;
    return;
  }
  connection.onState(onState);
  connection.onMessage((data, event) => application.received(data, event));
  $("push-user").value = values.token ?? ""; // right where the token is the user
  connection.connect();
  if (connection.state.name !== "idle") onState(connection.state);
  drawStart();
  drawTalk();
  $("text").focus();
}

/** Leave the application: back to its form. */
function end() {
  const ended = connection;
  application = connection = null;
  ended?.close();
  drafts.clear();
  talks.clear();
  clearInterval(ticking);
  showStatus("idle", say("idle"));
  $("banner").hidden = true;
  drawStart();
}

// -- States --------------------------------------------------------------------------

let lastState = "";

function onState(state) {
  if (!application) return; // it was left
  clearInterval(ticking);
  if (state.name === "open" && lastState !== "open") {
    talks.active && page.say(talks.active, { kind: "system", say: "lineOpen" });
    application.opened();
  }
  if (state.name === "waiting" || (state.name === "closed" && state.why !== "closed by this side")) {
    const { readyState } = connection;
    const why = reasonOf(state);
    if (lastState === "open" || state.name === "closed") {
      page.say(talks.active, { kind: "system", say: "lineClosed", values: { code: state.code, why, readyState } });
    }
  }
  lastState = state.name;
  if (state.name === "waiting") {
    until = performance.now() + state.seconds * 1000;
    ticking = setInterval(drawState, TICK_MS);
  }
  drawState();
  drawSide();
}

// The server's reason, unless it only says what the code means.
function reasonOf({ code, reason, why }) {
  const extra = reason && reason !== why ? ` (${reason})` : "";
  return `${code === 1006 ? `${say("error")} ` : ""}${meaning(code)}${extra}`;
}

function drawState() {
  if (!connection) return;
  const state = connection.state;
  const words = {
    idle: () => say("idle"),
    connecting: () => say("connecting"),
    open: () => openWords(state),
    waiting: () => say("waiting", { seconds: Math.max(1, Math.ceil((until - performance.now()) / 1000)) }),
    closed: () => say("closed"),
  };
  const isLost = state.name === "waiting" || state.name === "closed";
  const why = isLost ? `${state.code}: ${reasonOf(state)}` : "";
  const text = words[state.name]();
  // Not every second of a countdown is read out.
  showStatus(state.name, text, isLost ? `${say("closed")} ${why}` : text);
  // While it tries, the banner stays as it is: it would flicker.
  if (state.name === "connecting" && !$("banner").hidden) return;
  $("banner").hidden = !isLost;
  if (isLost) drawBanner(state, text, why);
}

function openWords({ registered }) {
  if (!registered) return say("open");
  return registered.length ? say("openReceiving", { events: registered.join(", ") }) : say("registering");
}

function drawBanner(state, text, why) {
  $("banner").dataset.state = state.name;
  const rest = state.name === "closed" ? say("final") : "";
  setText($("banner-text"), say("banner", { text: text.replace(/[.。]$/, ""), why, rest }).trim());
  setText($("banner-now"), say(state.name === "closed" ? "again" : "reconnectNow"));
  setText($("banner-stop"), say(state.name === "closed" ? "change" : "stop"));
}

function showStatus(state, text, spoken = text) {
  $("status").dataset.state = state;
  setText($("status-text"), text);
  setText($("spoken"), spoken);
  $("disconnect").hidden = !application;
  $("send").disabled = state !== "open" && application?.push === undefined;
}

// Only a text that has changed is touched: screen readers read what changes.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// -- Drawing -------------------------------------------------------------------------

function onTalks(talk, line) {
  if (line && talk === talks.active) view.update(line);
  drawTitle();
  if (!line || talk.unread) drawSideSoon();
  if (!line) drawTalk();
}

function drawSideSoon() {
  drawingSide ||= setTimeout(drawSide, SIDE_MS);
}

function drawStart() {
  $("start").hidden = Boolean(application) || !picked;
  $("talk").hidden = !application;
  document.body.dataset.view = application ? "talk" : "start";
  if (!picked || application) return;
  $("start-title").textContent = nameOf(picked);
  $("start-about").textContent = say(`about${capital(kindOf(picked))}`);
  $("fields").replaceChildren(...applicationOf(picked).fields.filter(isAsked).map(fieldOf));
  if (picked.handler === "ask") $("fields").prepend(...pathFields());
}

// Where no token is needed nobody is asked for one, unless it is who one is.
function isAsked(field) {
  return !(field.optional && picked.anonymous);
}

function fieldOf({ name, say: key, hint, random, optional, check }) {
  const input = element("input", { name, autocomplete: "off", autocapitalize: "none", spellcheck: false });
  if (check) {
    input.type = "checkbox";
    return element("label", { className: "check" }, input, element("span", {}, say(key)));
  }
  input.required = !optional;
  const label = element("label", {}, element("span", {}, say(key)), input);
  if (hint) label.append(element("small", { className: "soft" }, say(hint)));
  if (!random) return label;
  input.value = remembered.get(name) ?? randomName();
  const another = element("button", { type: "button", className: "small" }, say("anotherName"));
  another.addEventListener("click", () => (input.value = randomName()));
  return element("div", { className: "with-button" }, label, another);
}

// For a server that does not say what it serves.
function pathFields() {
  const path = element("input", { name: "path", value: "/chat", required: true, pattern: "/.*", autocomplete: "off" });
  const kinds = ["chat", "echo", "hub", "broadcast", "push", "other"];
  const options = kinds.map((kind) => element("option", { value: kind }, say(kind)));
  const kind = element("select", { name: "kind" }, ...options);
  return [
    element("label", {}, element("span", {}, say("path")), path),
    element("label", {}, element("span", {}, say("applications")), kind),
  ];
}

const remembered = new Map(); // what was typed, for as long as the page is open

function drawTalk() {
  const talk = talks.active;
  if (!application || !talk) return;
  view.show(talk);
  $("talk-title").textContent = talkTitle(talk);
  setText($("empty"), say(application.push ? "emptyPush" : "empty"));
  $("attach").hidden = !application.hasMedia;
  $("push-target").hidden = !application.push;
  $("push-event").value = application.push ? talk.name : "";
  const canLeave = talk.kind === "private" || (application.leave !== undefined && talk.name !== "");
  $("leave").hidden = !canLeave;
  $("leave").textContent = say(talk.kind === "private" ? "closeTalk" : "leave", { name: talk.name });
  drawOnline(talk);
}

function drawOnline(talk) {
  const isKnown = talk.members && connection?.state.name === "open";
  setText($("talk-online"), isKnown ? say("membersOf", { count: talk.online }) : "");
}

function drawSide() {
  clearTimeout(drawingSide);
  drawingSide = 0;
  const itemOf = (entry) => pickItem(nameOf(entry), entry === picked, () => pick(entry), { note: entry.path });
  put($("applications"), entries.map(itemOf));
  const hasRooms = Boolean(application?.hasRooms);
  $("rooms-section").hidden = !hasRooms;
  const privates = talks.all().filter((talk) => talk.kind === "private");
  $("private-section").hidden = !privates.length;
  $("members-section").hidden = !talks.active?.members;
  drawTitle();
  if (!hasRooms) return;
  const isPush = Boolean(application.push);
  setText($("rooms-title"), say(isPush ? "events" : "rooms"));
  setText($("enter-button"), say(isPush ? "register" : "enter"));
  $("enter-name").placeholder = say(isPush ? "event" : "enterRoom");
  $("enter-name").setAttribute("aria-label", say(isPush ? "registerEvent" : "enterRoom"));
  put($("rooms"), talks.all().filter((talk) => talk.kind === "room").map(talkItem));
  put($("privates"), privates.map(talkItem));
  drawMembers(talks.active);
}

function drawMembers(talk) {
  if (!talk?.members) return;
  setText($("members-count"), String(talk.online));
  drawOnline(talk);
  const names = [...talk.members].sort((one, other) => one.localeCompare(other)).slice(0, MEMBERS_SHOWN);
  put($("members"), names.map(memberItem));
}

function drawTitle() {
  const unread = talks.unread();
  document.title = `${unread ? `(${unread}) ` : ""}${say("title")}`;
  $("menu-unread").hidden = !unread;
  setText($("menu-unread"), String(unread));
}

function talkItem(talk) {
  return pickItem(talkName(talk), talk === talks.active, () => activate(talk), talk);
}

function memberItem(name) {
  const isMe = name === page.me;
  const item = pickItem(name, false, () => activate(application.talkWith(name)), {
    note: isMe ? say("you") : "",
    label: isMe ? undefined : say("writeTo", { name }),
    hue: hueOf(name),
  });
  if (isMe) item.firstChild.disabled = true;
  return item;
}

// id: tells apart what looks the same.
function pickItem(text, isCurrent, onClick, { id, note, unread, label, hue }) {
  const button = element("button", { type: "button", className: "pick" });
  if (hue !== undefined) button.append(element("span", { className: "face", ariaHidden: "true" }, faceOf(text)));
  button.append(element("span", { className: "pick-name" }, text));
  if (hue !== undefined) button.firstChild.dataset.hue = hue;
  if (note) button.append(element("span", { className: "soft pick-note" }, note));
  if (unread) {
    const badge = element("span", { className: "badge" }, element("span", { ariaHidden: "true" }, String(unread)));
    badge.append(element("span", { className: "unseen" }, say("unread", { count: unread })));
    button.append(badge);
  }
  if (isCurrent) button.setAttribute("aria-current", "true");
  if (label) button.title = label;
  button.addEventListener("click", onClick);
  const item = element("li", {}, button);
  item.dataset.key = text;
  item.dataset.shows = JSON.stringify([id, text, isCurrent, note, unread, document.documentElement.lang]);
  return item;
}

function faceOf(name) {
  return [...name][0]?.toUpperCase() ?? "";
}

// A list that shows the same is left alone, and one that is drawn anew keeps the keyboard where it was.
function put(list, items) {
  const shown = [...list.children];
  const isSame = (item, place) => item.dataset.shows === items[place]?.dataset.shows;
  if (shown.length === items.length && shown.every(isSame)) return;
  const focused = shown.find((item) => item.contains(document.activeElement));
  list.replaceChildren(...items);
  if (focused) items.find((item) => item.dataset.key === focused.dataset.key)?.firstChild.focus();
}

function kindOf({ handler }) {
  return ["chat", "push", "echo", "hub", "broadcast"].includes(handler) ? handler : "other";
}

function capital(word) {
  return word[0].toUpperCase() + word.slice(1);
}

function nameOf(entry) {
  return kindOf(entry) === "other" && entry.handler !== "ask" ? entry.path : say(kindOf(entry));
}

function talkName(talk) {
  return talk.kind === "room" && talk.name === "" ? say("hall") : talk.name;
}

function talkTitle(talk) {
  return talk.kind === "private" ? say("privateWith", { name: talk.name }) : talkName(talk);
}

// -- What the reader does ------------------------------------------------------------

function activate(talk) {
  drafts.set(talks.active?.id, $("text").value);
  talks.activate(talk.id);
  $("text").value = drafts.get(talk.id) ?? "";
  closeMenu();
  drawSide();
  $("text").focus();
}

function leave() {
  const talk = talks.active;
  if (talk.kind === "private") talks.close(talk.id);
  else application.leave(talk);
  activate(talks.active);
}

async function send() {
  const text = $("text").value;
  const media = attachment();
  if (media === undefined || (!text.trim() && !media)) return;
  if (application.push) {
    await sendPush(text);
    return;
  }
  if (!application.send(text, media, talks.active)) {
    $("outcome").textContent = say("notSent");
    return;
  }
  $("outcome").textContent = "";
  $("text").value = "";
  $("attachment-url").value = "";
  showAttachment(false);
}

async function sendPush(text) {
  const fields = { userId: $("push-user").value, event: $("push-event").value, message: text };
  $("text").value = "";
  $("outcome").textContent = await application.push($("push-path").value, $("push-key").value, fields);
}

/** The image or file to send; null: none; undefined: its address is not one. */
function attachment() {
  if ($("attachment").hidden || !$("attachment-url").value) return null;
  const url = $("attachment-url").value.trim();
  if (/^https?:\/\/./i.test(url) && URL.canParse(url)) return { kind: $("attachment-kind").value, url };
  $("outcome").textContent = say("notUrl");
  $("attachment-url").focus();
  return undefined;
}

function showAttachment(isShown) {
  $("attachment").hidden = !isShown;
  $("attach").setAttribute("aria-expanded", String(isShown));
  if (isShown) $("attachment-url").focus();
}

function closeMenu() {
  document.body.classList.remove("menu-open");
  $("menu").setAttribute("aria-expanded", "false");
}

function onConnect(event) {
  event.preventDefault();
  const values = Object.fromEntries(new FormData($("connect-form")));
  for (const [name, value] of Object.entries(values)) remembered.set(name, value);
  if (picked.handler === "ask") picked = { path: values.path, handler: values.kind, anonymous: false };
  connect(values);
}

function onLanguage() {
  switchLanguage();
  translate();
  drawStart();
  drawSide();
  drawTalk();
  view.redraw();
  if (connection) drawState();
  else showStatus("idle", say("idle"));
}

function listen() {
  $("connect-form").addEventListener("submit", onConnect);
  $("disconnect").addEventListener("click", () => {
    end();
    drawSide();
    $("fields").querySelector("input")?.focus();
  });
  $("language").addEventListener("click", onLanguage);
  $("banner-now").addEventListener("click", () => connection.connect());
  $("banner-stop").addEventListener("click", () => {
    end();
    drawSide();
  });
  $("leave").addEventListener("click", leave);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("keydown", (event) => {
    // An Enter that ends the choice of a Chinese word sends nothing.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
  $("attach").addEventListener("click", () => showAttachment($("attachment").hidden));
  $("attachment-cancel").addEventListener("click", () => {
    $("attachment-url").value = "";
    showAttachment(false);
    $("text").focus();
  });
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("enter-name").value.trim();
    $("enter-name").value = "";
    if (name) activate(application.enter(name));
  });
  $("menu").addEventListener("click", () => {
    const isOpen = document.body.classList.toggle("menu-open");
    $("menu").setAttribute("aria-expanded", String(isOpen));
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !document.body.classList.contains("menu-open")) return;
    closeMenu();
    $("menu").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !talks.active) return;
    talks.active.unread = 0;
    drawSide();
  });
}

// -- The start -----------------------------------------------------------------------

async function served() {
  try {
    const reply = await fetch("/applications.json");
    if (reply.ok) return (await reply.json()).applications;
  } catch {
    // As below.
  }
  return [
    { path: "/ws", handler: "push", anonymous: false },
    { path: "…", handler: "ask", anonymous: false },
  ];
}

/** /#app=/ws&token=aaa&event=topic1 connects at once; what follows # is not sent to the server and not logged. */
function preset() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("token") && !given.has("app")) return;
  const path = given.get("app") ?? "/ws";
  const entry = entries.find((one) => one.path === path);
  if (!entry) return;
  pick(entry);
  const values = Object.fromEntries(given);
  for (const [name, value] of Object.entries(values)) remembered.set(name, value);
  if (given.has("room")) values.rooms = given.getAll("room");
  const needed = applicationOf(entry).fields.filter((field) => !field.optional && !field.check);
  drawStart();
  if (needed.every(({ name }) => values[name])) connect(values);
}

translate();
listen();
if (!("WebSocket" in window)) {
  $("connect-form").hidden = true;
  $("no-websocket").hidden = false;
  showStatus("closed", say("closed"));
} else {
  showStatus("idle", say("idle"));
}
entries = await served();
pick(entries.find((entry) => entry.handler === "chat") ?? entries[0]);
preset();
