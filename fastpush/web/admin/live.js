// The server as this page sees it: requests with the session, and a WebSocket that comes back by itself.
//
// A session that has ended brings back the login page, however the page finds out.

const BACK_OFF_MS = [500, 15_000]; // first and longest wait before the next attempt
const REQUEST_MS = 15_000;
const SESSION_ENDED = 4501;

export let session = { csrf: "", actions: false, version: "", host: "", zone_minutes: 0 };

/** Show what /admin answers now: the login page, where the session has ended. */
export function leave() {
  window.location.assign("/admin");
}

/** What the server refused, or could not be asked: `message` is for the operator. */
export class RequestError extends Error {}

/** Ask the server. Raises: RequestError. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { signal: AbortSignal.timeout(REQUEST_MS), cache: "no-store", ...options });
  } catch (error) {
    const why = error.name === "TimeoutError" ? "did not answer in time" : "cannot be reached";
    throw new RequestError(`The server ${why}. Check that fastpush runs, then try again.`);
  }
  if (response.status === 401) {
    leave();
    throw new RequestError("The session has ended.");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null) {
    const error = body?.error?.message ?? body?.error ?? "no reason given";
    throw new RequestError(`Refused (${response.status}): ${error}`);
  }
  return body;
}

/** Ask for a change. Raises: RequestError. */
export function post(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": session.csrf };
  return request(path, { method: "POST", headers, body: JSON.stringify(body) });
}

/**
 * The live figures. on: { session(), message(object), state(name, seconds) } with the states "connecting", "open" and
 * "waiting" (seconds until the next attempt).
 */
export class Live {
  #on;
  #socket = null;
  #attempt = 0;
  #timer = 0;

  constructor(on) {
    this.#on = on;
    // A machine that wakes up, or a network that is back: there is nothing to wait for.
    window.addEventListener("online", () => this.#timer && this.connect());
  }

  async connect() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#on.state("connecting", 0);
    try {
      session = await request("/admin/session.json");
    } catch {
      this.#wait();
      return;
    }
    this.#on.session();
    const socket = new WebSocket(`${window.location.origin.replace(/^http/, "ws")}/admin/live`);
    this.#socket = socket;
    // A browser waits for minutes where nobody answers.
    const timer = setTimeout(() => socket.readyState === WebSocket.CONNECTING && socket.close(), REQUEST_MS);
    socket.addEventListener("open", () => {
      clearTimeout(timer);
      this.#on.state("open", 0);
    });
    socket.addEventListener("message", ({ data }) => {
      this.#attempt = 0;
      this.#on.message(JSON.parse(data));
    });
    socket.addEventListener("close", ({ code }) => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      if (code === SESSION_ENDED) leave();
      else this.#wait();
    });
  }

  /** Send an object; false where nobody is there to take it. */
  send(object) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(object));
    return true;
  }

  /** Begin anew: what is open has gone silent. */
  renew() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    if (!this.#timer) this.#wait();
  }

  #wait() {
    const [first, longest] = BACK_OFF_MS;
    const ms = Math.min(longest, first * 2 ** this.#attempt++) * (0.5 + Math.random() / 2);
    this.#on.state("waiting", ms / 1000);
    this.#timer = setTimeout(() => this.connect(), ms);
  }
}
