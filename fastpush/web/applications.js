// What the page knows of each application: what to ask before it connects, and what its messages mean.
//
// The page gives each `page`: talks, say(talk, line), me, refresh(). An application has
//     fields      what to ask for: [{ name, say, hint, random, optional, check }]
//     connect(values, page)   returns the Connection, not yet connected
//     opened(), received(data, event), send(text, media, talk)
import { Connection, PushClient } from "./fastpush.js";
import { say } from "./words.js";

const TYPE = { one: 0, room: 1, notice: 2, came: 3, left: 4, enter: 5, leave: 6, members: 7 };
const MEDIA = ["text", "image", "file"];
const KEYS = 2000; // of messages that were shown, so that what is replayed after a reconnect is not shown twice
const PENDING = 100; // sent, and not come back yet
const PUSH_SECONDS = 15;

/** Echo, hub and others: one talk, messages as they are. */
class Plain {
  fields = [{ name: "token", say: "token", hint: "tokenHint", optional: true }];
  hasRooms = false;
  hasMedia = false;
  comesBack = false; // what this connection sends is sent to it as well
  #pending = [];

  constructor(entry) {
    this.path = entry.path;
    this.handler = entry.handler;
  }

  connect(values, page) {
    this.page = page;
    this.talk = page.talks.open("all", "room", this.path);
    const url = new URL(this.path, location.href);
    for (const [name, value] of Object.entries(this.parameters(values))) url.searchParams.set(name, value);
    this.connection = new Connection(url, { token: values.token || undefined });
    return this.connection;
  }

  parameters() {
    return {};
  }

  opened() {
    this.#pending = [];
  }

  received(data) {
    if (data === "heartbeat") {
      this.page.say(this.talk, { kind: "system", fold: "heartbeat" });
      return;
    }
    const text = typeof data === "string" ? data : say("bytes", { count: data.byteLength });
    const place = this.#pending.indexOf(text);
    if (place >= 0) this.#pending.splice(place, 1);
    this.page.say(this.talk, { kind: place >= 0 ? "own" : "other", author: "", text });
  }

  send(text) {
    if (!this.connection.send(text)) return false;
    if (this.comesBack) this.#pending = [...this.#pending, this.asSent(text)].slice(-PENDING);
    else this.page.say(this.talk, { kind: "own", author: "", text });
    return true;
  }

  asSent(text) {
    return text;
  }
}

class Hub extends Plain {
  comesBack = true;

  asSent(text) {
    return text.replaceAll("\n", " ").trim();
  }
}

class Broadcast extends Plain {
  comesBack = true;
  fields = [
    { name: "specialKey", say: "key", random: true },
    { name: "gzip", say: "gzip", check: true },
    { name: "token", say: "token", hint: "tokenHint", optional: true },
  ];
  #turn = Promise.resolve();

  parameters({ specialKey, gzip }) {
    return { specialKey, support_gzip: gzip ? 1 : 0 };
  }

  // One after the other: unpacking takes its time, and the order stays.
  received(data) {
    if (typeof data === "string") {
      super.received(data);
      return;
    }
    this.#turn = this.#turn.then(() => unpacked(data)).then((text) => super.received(text));
  }
}

async function unpacked(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text().catch(() => data);
}

/** /ws: each event is a talk; what is written is pushed by POST. */
class Push {
  fields = [
    { name: "token", say: "token" },
    { name: "event", say: "event" },
  ];
  hasRooms = true;
  hasMedia = false;

  constructor(entry) {
    this.path = entry.path;
    this.handler = entry.handler;
  }

  connect(values, page) {
    this.page = page;
    this.connection = new PushClient(this.path, { token: values.token });
    this.enter(values.event);
    return this.connection;
  }

  enter(event) {
    const talk = this.page.talks.open(event, "room", event);
    this.connection.register(event).catch((error) => {
      this.page.say(talk, { kind: "system", text: error.message });
    });
    return talk;
  }

  opened() {
    // Registrations are the client's own business.
  }

  received(message, event) {
    const talk = this.page.talks.get(event) ?? this.page.talks.open(event, "room", event);
    this.page.say(talk, { kind: "other", author: event, text: message });
  }

  /** Push a message; returns what became of it, in words. */
  async push(path, key, fields) {
    const headers = { "Content-Type": "application/json", Accept: "application/json" };
    if (key) headers["X-API-Key"] = key;
    try {
      const signal = AbortSignal.timeout(PUSH_SECONDS * 1000);
      const body = JSON.stringify(fields);
      const response = await fetch(path, { method: "POST", headers, body, credentials: "omit", signal });
      const reply = await response.json().catch(() => ({}));
      if (!response.ok) throw new Error(`${response.status} ${reply.error?.message ?? ""}`.trim());
      if (reply.sent === 1) return say("pushedOne");
      return reply.sent ? say("pushed", { count: reply.sent }) : say("pushedNobody");
    } catch (error) {
      return say("pushFailed", { why: error.name === "TimeoutError" ? say("timeout") : error.message });
    }
  }
}

/** /chat: rooms, private talks, who is there. */
class Chat {
  fields = [{ name: "token", say: "name", random: true }];
  hasRooms = true;
  hasMedia = true;
  #shown = new Set(); // keys of messages; the oldest first

  constructor(entry) {
    this.path = entry.path;
    this.handler = entry.handler;
  }

  connect(values, page) {
    this.page = page;
    page.me = values.token;
    page.talks.open(roomId(""), "room", "");
    for (const room of values.rooms ?? []) page.talks.open(roomId(room), "room", room);
    this.connection = new Connection(this.path, { token: values.token });
    return this.connection;
  }

