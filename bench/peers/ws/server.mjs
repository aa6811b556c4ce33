// Push by user and event on ws: node server.mjs PORT listens on 127.0.0.1.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const connections = new Map(); // "user\nevent" -> set of WebSockets

const server = createServer((request, response) => {
  if (request.method !== 'POST' || request.url !== '/push') {
    response.writeHead(404).end();
    return;
  }
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    let push;
    try {
      push = JSON.parse(Buffer.concat(chunks));
    } catch {
      response.writeHead(400).end();
      return;
    }
    const receivers = connections.get(`${push.userId}\n${push.event}`) ?? new Set();
    const message = Buffer.from(push.message);
    for (const socket of receivers) socket.send(message, { binary: false });
    response.end(`message sent to ${receivers.size} clients`);
  });
});

new WebSocketServer({ server, path: '/ws', perMessageDeflate: false }).on('connection', (socket, request) => {
  const query = new URL(request.url, 'http://localhost').searchParams;
  const key = `${query.get('token')}\n${query.get('event')}`;
  const group = connections.get(key) ?? new Set();
  connections.set(key, group.add(socket));
  socket.on('error', () => socket.terminate());
  socket.on('close', () => {
    group.delete(socket);
    if (group.size === 0 && connections.get(key) === group) connections.delete(key);
  });
});

server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
