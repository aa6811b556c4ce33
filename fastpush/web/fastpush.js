/**
 * fastpush.js: a WebSocket that comes back by itself, in browsers and in Node. One file, no dependencies.
 *
 *     import { PushClient, Connection } from "/assets/fastpush.js";
 *
 *     const client = new PushClient("/ws", { token: () => fetch("/token").then((reply) => reply.text()) });
 *     client.on("price", (message) => console.log(message));
 *     await client.register("price");             // from now on every push arrives
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
const LATER = 4; // times the first wait, after these codes: come back, but not soon
const LATER_CODES = [1002, 1007, 1008, 1009, 1013];
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
  #token; // what the token function gave last
  #isFresh = false; // it was given for this attempt
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
    this.#options = { token, heartbeatSeconds, firstWaitSeconds, longestWaitSeconds };
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

  // -- for PushClient ------------------------------------------------------------------

  /** The URL to connect to now. */
  async _target() {
    const url = new URL(this._url);
    const token = await this._token();
    if (token !== undefined) url.searchParams.set("token", token);
    return url;
  }

  /** The token, or a promise of what the function gives: what it gave last, while that is good. */
  _token() {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    if (!this.#token) {
      this.#token = Promise.resolve().then(token);
      this.#isFresh = true;
    }
    return this.#token;
  }

  /** Give up a refused token; true when there is another one to be had. None is, when this one was new. */
  _renew(refused) {
    if (typeof this.#options.token !== "function") return false;
    if (this.#token === refused && !this.#isFresh) this.#token = undefined;
    return this.#token !== refused;
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
    const { firstWaitSeconds, longestWaitSeconds } = this.#options;
    if (this.#openedAt && performance.now() - this.#openedAt > STEADY_SECONDS * 1000) this.#attempts = 0;
    this.#forget();
    const why = WHY[code] ?? `closed with ${code}`;
    if (code === 0) this.#token = undefined;
    if (code === 4502) this.#isFresh = false; // it was good for its time
    const canRenew = (code === 4501 || code === 4502) && this._renew(this.#token);
    if (code === 1000 || (code >= 4500 && !canRenew)) {
      this._show({ name: "closed", code, reason, why });
      return;
    }
    const first = firstWaitSeconds * (LATER_CODES.includes(code) ? LATER : 1);
    const most = Math.min(longestWaitSeconds, first * 2 ** this.#attempts);
    this.#attempts += 1;
    // After a restart not all clients come back in the same moment.
    const seconds = most * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(this.#retry, seconds * 1000);
    globalThis.addEventListener?.("online", this.#retry);
    const isOffline = globalThis.navigator?.onLine === false;
    this._show({ name: "waiting", code, reason, why: isOffline ? "this device is offline" : why, seconds });
  }

  // -- one attempt ---------------------------------------------------------------------

  #open() {
    this.#forget();
    this.#isFresh = false;
    if (this.#state.name !== "waiting") this.#attempts = 0;
    this.#watch(CONNECT_SECONDS);
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
      this.#watch(this.#options.heartbeatSeconds * SILENT_HEARTBEATS);
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
  #watch(seconds) {
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
    if (this.state.name === "idle" || this.state.name === "closed") this.connect();
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
    const token = (this.#registrations.get(event).token = this._token());
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
    if (this._renew(registration.token)) {
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