  opened() {
    for (const talk of this.page.talks.all()) {
      if (talk.kind !== "room") continue;
      talk.members = null;
      if (talk.name) this.#send({ messageType: TYPE.enter, to: talk.name });
      this.#askMembers(talk.name);
    }
  }

  enter(room) {
    const isNew = !this.page.talks.get(roomId(room));
    const talk = this.page.talks.open(roomId(room), "room", room);
    if (isNew) {
      this.#send({ messageType: TYPE.enter, to: room });
      this.#askMembers(room);
    }
    return talk;
  }

  leave(talk) {
    if (talk.kind === "room") this.#send({ messageType: TYPE.leave, to: talk.name });
    this.page.talks.close(talk.id);
  }

  /** Somebody to write to alone. */
  talkWith(user) {
    return this.page.talks.open(`user ${user}`, "private", user);
  }

  /** media: { kind: "image" | "file", url }, or nothing. */
  send(text, media, talk) {
    const fields = {
      messageType: talk.kind === "private" ? TYPE.one : TYPE.room,
      mediaType: media ? MEDIA.indexOf(media.kind) : 0,
      to: talk.name,
      content: text || undefined,
      url: media?.url,
      createAt: new Date().toISOString(),
    };
    if (!this.#send(fields)) return false;
    this.#isNew(fields);
    this.page.say(talk, { kind: "own", author: this.page.me, text, media: media?.kind, url: media?.url });
    return true;
  }

  received(data) {
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      message = null;
    }
    if (typeof message !== "object" || message === null) {
      const isHeartbeat = data === "heartbeat";
      if (!isHeartbeat) this.page.say(this.page.talks.active, { kind: "other", author: "", text: String(data) });
      return;
    }
    const handlers = {
      [TYPE.one]: () => this.#onText(message),
      [TYPE.room]: () => this.#onText(message),
      [TYPE.notice]: () => this.#onNotice(message),
      [TYPE.came]: () => this.#onPresence(message, "came"),
      [TYPE.left]: () => this.#onPresence(message, "left"),
      [TYPE.members]: () => this.#onMembers(message),
    };
    handlers[message.messageType]?.();
  }

  #send(fields) {
    return this.connection.send(JSON.stringify({ mediaType: 0, from: "", ...fields }));
  }

  #askMembers(room) {
    this.#send({ messageType: TYPE.members, to: room });
  }

  #onText(message) {
    if (!this.#isNew(message)) return;
    const from = String(message.from ?? "");
    const isOwn = from === this.page.me;
    const isPrivate = message.messageType === TYPE.one;
    const peer = isOwn ? String(message.to ?? "") : from;
    const talk = isPrivate ? this.talkWith(peer) : this.page.talks.get(roomId(message.to));
    if (!talk) return; // of a room that was left meanwhile
    const media = MEDIA[message.mediaType] ?? "text";
    this.page.say(talk, {
      kind: isOwn ? "own" : "other",
      author: from,
      text: String(message.content ?? ""),
      when: momentIn(message),
      ...(media === "text" ? {} : { media, url: String(message.url ?? "") }),
    });
  }

  #onNotice(message) {
    const talk = (message.to && this.page.talks.get(roomId(message.to))) || this.page.talks.active;
    this.page.say(talk, { kind: "system", text: String(message.content ?? ""), when: momentIn(message) });
  }

  #onPresence(message, what) {
    const name = String(message.from ?? "");
    const talk = this.page.talks.get(roomId(message.to));
    if (!talk || !this.#isNew(message)) return;
    this.page.say(talk, { kind: "system", say: what, values: { name }, when: momentIn(message) });
    // What comes before the answer to our question is history, and the answer has it all.
    if (talk.members && talk.members.has(name) !== (what === "came")) {
      talk.online += what === "came" ? 1 : -1;
      if (what === "came") talk.members.add(name);
      else talk.members.delete(name);
      this.page.refresh();
    }
  }

  #onMembers(message) {
    const talk = this.page.talks.get(roomId(message.to));
    if (!talk || !Array.isArray(message.members)) return;
    if (typeof message.you === "string") this.page.me = message.you; // a token may name another user than it looks
    talk.members = new Set(message.members.map(String));
    talk.online = Number(message.online ?? talk.members.size);
    this.page.refresh();
  }

  /** Whether a message has not been shown yet: a newcomer gets the last ones, and so does who comes back. */
  #isNew({ messageType, from, to, content, url, createAt, updateAt }) {
    // An own message is known by its own time: the server's is not known when it is sent.
    const isText = messageType <= TYPE.room;
    const key = JSON.stringify([messageType, isText ? "" : from, to, content, url, (isText && createAt) || updateAt]);
    if (this.#shown.has(key)) return false;
    this.#shown.add(key);
    if (this.#shown.size > KEYS) this.#shown.delete(this.#shown.values().next().value);
    return true;
  }
}

function roomId(room) {
  return `room ${room ?? ""}`;
}

/** When the server took a message; now, where it does not say. */
function momentIn({ updateAt }) {
  const when = new Date(updateAt);
  return Number.isNaN(when.getTime()) ? new Date() : when;
}

const KINDS = { push: Push, chat: Chat, hub: Hub, broadcast: Broadcast };

/** The application of an entry { path, handler }. */
export function applicationOf(entry) {
  return new (KINDS[entry.handler] ?? Plain)(entry);
}
