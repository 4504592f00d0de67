// The stage of a story: the shop, the mail server, Redis and gateways before the shop, all real, each
// on a free port of the loopback. Knows how they are started and asked, not what a story expects.
import { createHmac, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort, start } from './child.mjs';
import { until } from './wait.mjs';

const ROOT = resolve(fileURLToPath(import.meta.url), '../../..');
const GATEWAY = process.env.GAITWAY_BIN ?? join(ROOT, 'target/debug/gaitway');
const DEMO = process.env.GAITWAY_DEMO_BIN ?? join(ROOT, 'target/debug/gaitway-demo');
const SMTP = join(ROOT, 'gateway/tests/support/smtp_server.py');
export const DEMO_POLICY = join(ROOT, 'policies/demo.yaml');

const SHOP_PASSWORD = 'demo';
const OPS_PASSWORD = 'a password for these tests only';

export class Stage {
  gateways = [];

  static async open(t) {
    const stage = new Stage();
    stage.folder = mkdtempSync(join(tmpdir(), 'gaitway-e2e-'));
    t.after(() => stage.close());
    stage.secret = randomBytes(32).toString('hex');
    stage.keyFile = join(stage.folder, 'session.key');
    stage.jwtKey = randomBytes(32).toString('hex');
    writeFileSync(stage.keyFile, stage.jwtKey, { mode: 0o600 });
    stage.passwordFile = join(stage.folder, 'ops-password');
    writeFileSync(stage.passwordFile, OPS_PASSWORD, { mode: 0o600 });
    const port = await freePort();
    stage.shop = `http://127.0.0.1:${port}`;
    stage.shopChild = start(DEMO, ['shop', '--listen', `127.0.0.1:${port}`, '--key-file', stage.keyFile]);
    stage.smtp = start('/usr/bin/python3', [SMTP], { stdin: 'pipe' });
    await until('the shop answers', () => alive(stage.shopChild) && fetch(`${stage.shop}/`).then((answer) => answer.ok));
    stage.mailPort = await until('the mail server listens', () => alive(stage.smtp) && jsonLines(stage.smtp.out)[0]?.port);
    return stage;
  }

  /** Mails taken so far: `{from, to, headers, text, html}`. */
  get mails() {
    return jsonLines(this.smtp.out).slice(1);
  }

