/**
 * fastpush.js: a WebSocket that comes back by itself, in browsers and in Node. One file, no dependencies.
 *
 *     import { PushClient, ChannelClient, Connection } from "/assets/fastpush.js";
 *
 *     const client = new PushClient("/ws", { token: () => fetch("/token").then((reply) => reply.text()) });
 *     client.on("price", (message) => console.log(message));
 *     await client.register("price");             // from now on every push arrives
 *
 *     const channels = new ChannelClient("/connection/websocket", { token: "aaa" });
 *     const unsubscribe = channels.subscribe("chat:42", (data) => console.log(data));     // resumed where it broke
 *
 *     const chat = new Connection("/chat", { token: "aaa" }).connect();      // any other application
 *     chat.onMessage((data) => console.log(data));
 *
 * States, told to `onState`:
 *
 *     idle ──► connecting ──► open ──► waiting ──► connecting …
 *                                └───► closed    when coming back is no use, or close() was called
 */

const CONNECT_SECONDS = 15; // for a handshake
const STEADY_SECONDS = 5; // a connection that was open for so long starts the waits anew
const SILENT_HEARTBEATS = 2.5; // so many of them missing: nobody is there
const LONGEST_TIMER_SECONDS = 2e6; // JavaScript's timers take 31 bits of milliseconds
const LATER = 4; // times the first wait, after these codes: come back, but not soon
const LATER_CODES = [1002, 1007, 1008, 1009, 1013, 3008, 3013];
const EXPIRED_CODES = [3005, 4502]; // the token was good for its time
const TOKEN_CODES = [109, 3500, 4501, ...EXPIRED_CODES]; // another token may help
// An error is final when no close follows it at once: out of reach of its authentication, the server says 1013.
const ERROR_MS = 200;

const WHY = {
  0: "no token could be had",
  1000: "closed normally",
  1001: "the other side went away",
  1005: "closed without a code",
  1002: "protocol error",
  1006: "connection lost or refused",
  1007: "a message was not what the server understands",
  1008: "policy: not registered in time, a limit, or dropped by the back-end",
  1009: "message too big",
  1011: "a handler failed on the server",
  1012: "the server restarts or stops",
  1013: "overloaded, too slow, or authentication cannot be reached",
  4500: "replaced by a newer connection",
  4501: "token rejected",
  4502: "token expired",
};

