// fastpush.js in Node, driven by JSON lines: node fastpush.mjs PushClient|ChannelClient|Connection URL OPTIONS
//
// OPTIONS as the class takes them, and tokens: what a token function gives, one after the other (null: it fails);
// random: what Math.random gives. Every line of standard input is [COMMAND, ARGUMENT…]. Standard output has a line
// for whatever happens: {"state": …}, {"message": …, "event": …}, {"on": event, "text": …}, {"asked": how often},
// {"registered": event}, {"refused": event, "reason": …}, {"sent": true or false}, {"uncaught": …},
// {"publication": data, "channel": …, "as": …, …}, {"subscription": state, "channel": …, "as": …}.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import ws from "ws";

const source = await readFile(new URL("../../fastpush/web/fastpush.js", import.meta.url));
const fastpush = await import(`data:text/javascript;base64,${source.toString("base64")}`);
const [kind, url, given] = process.argv.slice(2);
const { tokens, random, ...options } = JSON.parse(given ?? "{}");
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
process.on("uncaughtException", (error) => tell({ uncaught: error.message }));
if (random !== undefined) Math.random = () => random;

function oneByOne(tokens) {
  let asked = 0;
  return async (channel) => {
    const token = tokens[asked];
    asked += 1;
    tell({ asked, channel });
    if (token === null) throw new Error("the back-end is away");
    return token;
  };
}
if (tokens) options.token = oneByOne(tokens);
// The page's Origin, which a browser sends: the server then tells of bad tokens by close codes.
const origin = new URL(url).origin.replace("ws", "http");
let socket;
class PageWebSocket extends ws {
  constructor(url) {
    super(url, { origin });
    socket = this;
  }
}
const client = new fastpush[kind](url, { WebSocket: PageWebSocket, ...options });
client.onState((state) => tell({ state }));
client.onMessage((message, event) => tell(event === undefined ? { message } : { message, event }));

const subscriptions = new Map(); // by the name that a test gave them
const commands = {
  // Subscribe, and call that `as`. options: tokens as above.
  subscribe: (channel, as = channel, { tokens, ...options } = {}) => {
    if (tokens) options.token = oneByOne(tokens);
    options.onState = (state) => tell({ subscription: state, channel, as });
    const onPublication = (data, { offset, tags }) => tell({ publication: data, channel, as, offset, tags });
    subscriptions.set(as, client.subscribe(channel, onPublication, options));
  },
  unsubscribe: (as) => subscriptions.get(as)(),
  // Unsubscribe before anything is told.
  glance: (channel, as) => {
    commands.subscribe(channel, as);
    commands.unsubscribe(as);
  },
  cut: () => socket.terminate(),
  port: () => tell({ port: socket._socket.localPort }),
  register: (event) =>
    client.register(event).then(
      () => tell({ registered: event }),
      (error) => tell({ refused: event, reason: error.message }),
    ),
  on: (event) => client.on(event, (message) => tell({ on: event, text: message })),
  // A handler that throws.
  onBad: (event) =>
    client.on(event, () => {
      throw new Error("handler failed");
    }),
  send: (data) => tell({ sent: client.send(data) }),
  readyState: () => tell({ readyState: client.readyState }),
  connect: () => client.connect(),
  close: () => client.close(),
  // What a browser does when its network is back.
  online: () => globalThis.dispatchEvent(new Event("online")),
};
if (!globalThis.addEventListener) {
  const events = new EventTarget();
  for (const name of ["addEventListener", "removeEventListener", "dispatchEvent"]) {
    globalThis[name] = events[name].bind(events);
  }
}
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...values] = JSON.parse(line);
  commands[name](...values);
}
process.exit(0);
