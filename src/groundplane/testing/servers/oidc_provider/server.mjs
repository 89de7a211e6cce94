// The process of server `oidc` (see oidc.py): `node server.mjs SETTINGS.json`.
//
// Everything under /kit is the kit's own and steers it while it runs: POST /kit/keys {"keep": bool} makes a new signing
// key, PUT /kit/clock {"ahead_s": number} sets the clock. All else is oidc-provider's.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const library = pathToFileURL(join(settings.modules, 'oidc-provider', 'lib', 'index.js'));
const { Provider, errors } = await import(library);

const trueNow = Date.now;
let aheadMs = 0;
Date.now = () => trueNow() + aheadMs; // what oidc-provider takes the time of a token from

function newKey() {
  const made = settings.algorithm === 'ES256'
    ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
    : generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...made.privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: settings.algorithm };
}

function saved(keys) {
  const half = `${settings.keys}.new`;
  writeFileSync(half, JSON.stringify({ keys }), { mode: 0o600 });
  renameSync(half, settings.keys);
  return keys;
}

function resourceServer(_ctx, resource) {
  if (settings.resources !== null && !settings.resources.includes(resource)) {
    throw new errors.InvalidTarget();
  }
  return {
    scope: settings.scopes.join(' '),
    audience: resource,
    accessTokenTTL: settings.lifetime_s,
    accessTokenFormat: 'jwt',
    jwt: { sign: { alg: settings.algorithm } },
  };
}

function provider(keys) {
  const idTokens = { id_token_signed_response_alg: settings.algorithm };
  const machines = { grant_types: ['client_credentials'], response_types: [], redirect_uris: [], ...idTokens };
  return new Provider(settings.issuer, {
    clients: settings.clients.map((client) => ({ ...machines, ...client })),
    scopes: settings.scopes,
    jwks: { keys },
    ttl: { ClientCredentials: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? settings.lifetime_s },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: { enabled: true, getResourceServerInfo: resourceServer },
    },
  });
}

let keys = existsSync(settings.keys) ? JSON.parse(readFileSync(settings.keys, 'utf8')).keys : saved([newKey()]);
let answer = provider(keys).callback();

const steering = {
  'POST /kit/keys': ({ keep }) => {
    keys = saved([newKey(), ...(keep ? keys : [])]);
    answer = provider(keys).callback();
    return { kid: keys[0].kid };
  },
  'PUT /kit/clock': ({ ahead_s: seconds }) => {
    aheadMs = seconds * 1000;
    return { ahead_s: seconds };
  },
};

async function steer(act, request, response) {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
  }
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify(act(JSON.parse(text))));
}

createServer((request, response) => {
  const act = steering[`${request.method} ${request.url}`];
  if (act === undefined) {
    answer(request, response);
    return;
  }
  steer(act, request, response).catch((error) => {
    response.statusCode = 400;
    response.end(String(error));
  });
}).listen(settings.port, '127.0.0.1');
