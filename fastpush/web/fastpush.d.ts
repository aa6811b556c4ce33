/** fastpush.js: a WebSocket that comes back by itself, in browsers and in Node. */

/** How to connect, and when to come back. */
export interface Options {
  /**
   * Who this client is. A function is asked for the first connection, after 4502, and when a token that it gave
   * for an earlier connection is refused; ChannelClient asks it also when a token is about to expire. Other
   * applications than /ws and /connection/websocket get it as the URL parameter `token`.
   */
  token?: string | (() => string | Promise<string>);
  /**
   * The server sends the text "heartbeat" every so many seconds (1 to 3600); after 2.5 times that of silence the
   * connection is replaced. 0: no watch, and "heartbeat" is a message. Default: 25 in PushClient, which asks the
   * server for it; 0 in Connection, where it is what the application's heartbeat_seconds says. ChannelClient
   * takes none: there the server says how often it pings.
   */
  heartbeatSeconds?: number;
  /** The first wait before coming back, in seconds; each further one is twice as long. Default: 1. */
  firstWaitSeconds?: number;
  /** The longest wait, in seconds. Default: 30. */
  longestWaitSeconds?: number;
  /** What to connect with, where there is no global WebSocket: Node before 22. Default: the global one. */
  WebSocket?: new (url: string) => unknown;
}

/** Nothing was asked for yet. */
export interface Idle {
  readonly name: "idle";
}

/** A connection is being opened; attempt counts from 1 since the last one that lasted. */
export interface Connecting {
  readonly name: "connecting";
  readonly attempt: number;
}

/** Connected. registered: the events that the server has confirmed; PushClient's only. */
export interface Open {
  readonly name: "open";
  readonly registered?: readonly string[];
}

/** The connection was lost; the next attempt comes in so many seconds. */
export interface Waiting {
  readonly name: "waiting";
  readonly seconds: number;
  /** The close code; 0: the token function failed; below 1000: the error by which a ChannelClient was refused. */
  readonly code: number;
  /** What the server said, or "". */
  readonly reason: string;
  /** What the code means, in words. */
  readonly why: string;
}

/** Closed for good, until `connect()` or `register()` is called. Fields as Waiting's. */
export interface Closed {
  readonly name: "closed";
  readonly code: number;
  readonly reason: string;
  readonly why: string;
}

/** What a connection does now. */
export type State = Idle | Connecting | Open | Waiting | Closed;

/** Removes the handler that it was returned for. */
export type Off = () => void;

/** What was published to a channel. */
export interface Publication {
  readonly data: any;
  /** Its number in the channel, from 1; in channels without history there is none. */
  readonly offset?: number;
  /** The client that published it; none: a back-end. */
  readonly info?: { readonly user: string; readonly client: string; readonly conn_info?: any; readonly chan_info?: any };
  /** What the publisher noted beside it. */
  readonly tags?: { readonly [name: string]: string };
}

/** Asked for; not, or not now, subscribed: it comes by itself. */
export interface Subscribing {
  readonly name: "subscribing";
  /** Why not any more: a close code, the server's error or unsubscribe code, or 0: the token function failed. */
  readonly code?: number;
  readonly reason?: string;
}

/** Subscribed: every publication from now on arrives. */
export interface Subscribed {
  readonly name: "subscribed";
  /**
   * True: what was published since it was last subscribed arrives next. False: at the first time; after a cut whose
   * publications the server has no more; and when it left some out because this client is slow.
   */
  readonly recovered: boolean;
  /** How many it left out for a slow client. */
  readonly missed?: number;
}

/** Refused, or ended by the server. Nothing more comes until somebody subscribes anew. */
export interface Unsubscribed {
  readonly name: "unsubscribed";
  /** The server's error or unsubscribe code. */
  readonly code: number;
  readonly reason: string;
}

/** What a subscription does now. */
export type SubscriptionState = Subscribing | Subscribed | Unsubscribed;

