// A stand-in for the gateway: real HTTP and WebSocket on a free port, answering as docs/collector.md
// says, with switches for everything that can go wrong. Keeps every frame it was sent.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { WebSocketServer } from 'ws';
import { DIST } from '../build.mjs';
import { decode } from './decode.mjs';

export const PREFIX = '/_gaitway';
const collector = await readFile(DIST);

export const startGateway = async (t, pages = {}) => {
  const gateway = {
    /** As they came: {by: 'socket' | 'post', token, bytes, batch}. */
    frames: [],
    sockets: new Set(),
    tokensIssued: 0,
    handshakes: 0,
    posts: 0,
    requests: [],
    // Switches.
    tokenStatus: 200,
    tokenBody: undefined,
    refuseSockets: false,
    hangSockets: false,
    postStatus: 204,
    postBody: '',
    pages,
    events: () => gateway.frames.flatMap((frame) => frame.batch.events),
    count: (kind) => gateway.events().filter((event) => event.kind === kind).length,
    sequences: () => gateway.frames.map((frame) => frame.batch.sequence),
    /** Ends the server and every connection at once, as a crash would. */
    kill: async () => {
      for (const socket of gateway.sockets) socket.terminate();
      for (const stream of hanging) stream.destroy();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
    listen: async (port = 0) => {
      await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
      gateway.port = server.address().port;
      gateway.origin = `http://127.0.0.1:${gateway.port}`;
    },
  };
  const hanging = [];
  const receive = (by, token, bytes) => gateway.frames.push({ by, token, bytes, batch: decode(bytes) });

  const server = createServer((request, response) => {
    const url = new URL(request.url, 'http://gateway');
    const chunks = [];
    gateway.requests.push(`${request.method} ${url.pathname}`);
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      const answer = (status, type, body, headers = {}) =>
        response.writeHead(status, { 'content-type': type, ...headers }).end(body);
      if (request.method === 'POST' && url.pathname === `${PREFIX}/token`) {
        const body = gateway.tokenBody ?? `token-${gateway.tokensIssued++}`;
        answer(gateway.tokenStatus, 'text/plain', gateway.tokenStatus === 200 ? body : '');
      } else if (request.method === 'POST' && url.pathname === `${PREFIX}/b`) {
        gateway.posts++;
        gateway.postType = request.headers['content-type'];
        if (gateway.postStatus < 300) receive('post', url.searchParams.get('p'), Buffer.concat(chunks));
        answer(gateway.postStatus, 'application/json', gateway.postStatus === 200 ? gateway.postBody : '');
      } else if (url.pathname === `${PREFIX}/c.js`) {
        answer(200, 'text/javascript', collector);
      } else if (url.pathname in gateway.pages) {
        const page = gateway.pages[url.pathname];
        const { body, headers } = typeof page === 'string' ? { body: page, headers: {} } : page;
        answer(200, 'text/html; charset=utf-8', body, headers);
      } else if (url.pathname === '/favicon.ico') {
        answer(204, 'image/x-icon', '');
      } else {
        answer(404, 'text/plain', 'not found');
      }
    });
  });
  const acceptor = new WebSocketServer({ noServer: true });
  server.on('upgrade', (request, stream, head) => {
    const url = new URL(request.url, 'http://gateway');
    gateway.handshakes++;
    if (gateway.hangSockets) {
      hanging.push(stream);
      return;
    }
    if (gateway.refuseSockets || url.pathname !== `${PREFIX}/t`) {
      stream.end('HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n');
      return;
    }
    acceptor.handleUpgrade(request, stream, head, (socket) => {
      const token = url.searchParams.get('p');
      gateway.sockets.add(socket);
      gateway.onSocket?.(socket);
      socket.on('message', (bytes, isBinary) => isBinary && receive('socket', token, bytes));
      socket.on('close', (code) => {
        gateway.lastClose = code;
        gateway.sockets.delete(socket);
      });
    });
  });
  await gateway.listen();
  t.after(() => gateway.kill());
  return gateway;
};

/** A page with the script as the gateway injects it. */
export const html = (body, { head = '', nonce = '' } = {}) =>
  `<!doctype html><html><head><script src="${PREFIX}/c.js" defer${nonce && ` nonce="${nonce}"`}></script>` +
  `<title>page</title>${head}</head><body>${body}</body></html>`;

const DEADLINE_MS = 20_000;

/** Waits until the condition holds, and says what it waited for when it never does. */
export const until = async (condition, what = condition.toString()) => {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};