/** Call every handler; what one throws is reported as an uncaught error, and the others are called all the same. */
function tell(handlers, ...values) {
  for (const handler of [...handlers]) {
    try {
      handler(...values);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}

/** Add a handler to a set; return what removes it again. */
function add(handlers, handler) {
  handlers.add(handler);
  return () => void handlers.delete(handler);
}

/** A promise with what settles it. */
function pending() {
  const settle = {};
  settle.promise = new Promise((resolve, reject) => Object.assign(settle, { resolve, reject }));
  return settle;
}

/** Where a token comes from: text, or a function, whose last one is kept for as long as it is good. */
class TokenSource {
  #given;
  #last;
  isFresh = false; // the last one was given for this attempt

  constructor(given) {
    this.#given = given;
  }

  /** The token, or a promise of it. */
  get(about) {
    if (typeof this.#given !== "function") return this.#given;
    if (!this.#last) {
      this.#last = Promise.resolve(about).then(this.#given);
      this.#last.catch(() => (this.#last = undefined));
      this.isFresh = true;
    }
    return this.#last;
  }

  /** Give up a refused token; true when there is another one to be had. None is, when this one was new. */
  renew(refused = this.#last) {
    if (typeof this.#given !== "function") return false;
    if (this.#last === refused && !this.isFresh) this.#last = undefined;
    return this.#last !== refused;
  }
}

/** A WebSocket to any application: data in, data out, and back again when it was lost. */
export class Connection {
  #options;
  #WebSocket;
  #socket = null;
  #state = { name: "idle" };
  #stateHandlers = new Set();
  #messageHandlers = new Set();
  #life = 0; // handlers and timers of an earlier attempt do nothing
  #timer;
  #attempts = 0; // without success
  #openedAt = 0;
  #heardAt = 0;
  #retry = () => this.connect();

  /**
   * Prepare a connection; `connect()` opens it.
   *
   * @param url      WebSocket or HTTP URL, or a path, relative to the page.
   * @param options  token, heartbeatSeconds, firstWaitSeconds, longestWaitSeconds, WebSocket; see Options.
   * @throws TypeError: the URL is none.  Error: there is no WebSocket here.
   */
  constructor(url, options = {}) {
    const { token, heartbeatSeconds = 0, firstWaitSeconds = 1, longestWaitSeconds = 30 } = options;
    this.#options = { heartbeatSeconds, firstWaitSeconds, longestWaitSeconds };
    this._tokens = new TokenSource(token);
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.#WebSocket) throw new Error("there is no WebSocket here");
    this._url = new URL(url, globalThis.location?.href);
    this._url.protocol = this._url.protocol.replace("http", "ws");
  }

  /** What it does now; see State. */
  get state() {
    return this.#state;
  }

  /** As a WebSocket's: 0 connecting, 1 open, 2 closing, 3 closed. */
  get readyState() {
    return this.#socket?.readyState ?? 3;
  }

  /** Connect; while it waits: at once. While it is connecting or open this does nothing. */
  connect() {
    if (this.#state.name !== "connecting" && this.#state.name !== "open") this.#open();
    return this;
  }

  /** Send text or bytes. Returns false, with nothing sent and nothing kept for later, unless the connection is open. */
  send(data) {
    if (this.readyState !== 1) return false;
    this.#socket.send(data);
    return true;
  }

  /** Have `handler(data)` called for every message: text, or an ArrayBuffer. Returns what removes it. */
  onMessage(handler) {
    return add(this.#messageHandlers, handler);
  }

  /** Have `handler(state)` called at every change of the state. Returns what removes it. */
  onState(handler) {
    return add(this.#stateHandlers, handler);
  }

  /** Close, and do not come back until `connect()` is called. */
  close(code = 1000, reason = "") {
    this.#forget(code, reason);
    if (this.#state.name !== "closed") this._show({ name: "closed", code, reason, why: "closed by this side" });
  }

  // -- for PushClient and ChannelClient --------------------------------------------------

  /** The URL to connect to now. */
  async _target() {
    const url = new URL(this._url);
    const token = await this._tokens.get();
    if (token !== undefined) url.searchParams.set("token", token);
    return url;
  }

  /** Connect for the first time, or anew after the end. */
  _want() {
    if (this.#state.name === "idle" || this.#state.name === "closed") this.connect();
  }

  /** Seconds to wait after so many failures: after a restart not all clients come back in the same moment. */
  _wait(attempts, factor = 1) {
    const { firstWaitSeconds, longestWaitSeconds } = this.#options;
    return Math.min(longestWaitSeconds, firstWaitSeconds * factor * 2 ** attempts) * (0.5 + Math.random() / 2);
  }

  /** Nothing that was asked for is given: no reason to stay. */
  _refused(reason) {
    this.#forget();
    this._show({ name: "closed", code: 1008, reason, why: "registration refused" });
  }

  _opened() {
    this._show({ name: "open" });
  }

  _received(...values) {
    tell(this.#messageHandlers, ...values);
  }

  _show(state) {
    this.#state = state;
    tell(this.#stateHandlers, state);
  }

  /** What does `work`, unless this attempt is over by then. */
  _mine(work) {
    const life = this.#life;
    return (value) => void (life === this.#life && work(value));
  }

  /** What ends this attempt for want of a token. */
  _failing() {
    return this._mine((error) => this._ended(0, String(error?.message ?? error)));
  }

  /** The connection has ended: come back, unless the code says that it is no use. */
  _ended(code, reason) {
    if (this.#openedAt && performance.now() - this.#openedAt > STEADY_SECONDS * 1000) this.#attempts = 0;
    this.#forget();
    const why = WHY[code] ?? (reason || `closed with ${code}`);
    if (EXPIRED_CODES.includes(code)) this._tokens.isFresh = false;
    const canRenew = TOKEN_CODES.includes(code) && this._tokens.renew();
    const isFinal = code > 3000 ? code % 1000 >= 500 : code > 0 && code <= 1000;
    if (isFinal && !canRenew) {
      this._show({ name: "closed", code, reason, why });
      return;
    }
    const seconds = this._wait(this.#attempts, LATER_CODES.includes(code) ? LATER : 1);
    this.#attempts += 1;
    this.#timer = setTimeout(this.#retry, seconds * 1000);
    globalThis.addEventListener?.("online", this.#retry);
    const isOffline = globalThis.navigator?.onLine === false;
    this._show({ name: "waiting", code, reason, why: isOffline ? "this device is offline" : why, seconds });
  }

  // -- one attempt ---------------------------------------------------------------------

  #open() {
    this.#forget();
    this._tokens.isFresh = false;
    if (this.#state.name !== "waiting") this.#attempts = 0;
    this._watch(CONNECT_SECONDS);
    const begin = this._mine((url) => this.#begin(url));
    this._target().then(begin, this._failing());
    this._show({ name: "connecting", attempt: this.#attempts + 1 });
  }

  #begin(url) {
    let socket;
    try {
      socket = new this.#WebSocket(url.href);
    } catch (error) {
      this.#forget();
      this._show({ name: "closed", code: 1006, reason: error.message, why: "a connection to this URL is not allowed" });
      return;
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    const on = (name, work) => socket.addEventListener(name, this._mine(work));
    on("open", () => {
      this.#openedAt = performance.now();
      this._watch(this.#options.heartbeatSeconds * SILENT_HEARTBEATS);
      this._opened();
    });
    on("message", ({ data }) => {
      this.#heardAt = performance.now();
      if (data !== "heartbeat" || !this.#options.heartbeatSeconds) this._received(data);
    });
    on("close", ({ code, reason }) => this._ended(code, String(reason)));
    socket.addEventListener("error", () => {}); // a close follows, which says more
  }

  /** End the connection when nothing is heard for so long; 0: never. One timer, however much is heard. */
  _watch(seconds) {
    clearTimeout(this.#timer);
    this.#heardAt = performance.now();
    const look = () => {
      const left = this.#heardAt + seconds * 1000 - performance.now();
      if (left > 0) this.#timer = setTimeout(look, left);
      else this._ended(1006, `nothing heard for ${Math.round(seconds)} s`);
    };
    if (seconds) look();
  }

  /** Give up the socket and all that waits. */
  #forget(code = 1000, reason = "") {
    this.#life += 1;
    this.#openedAt = 0;
    clearTimeout(this.#timer);
    globalThis.removeEventListener?.("online", this.#retry);
    const socket = this.#socket;
    this.#socket = null;
    if (socket && socket.readyState < 2) socket.close(code, reason);
  }
}

/** A client of /ws: registers for events, and receives what is pushed to its user. Connects with the first event. */
export class PushClient extends Connection {
  #registrations = new Map(); // event -> { promise, resolve, reject, isRegistered, token: asked with }
  #handlers = new Map(); // event -> set of handlers

  /**
   * @param url      as Connection's, "/ws" most of the time.
   * @param options  as Connection's; heartbeatSeconds is asked of the server here (1 to 3600, 0 for none).
   */
  constructor(url = "/ws", options = {}) {
    const { heartbeatSeconds = 25 } = options;
    super(url, { ...options, heartbeatSeconds });
    const wanted = this._url.searchParams;
    wanted.set("envelope", 1);
    wanted.set("confirm", 1);
    if (heartbeatSeconds) wanted.set("heartbeat", heartbeatSeconds);
  }

  /**
   * Have what is pushed to the token's user and `event`, also after every reconnect.
   *
   * @returns a promise: resolved once the server has confirmed it; every push from then on arrives.
   *          Rejected with the server's reason, or when the connection is closed for good before.
   */
  register(event) {
    if (!event) throw new TypeError("an event has a name");
    let registration = this.#registrations.get(event);
    if (!registration) {
      registration = { isRegistered: false, ...pending() };
      this.#registrations.set(event, registration);
      if (this.state.name === "open") this.#ask(event);
    }
    this._want();
    return registration.promise;
  }

  /** Have `handler(message, event)` called for each push to this event. Returns what removes it. */
  on(event, handler) {
    if (!this.#handlers.has(event)) this.#handlers.set(event, new Set());
    return add(this.#handlers.get(event), handler);
  }

  /** As Connection's. What is registered is registered again by `connect()`. */
  close(code, reason) {
    for (const { promise } of this.#registrations.values()) promise.catch(() => {}); // no news to who asked for it
    super.close(code, reason);
  }

  // The token goes into the first message, not into the URL, which servers and proxies log.
  async _target() {
    return this._url;
  }

  _opened() {
    for (const registration of this.#registrations.values()) registration.isRegistered = false;
    this.#showOpen();
    for (const event of this.#registrations.keys()) this.#ask(event);
  }

  _received(data) {
    let fields;
    try {
      fields = JSON.parse(data);
    } catch {
      return; // no form of this protocol
    }
    if (fields?.message !== undefined) {
      tell(this.#handlers.get(fields.event) ?? [], fields.message, fields.event);
      super._received(fields.message, fields.event);
    } else if (fields?.registered !== undefined) {
      this.#onRegistered(fields.registered);
    } else if (fields?.error !== undefined) {
      this.#onError(fields.error, fields.event);
    }
  }

  _show(state) {
    super._show(state);
    if (state.name !== "closed") return;
    // Each stays wanted, for when somebody connects again, and has a new promise for it.
    for (const registration of this.#registrations.values()) {
      if (!registration.isRegistered) registration.reject(new Error(state.reason || state.why));
      Object.assign(registration, { isRegistered: false }, pending());
      registration.promise.catch(() => {});
    }
  }

  #ask(event) {
    const token = (this.#registrations.get(event).token = this._tokens.get());
    const send = this._mine((token) => this.send(JSON.stringify({ token, event })));
    Promise.resolve(token).then(send, this._failing());
  }

  #onRegistered(event) {
    const registration = this.#registrations.get(event);
    if (!registration) return;
    registration.isRegistered = true;
    this.#showOpen();
    registration.resolve();
  }

  // The server names the event unless that is too long, or the token is bad for all.
  #onError(reason, event = this.#longest()) {
    const registration = this.#registrations.get(event);
    if (!registration) return;
    if (this._tokens.renew(registration.token)) {
      this.#ask(event);
      return;
    }
    const refuse = this._mine(() => {
      this.#registrations.delete(event);
      registration.reject(new Error(reason));
      // Without any the server would close it soon, and coming back would not help.
      if (!this.#registrations.size) this._refused(reason);
    });
    setTimeout(refuse, ERROR_MS);
  }

  #longest() {
    return this.#events(false).sort((one, other) => other.length - one.length)[0];
  }

  #events(areRegistered) {
    const isWanted = (event) => this.#registrations.get(event).isRegistered === areRegistered;
    return [...this.#registrations.keys()].filter(isWanted);
  }

  #showOpen() {
    this._show({ name: "open", registered: this.#events(true) });
  }
}

/**
 * A client of /connection/websocket: any number of channels on one connection, each resumed where it was cut.
 * Connects with the first channel.
 *
 *     subscribing ──► subscribed ──► subscribing …      cut, or the server asks for it
 *                └───────────┴─────► unsubscribed       refused, or ended by the server
 */
export class ChannelClient extends Connection {
  #channels = new Map(); // name -> { name, handlers, state, tokens, position, attempts, timer, isServers }
  #replies = new Map(); // id of a command -> what takes its reply
  #lastId = 0;
  #token; // to connect with, this time
  #self = { tokens: this._tokens }; // what is refreshed, as a channel's is

  /**
   * @param url      as Connection's, "/connection/websocket" most of the time.
   * @param options  as Connection's, but heartbeatSeconds: the server says how often it pings.
   */
  constructor(url = "/connection/websocket", options = {}) {
    super(url, { ...options, heartbeatSeconds: 0 });
  }

  /**
   * Have `onPublication(data, publication)` called for what is published to a channel: once each, in order, also
   * after every reconnect. Who else subscribes to it here shares the subscription, and the first one's token.
   *
   * @param options  token: for channels that need their own; text, or a function that gets the channel's name.
   *                 onState: called at every change. With `recovered: false` publications may have been missed.
   * @returns what unsubscribes.
   */
  subscribe(name, onPublication, { token, onState } = {}) {
    if (!name) throw new TypeError("a channel has a name");
    const handler = (state, publication) => {
      if (publication) onPublication(publication.data, publication);
      else onState?.(state);
    };
    const isNew = !this.#channels.has(name);
    const channel = this.#channel(name, token);
    channel.handlers.add(handler);
    if (!isNew && channel.state.name === "subscribed") {
      const state = { name: "subscribed", recovered: false }; // who comes later has missed what was before
      queueMicrotask(() => channel.handlers.has(handler) && tell([handler], state));
    } else if (isNew && this.state.name === "open") {
      this.#ask(channel);
    }
    this._want();
    return () => {
      if (!channel.handlers.delete(handler) || channel.handlers.size || channel.isServers) return;
      this.#forget(channel);
      if (this.state.name === "open") this.#command({ unsubscribe: { channel: name } });
    };
  }

  // The token goes into the first message, not into the URL, which servers and proxies log.
  async _target() {
    this.#token = await this._tokens.get();
    return this._url;
  }

  _opened() {
    this._watch(CONNECT_SECONDS);
    this.#replies.clear();
    const given = [...this.#channels.values()].filter((channel) => channel.isServers);
    const subs = Object.fromEntries(given.map(({ name, position }) => [name, position]));
    this.#command({ connect: { token: this.#token, subs } }, ({ connect, error }) => {
      if (error) this._ended(error.temporary ? 1013 : error.code, error.message);
      else this.#connected(connect);
    });
  }

  _received(data) {
    data.split("\n").forEach(this._mine((line) => this.#take(JSON.parse(line))));
  }

  _show(state) {
    super._show(state);
    if (state.name === "open") return;
    clearTimeout(this.#self.timer);
    for (const channel of this.#channels.values()) {
      clearTimeout(channel.timer);
      if (channel.state.name === "subscribed") this.#subscribing(channel, state.code, state.reason || state.why);
    }
  }

  // -- commands and what comes back -----------------------------------------------------

  #connected(result) {
    const given = new Map(Object.entries(result.subs ?? {}));
    this._watch(result.ping * SILENT_HEARTBEATS);
    this.#refreshLater(this.#self, "refresh", result);
    for (const channel of this.#channels.values()) if (!given.has(channel.name)) this.#ask(channel);
    this._show({ name: "open" });
    for (const [name, subscription] of given) this.#give(name, subscription);
  }

  #command(command, take) {
    this.#lastId += 1;
    this.#replies.set(this.#lastId, take);
    this.send(JSON.stringify({ id: this.#lastId, ...command }));
  }

  #take({ id, push, ...reply }) {
    if (id) {
      const take = this.#replies.get(id);
      this.#replies.delete(id);
      take?.(reply);
    } else if (push) {
      this.#onPush(push);
    } else {
      this.send("{}"); // its ping, our pong
    }
  }

  #onPush({ channel: name, pub, subscribe, unsubscribe }) {
    if (subscribe) this.#give(name, subscribe);
    const channel = this.#channels.get(name);
    if (channel?.state.name !== "subscribed") return; // no longer wanted
    if (pub) this.#publish(channel, pub);
    if (unsubscribe) this.#onUnsubscribe(channel, unsubscribe);
  }

  #onUnsubscribe(channel, { code, reason }) {
    if (code < 2500) {
      this.#unsubscribed(channel, code, reason);
    } else {
      if (code === 2501) channel.tokens.renew();
      this.#askLater(channel, code, reason);
    }
  }

  #publish(channel, publication) {
    const { data, offset, tags } = publication;
    if (offset) channel.position.offset = offset;
    if (data === null && tags?.gap) {
      this.#tell(channel, { name: "subscribed", recovered: false, missed: Number(tags.gap) });
    } else {
      tell(channel.handlers, null, publication);
      super._received(data, channel.name, publication);
    }
  }

  // -- channels -------------------------------------------------------------------------

  /** The channel of this name; a new one where there is none. */
  #channel(name, token) {
    if (!this.#channels.has(name)) {
      const tokens = new TokenSource(token);
      this.#channels.set(name, { name, tokens, handlers: new Set(), state: { name: "subscribing" }, attempts: 0 });
    }
    return this.#channels.get(name);
  }

  #forget(channel) {
    clearTimeout(channel.timer);
    this.#channels.delete(channel.name);
  }

  #tell(channel, state) {
    channel.state = state;
    tell(channel.handlers, state);
  }

  #ask(channel) {
    const { name, tokens, handlers, position } = channel;
    if (!handlers.size) this.#forget(channel); // the server's alone, and it gives it no more
    const mine = (work) => this._mine((value) => void (this.#channels.get(name) === channel && work(value)));
    const answered = ({ subscribe, error }) => {
      if (subscribe) this.#subscribed(channel, subscribe);
      else if (error.temporary || tokens.renew()) this.#askLater(channel, error.code, error.message);
      else if (!channel.isServers) this.#unsubscribed(channel, error.code, error.message);
    };
    channel.isServers = tokens.isFresh = false;
    Promise.resolve(tokens.get(name)).then(
      mine((token) => this.#command({ subscribe: { channel: name, token, ...position } }, mine(answered))),
      mine((error) => this.#askLater(channel, 0, String(error?.message ?? error))),
    );
  }

  #askLater(channel, code, reason) {
    clearTimeout(channel.timer);
    const ask = this._mine(() => this.#ask(channel));
    channel.timer = setTimeout(ask, this._wait(channel.attempts) * 1000);
    channel.attempts += 1;
    this.#subscribing(channel, code, reason);
  }

  #subscribing(channel, code, reason) {
    this.#tell(channel, { name: "subscribing", code, reason });
  }

  #subscribed(channel, result) {
    const { recoverable, epoch, offset, recovered = false, publications = [] } = result;
    channel.attempts = 0;
    channel.tokens.isFresh = false;
    channel.position = { recover: recoverable, epoch, offset };
    this.#refreshLater(channel, "sub_refresh", result);
    this.#tell(channel, { name: "subscribed", recovered });
    for (const publication of publications) this.#publish(channel, publication);
  }

  /** Subscribed, by the server. */
  #give(name, result) {
    const channel = this.#channel(name);
    channel.isServers = true;
    this.#subscribed(channel, result);
  }

  #unsubscribed(channel, code, reason) {
    this.#forget(channel);
    this.#tell(channel, { name: "unsubscribed", code, reason });
    channel.handlers.clear();
  }

  /** At its end replace a token that a function gave. Where that fails the server ends what it was for. */
  #refreshLater(owner, command, { expires, ttl }) {
    clearTimeout(owner.timer);
    if (!expires) return;
    const { tokens, name: channel } = owner;
    const refreshed = (reply) => reply[command] && this.#refreshLater(owner, command, reply[command]);
    const send = this._mine((token) => this.#command({ [command]: { channel, token } }, refreshed));
    const renew = () => {
      tokens.isFresh = false;
      if (tokens.renew()) tokens.get(channel).then(send, () => {});
    };
    owner.timer = setTimeout(renew, Math.min(ttl, LONGEST_TIMER_SECONDS) * 1000);
  }
}