/** How to subscribe. */
export interface SubscribeOptions {
  /**
   * For channels that need their own token. A function is asked for the first subscription, when its last token
   * is about to expire or has expired, and when one that it gave for an earlier subscription is refused.
   */
  token?: string | ((channel: string) => string | Promise<string>);
  /** Called at every change of the subscription. */
  onState?: (state: SubscriptionState) => void;
}

/** A WebSocket to any application: data in, data out, and back again when it was lost. */
export class Connection {
  /**
   * Prepare a connection; `connect()` opens it.
   *
   * @param url      WebSocket or HTTP URL, or a path, relative to the page.
   * @param options  token, heartbeatSeconds, firstWaitSeconds, longestWaitSeconds, WebSocket; see Options.
   * @throws TypeError: the URL is none.  Error: there is no WebSocket here.
   */
  constructor(url: string | URL, options?: Options);

  /** What it does now; see State. */
  get state(): State;

  /** As a WebSocket's: 0 connecting, 1 open, 2 closing, 3 closed. */
  get readyState(): number;

  /** Connect; while it waits: at once. While it is connecting or open this does nothing. */
  connect(): this;

  /** Send text or bytes. Returns false, with nothing sent and nothing kept for later, unless the connection is open. */
  send(data: string | ArrayBuffer | ArrayBufferView): boolean;

  /** Have `handler(data)` called for every message: text, or an ArrayBuffer. Returns what removes it. */
  onMessage(handler: (data: string | ArrayBuffer) => void): Off;

  /** Have `handler(state)` called at every change of the state. Returns what removes it. */
  onState(handler: (state: State) => void): Off;

  /** Close, and do not come back until `connect()` is called. */
  close(code?: number, reason?: string): void;
}

/** A client of /ws: registers for events, and receives what is pushed to its user. Connects with the first event. */
export class PushClient extends Connection {
  /**
   * @param url      as Connection's, "/ws" most of the time.
   * @param options  as Connection's; heartbeatSeconds is asked of the server here (1 to 3600, 0 for none).
   */
  constructor(url?: string | URL, options?: Options);

  /**
   * Have what is pushed to the token's user and `event`, also after every reconnect.
   *
   * @returns a promise: resolved once the server has confirmed it; every push from then on arrives.
   *          Rejected with the server's reason, or when the connection is closed for good before.
   */
  register(event: string): Promise<void>;

  /** Have `handler(message, event)` called for each push to this event. Returns what removes it. */
  on(event: string, handler: (message: string, event: string) => void): Off;

  /** Have `handler(message, event)` called for each push, whatever its event. Returns what removes it. */
  onMessage(handler: (message: string, event: string) => void): Off;

  /** As Connection's. What is registered is registered again by `connect()`. */
  close(code?: number, reason?: string): void;
}

/**
 * A client of /connection/websocket: any number of channels on one connection, each resumed where it was cut.
 * Connects with the first channel.
 *
 *     subscribing ──► subscribed ──► subscribing …      cut, or the server asks for it
 *                └───────────┴─────► unsubscribed       refused, or ended by the server
 */
export class ChannelClient extends Connection {
  /**
   * @param url      as Connection's, "/connection/websocket" most of the time.
   * @param options  as Connection's, but heartbeatSeconds: the server says how often it pings.
   */
  constructor(url?: string | URL, options?: Omit<Options, "heartbeatSeconds">);

  /**
   * Have `onPublication(data, publication)` called for what is published to a channel: once each, in order, also
   * after every reconnect. Who else subscribes to it here shares the subscription, and the first one's token.
   *
   * @param options  token: for channels that need their own; text, or a function that gets the channel's name.
   *                 onState: called at every change. With `recovered: false` publications may have been missed.
   * @returns what unsubscribes.
   */
  subscribe(name: string, onPublication: (data: any, publication: Publication) => void, options?: SubscribeOptions): Off;

  /** Have `handler(data, channel, publication)` called for each publication of every channel. Returns what removes it. */
  onMessage(handler: (data: any, channel: string, publication: Publication) => void): Off;
}