  /** Starts Redis without persistence; started again after `stopRedis` it is empty. */
  async startRedis() {
    this.redisPort ??= await freePort();
    this.redis = start('redis-server', ['--port', String(this.redisPort), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', this.folder]);
    await until('Redis answers', () => alive(this.redis) && answers(this.redisPort));
  }

  stopRedis() {
    return this.redis.stop();
  }

  /** Starts a gateway. `policy: null` leaves the shipped policy; `data` names its folder, kept over restarts. */
  async gateway({ policy = DEMO_POLICY, redis = false, data = `data-${this.gateways.length}`, help } = {}) {
    const gateway = new Gateway(this, { policy, redis, data, help });
    this.gateways.push(gateway);
    await gateway.start();
    return gateway;
  }

  /** A token as the shop would issue it, with any claims. */
  token(claims = {}) {
    const now = Math.floor(Date.now() / 1000);
    const part = (object) => Buffer.from(JSON.stringify(object)).toString('base64url');
    const all = { iss: 'demo-shop', sub: 'alice', sid: randomBytes(16).toString('hex'), groups: [], iat: now, exp: now + 3600, ...claims };
    const signed = `${part({ typ: 'JWT', alg: 'HS256' })}.${part(all)}`;
    return `${signed}.${createHmac('sha256', this.jwtKey).update(signed).digest('base64url')}`;
  }

  /** Everything Gaitway wrote anywhere: logs, metrics, mails, every file of its data folders. */
  async traces() {
    const traces = { mails: this.smtp.out };
    for (const gateway of this.gateways) {
      traces[`log of ${gateway.name}`] = gateway.child.out + gateway.child.err;
      traces[`metrics of ${gateway.name}`] = await (await fetch(`${gateway.ops}/metrics`)).text();
      for (const file of filesBelow(gateway.folder)) traces[file] = readFileSync(file, 'latin1');
    }
    return traces;
  }

  async close() {
    // The gateways first, so that none complains about a missing shop.
    await Promise.all(this.gateways.map((gateway) => gateway.child.stop()));
    await Promise.all([this.shopChild, this.smtp, this.redis].map((child) => child?.stop()));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

class Gateway {
  constructor(stage, { policy, redis, data, help }) {
    this.stage = stage;
    this.name = data;
    this.folder = join(stage.folder, data);
    this.file = join(stage.folder, `${data}.yaml`);
    writeFileSync(this.file, `
upstream: ${stage.shop}
listen: 127.0.0.1:0
data: ${this.folder}
limits: {drain_ms: 500}
identity:
  jwt: {cookie: session, algorithms: [HS256], key_file: ${stage.keyFile}, issuer: demo-shop, groups_claim: groups}
${policy ? `policy: {file: ${policy}}` : ''}
${redis ? `revocation: {redis: "redis://127.0.0.1:${stage.redisPort}"}` : ''}
alerts:
  mail: {host: 127.0.0.1, port: ${stage.mailPort}, encryption: none, from: gaitway@shop.example, to: [security@shop.example]}
ops: {listen: "127.0.0.1:0", password_file: ${stage.passwordFile}, help: ${JSON.stringify(help ?? 'the front desk of the shop')}}
log: {format: json, access: true}
`);
  }

  /** Starts it, or starts it again after `stop` on the same data and the same ports. */
  async start() {
    const child = start(GATEWAY, ['run', '--config', this.file], {
      env: { GAITWAY_SECRET: this.stage.secret, ...this.ports },
    });
    this.child = child;
    const ready = await until(`${this.name} is ready`, () =>
      alive(child) && jsonLines(child.err).find((line) => line.message === 'Gaitway is ready'));
    this.ports = { GAITWAY_LISTEN: ready.listen, GAITWAY_OPS_LISTEN: ready.ops };
    this.origin = `http://${ready.listen}`;
    this.ops = `http://${ready.ops}`;
  }

  async stop() {
    await this.child.stop('SIGTERM');
  }

  get log() {
    return jsonLines(this.child.err);
  }

  /** Asks the operators' API: a GET, or a POST if there is a body. */
  async api(path, body) {
    const response = await fetch(`${this.ops}/api/${path}`, {
      method: body ? 'POST' : 'GET',
      headers: { authorization: `Bearer ${OPS_PASSWORD}`, ...(body && { 'content-type': 'application/json' }) },
      body: body && JSON.stringify(body),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${JSON.stringify(answer)}`);
    return answer;
  }

  get opsPassword() {
    return OPS_PASSWORD;
  }

  async sessions() {
    return (await this.api('sessions')).sessions;
  }

  /** The live session of a user of the shop; the shop puts the name into the token's groups. */
  async sessionOf(user) {
    return (await this.sessions()).find((session) => session.identity.groups.includes(`customer:${user}`));
  }

  async incidents(session) {
    return (await this.api(`incidents${session ? `?session=${session}` : ''}`)).incidents;
  }

  revoke(session, why) {
    return this.api(`sessions/${session}/revoke`, { why });
  }

  pardon(session, why) {
    return this.api(`sessions/${session}/pardon`, { why });
  }

  async metric(name) {
    const text = await (await fetch(`${this.ops}/metrics`)).text();
    const lines = text.split('\n').filter((line) => line.startsWith(name) && /[ {]/.test(line[name.length]));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }

  /** Logs a user in without a browser; returns the token. */
  async logIn(user) {
    const answer = await this.fetch('/login', {
      method: 'POST',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: new URLSearchParams({ user, password: SHOP_PASSWORD }).toString(),
    });
    return answer.headers['set-cookie'].join().match(/session=([^;]+)/)[1];
  }

  /** A plain request: Node's own `fetch` hides or forbids what is looked at here. */
  fetch(path, { method = 'GET', headers = {}, body, token } = {}) {
    const all = { ...(token && { cookie: `session=${token}` }), ...headers };
    return new Promise((done, failed) => {
      const asked = request(this.origin + path, { method, headers: all, agent: false }, (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('end', () => done({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks) }));
        response.on('error', failed);
      });
      asked.on('error', failed).end(body);
    });
  }

  /** A page load and a script's request with the same token, as browsers mark them. */
  async tries(token) {
    const page = await this.fetch('/account', { token, headers: { 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document', accept: 'text/html' } });
    const script = await this.fetch('/api/cart', { token, headers: { 'sec-fetch-mode': 'cors', 'sec-fetch-dest': 'empty', accept: '*/*' } });
    return { page, script };
  }

  /** Opens one of the app's streams and watches it: `{bytes, open, upgraded}`. */
  stream(path, token, headers = {}) {
    const stream = { bytes: 0, open: null, upgraded: false };
    const watch = (readable) => {
      stream.open = true;
      stream.close = () => readable.destroy();
      readable.on('data', (chunk) => { stream.bytes += chunk.length; });
      for (const end of ['close', 'end', 'error']) readable.on(end, () => { stream.open = false; });
    };
    const asked = request(this.origin + path, { headers: { cookie: `session=${token}`, ...headers }, agent: false });
    asked.on('response', watch);
    asked.on('upgrade', (_, socket) => { stream.upgraded = true; watch(socket); });
    asked.on('error', () => { stream.open = false; }).end();
    return stream;
  }

  /** The shop's live prices. */
  prices(token) {
    return this.stream('/ws/stock', token, {
      connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13',
      'sec-websocket-key': randomBytes(16).toString('base64'),
    });
  }
}

/** False never returned: a process that ended is the reason, and says so. */
const alive = (child) => {
  if (child.ended !== null) throw new Error(`it ended (${child.ended}):\n${child.err.slice(-4000)}`);
  return true;
};

const answers = (port) => new Promise((done) => {
  const socket = connect(port, '127.0.0.1', () => socket.write('PING\r\n'));
  socket.on('data', (data) => { socket.destroy(); done(String(data).startsWith('+PONG')); });
  socket.on('error', () => done(false));
});

const jsonLines = (text) => text.split('\n').flatMap((line) => {
  try {
    return [JSON.parse(line)];
  } catch {
    return [];
  }
});

const filesBelow = (folder) => readdirSync(folder, { recursive: true })
  .map((name) => join(folder, name)).filter((path) => statSync(path).isFile());
