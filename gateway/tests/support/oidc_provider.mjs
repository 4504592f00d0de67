// A real OpenID provider (panva's oidc-provider) for the tests, on a free port of this machine. It prints
// one line of JSON with its port, then one for every login, token and refusal. Told by its one argument,
// a JSON object: `gateway` (the origin of the gateway), `access_seconds`, `refresh`, `rotate`.
//
// Logging in needs no page: the header `x-account` says who the browser is, `x-acr` how it was proved.
// Doors below `/test/` let a test sign what an honest provider never would, with the provider's own key.

import { createPrivateKey, generateKeyPairSync, sign } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const options = JSON.parse(process.argv[2] ?? '{}');
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const stranger = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
const jwk = { ...privateKey.export({ format: 'jwk' }), kid: 'first', alg: 'RS256', use: 'sig' };
const signingKey = createPrivateKey({ key: jwk, format: 'jwk' });

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
const signed = (header, payload, key = signingKey) => {
  const text = `${encode({ alg: 'RS256', kid: 'first', ...header })}.${encode(payload)}`;
  return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`;
};

const server = createServer();
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const issuer = `http://127.0.0.1:${server.address().port}`;
const tell = (event) => console.log(JSON.stringify(event));

const provider = new Provider(issuer, {
  jwks: { keys: [jwk] },
  clients: [
    {
      client_id: 'gaitway',
      client_secret: 'the gateway and the provider share this',
      redirect_uris: [`${options.gateway}/_gaitway/login/callback`],
      post_logout_redirect_uris: [`${options.gateway}/_gaitway/logout/done`],
      backchannel_logout_uri: `${options.gateway}/_gaitway/backchannel-logout`,
      backchannel_logout_session_required: true,
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
    },
  ],
  claims: { openid: ['sub', 'sid', 'auth_time', 'acr'], profile: ['groups', 'preferred_username'] },
  conformIdTokenClaims: false,
  acrValues: ['simple', 'strong'],
  cookies: { keys: ['not a secret'] },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, preferred_username: `${id}@shop.example`, groups: ['staff', id] }),
  }),
  features: {
    devInteractions: { enabled: false },
    backchannelLogout: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    rpInitiatedLogout: {
      enabled: true,
      logoutSource: (ctx, form) => {
        ctx.body = `<!doctype html><html><body>${form}</body></html>`;
      },
    },
  },
  issueRefreshToken: () => options.refresh !== false,
  // A rotated token that comes a second time is taken for stolen: the whole grant ends.
  ...(options.rotate && { rotateRefreshToken: true }),
  ttl: {
    AccessToken: options.access_seconds ?? 3600,
    IdToken: 3600,
    RefreshToken: 86400,
    Grant: 86400,
    Session: 86400,
    Interaction: 600,
  },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  // Everybody agrees to everything: consent is not what is tested.
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope('openid profile offline_access');
    await grant.save();
    return grant;
  },
});

let tamper = null;
provider.use(async (ctx, next) => {
  if (ctx.path.startsWith('/interaction/')) {
    const account = ctx.get('x-account') || 'alice';
    const result = { login: { accountId: account, acr: ctx.get('x-acr') || undefined } };
    ctx.respond = false;
    await provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: false });
    return;
  }
  if (ctx.path.startsWith('/test/')) {
    const chunks = [];
    for await (const chunk of ctx.req) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString() || '{}');
    ctx.body = await doors[ctx.path.slice('/test/'.length)](body);
    return;
  }
  await next();
  if (ctx.path === '/token' && ctx.body?.id_token) {
    const { sub, sid } = JSON.parse(Buffer.from(ctx.body.id_token.split('.')[1], 'base64url').toString());
    tell({ event: 'login', sub, sid });
  }
  if (tamper && ctx.path === '/token' && ctx.body?.id_token) {
    const [header, payload] = ctx.body.id_token
      .split('.', 2)
      .map((part) => JSON.parse(Buffer.from(part, 'base64url').toString()));
    const changed = { ...payload, ...tamper.claims };
    for (const claim of tamper.without ?? []) delete changed[claim];
    const key = tamper.stranger ? stranger : signingKey;
    ctx.body = { ...ctx.body, id_token: signed({ ...header, ...tamper.header }, changed, key) };
    if (tamper.drop) ctx.body = { ...ctx.body, id_token: undefined };
    tamper = null;
  }
});

const doors = {
  // The next ID token says this instead.
  tamper: (body) => {
    tamper = body;
    return 'ok';
  },
  // An access token as a program of that person has one.
  token: async ({ sub, seconds }) => {
    const client = await provider.Client.find('gaitway');
    const grant = new provider.Grant({ clientId: 'gaitway', accountId: sub });
    grant.addOIDCScope('openid');
    const grantId = await grant.save();
    const token = new provider.AccessToken({ client, accountId: sub, grantId, scope: 'openid', gty: 'authorization_code' });
    if (seconds) token.expiresIn = seconds;
    return token.save();
  },
  destroy: async ({ token }) => {
    await (await provider.AccessToken.find(token)).destroy();
    return 'ok';
  },
  // Any token at all.
  sign: ({ header, payload, foreign }) => signed(header ?? {}, payload, foreign ? stranger : signingKey),
};

for (const event of ['access_token.issued', 'refresh_token.consumed', 'refresh_token.destroyed', 'grant.revoked']) {
  provider.on(event, () => tell({ event }));
}
for (const event of ['backchannel.success', 'backchannel.error', 'server_error', 'grant.error', 'authorization.error']) {
  provider.on(event, (...args) => {
    const error = args.find((arg) => arg instanceof Error);
    tell({ event, error: error && `${error.message} ${error.error_description ?? ''}` });
  });
}
server.on('request', provider.callback());
tell({ port: server.address().port });
// Whoever started it holds its standard input open; it ends with them.
process.stdin.on('end', () => process.exit(0)).resume();
