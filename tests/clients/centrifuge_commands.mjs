// What a program does with npm's centrifuge, as commands with a number and answers to them; in Node and in pages.
//
// A command is [NUMBER, NAME, ARGUMENT…], the first one ["connect", OPTIONS]. `tell` is given {"answer": NUMBER, "ok": VALUE}, or "error" with code and
// message, and {"event": NAME, …} for whatever happens; of subscriptions that the server made also "server": true.
// Options as the class takes them, and tokens: what getToken gives, one after the other, the last one again and
// again (null: it fails). That it was asked is the event "token".

const CLIENT_EVENTS = ["connecting", "connected", "disconnected", "error", "message"];
const SUBSCRIPTION_EVENTS = ["subscribing", "subscribed", "unsubscribed", "publication", "join", "leave", "error"];
const SERVER_EVENTS = SUBSCRIPTION_EVENTS.filter((name) => name !== "error");

// Of what presence tells, what the class documents.
const info = ({ client, user, connInfo, chanInfo }) => ({ client, user, connInfo, chanInfo });

function withTokens({ tokens, ...options }, channel, tell) {
  if (!tokens) return options;
  let asked = 0;
  const getToken = async () => {
    tell({ event: "token", ...channel });
    asked += 1;
    const token = tokens[Math.min(asked, tokens.length) - 1];
    if (token === null) throw new Error("the back-end is away");
    return token;
  };
  return { ...options, getToken };
}

export function converse(Centrifuge, WebSocket, url, tell) {
  let client;
  let frames = 0;
  class CountingWebSocket extends WebSocket {
    send(data) {
      frames += 1;
      super.send(data);
    }
  }

  const commands = {
    connect(options) {
      client = new Centrifuge(url, { websocket: CountingWebSocket, ...withTokens(options, {}, tell) });
      for (const event of CLIENT_EVENTS) client.on(event, (context) => tell({ event, ...context }));
      for (const event of SERVER_EVENTS) client.on(event, (context) => tell({ event, server: true, ...context }));
      client.connect();
    },
    disconnect: () => client.disconnect(),
    subscribe(channel, options = {}) {
      const subscription = client.newSubscription(channel, withTokens(options, { channel }, tell));
      for (const event of SUBSCRIPTION_EVENTS) {
        subscription.on(event, (context) => tell({ event, channel, ...context }));
      }
      subscription.subscribe();
    },
    unsubscribe(channel) {
      const subscription = client.getSubscription(channel);
      subscription.unsubscribe();
      client.removeSubscription(subscription);
    },
    publish: (channel, data) => client.publish(channel, data),
    history: (channel, options) => client.history(channel, options),
    presence: (channel) => client.presence(channel).then(({ clients }) => Object.values(clients).map(info)),
    presenceStats: (channel) => client.presenceStats(channel),
    rpc: (method, data) => client.rpc(method, data).then((result) => result.data),
    send: (data) => client.send(data),
    // Several commands in one frame: the answer of each.
    batch(...batched) {
      client.startBatching();
      const answers = batched.map(([name, ...values]) => commands[name](...values));
      client.stopBatching();
      return Promise.all(answers);
    },
    // How many frames have been sent so far.
    frames: () => frames,
  };
  return async ([number, name, ...values]) => {
    try {
      tell({ answer: number, ok: (await commands[name](...values)) ?? null });
    } catch ({ code, message }) {
      tell({ answer: number, error: { code, message } });
    }
  };
}
