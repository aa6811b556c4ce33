// What the types of fastpush.js allow, and, behind @ts-expect-error, what they do not. Only compiled, never run.
import { ChannelClient, Connection, PushClient, type Options, type State, type SubscriptionState } from "../../fastpush/web/fastpush.js";

const options: Options = { token: async () => "aaa", heartbeatSeconds: 25, firstWaitSeconds: 1, longestWaitSeconds: 30 };
const client = new PushClient("/ws", options);
const off: () => void = client.on("price", (message, event) => console.log(message.trim(), event.trim()));
client.onMessage((message: string, event: string) => console.log(message, event));
const registered: Promise<void> = client.register("price");
registered.then(off);

export function show(state: State): string {
  switch (state.name) {
    case "idle":
      return "idle";
    case "connecting":
      return `attempt ${state.attempt.toFixed()}`;
    case "open":
      return (state.registered ?? []).join();
    case "waiting":
      return `${state.seconds.toFixed()} s, ${state.code.toFixed()} ${state.reason} ${state.why}`;
    case "closed":
      return `${state.code.toFixed()} ${state.reason} ${state.why}`;
  }
}

const plain: Connection = new Connection(new URL("wss://push.example.com/chat"), { token: "aaa", WebSocket }).connect();
plain.onMessage((data) => (typeof data === "string" ? data.trim() : data.byteLength));
plain.onState((state) => console.log(show(state), show(plain.state), plain.readyState === 1));
const isSent: boolean = plain.send("text") && plain.send(new Uint8Array(2));
plain.close();
plain.close(1000, `sent: ${isSent}`);

function describe(state: SubscriptionState): string {
  switch (state.name) {
    case "subscribing":
      return `${state.code?.toFixed() ?? ""} ${state.reason ?? ""}`;
    case "subscribed":
      return state.recovered ? "nothing missed" : `missed: ${state.missed?.toFixed() ?? "unknown"}`;
    case "unsubscribed":
      return `${state.code.toFixed()} ${state.reason.trim()}`;
  }
}

const channels = new ChannelClient("/connection/websocket", { token: () => "aaa", longestWaitSeconds: 60 });
const unsubscribe: () => void = channels.subscribe("chat:42", (data, { offset, tags, info }) => {
  console.log(data.text, offset?.toFixed(), tags?.kind?.trim(), info?.user.trim());
});
channels.subscribe("$chat:42", console.log, {
  token: async (channel) => channel.trim(),
  onState: (state) => console.log(describe(state)),
});
channels.onMessage((data, channel, publication) => console.log(data, channel.trim(), publication.offset));
unsubscribe();

// @ts-expect-error: a token is text, or what gives it
new PushClient("/ws", { token: 1 });
// @ts-expect-error: no such option
new PushClient("/ws", { heartbeat: 25 });
// @ts-expect-error: pushes are for PushClient
plain.register("price");
// @ts-expect-error: an event has a name
client.register();
// @ts-expect-error: the state is told, not set
client.state = { name: "idle" };
// @ts-expect-error: one word per state
client.onState((state) => state.name === "opened");
// @ts-expect-error: a message may be bytes
plain.onMessage((data) => data.trim());
// @ts-expect-error: the server says how often it pings
new ChannelClient("/connection/websocket", { heartbeatSeconds: 25 });
// @ts-expect-error: publications go somewhere
channels.subscribe("chat:42");
// @ts-expect-error: only who is subscribed knows what was recovered
channels.subscribe("chat:42", console.log, { onState: (state) => state.recovered });
