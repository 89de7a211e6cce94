// A plain client of NATS in JavaScript: it calls, publishes, commands and serves by docs/reference/bus-wire.md.
//
//   node client.mjs URL NAMESPACE    prints one line of JSON for each thing that it did, serves `prices.get` until its input ends

import { decode, encode } from "@msgpack/msgpack";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const [url, plane] = process.argv.slice(2);
const { host, username, password } = new URL(url); // this client takes no user out of a URL
const login = username ? { user: decodeURIComponent(username), pass: decodeURIComponent(password) } : {};
const connection = await connect({ servers: host, ...login });
const stream = jetstream(connection);

const tell = (what, value) => process.stdout.write(JSON.stringify({ what, value }) + "\n");
const asJSON = (value) => new TextEncoder().encode(JSON.stringify(value));
const fromBytes = (data) => (data[0] < 0x80 ? JSON.parse(new TextDecoder().decode(data)) : decode(data));

// a request in JSON, one in MessagePack, one that fails, one that nobody answers
const request = async (subject, body) => (await connection.request(`${plane}.${subject}`, body, { timeout: 5000 })).data;
const asked = { message_id: "node-1", params: { symbol: "ACME" }, timeout: 5 };
tell("answer", fromBytes(await request("rpc.quotes.get", asJSON(asked))));
const packed = await request("rpc.quotes.get", encode(asked));
tell("packed", { first: packed[0], answer: fromBytes(packed) });
tell("error", fromBytes(await request("rpc.quotes.get", asJSON({ params: { symbol: "none" } }))));
tell("nobody", await request("rpc.nobody.get", asJSON({})).then(() => false, (error) => error.isNoResponders?.() ?? false));

// three events, the second one twice: its id drops the repeat
const publish = (subject, id, body) => stream.publish(`${plane}.${subject}`, asJSON(body), { msgID: id });
for (const n of [1, 2, 2, 3]) {
  const id = `node-event-${n}`;
  await publish("events.orders.created", id, { message_id: id, payload: { n, city: "Zürich" }, version: "2.0" });
}
tell("published", 3);

// a command, followed to its end
const percents = [];
const progress = connection.subscribe(`${plane}.commands.progress.node-command`, {
  callback: (_, message) => percents.push(fromBytes(message.data).percent),
});
const ended = connection.subscribe(`${plane}.commands.callback.node-command`, { max: 1 });
await connection.flush();
const command = { message_id: "node-command", payload: { pages: 5 }, timeout: 30 };
await publish("commands.reports.render", "node-command", command);
for await (const message of ended) tell("command", { end: fromBytes(message.data), percents });
progress.unsubscribe();

// a service: one instance of `prices`, in the queue group of all its instances
connection.subscribe(`${plane}.rpc.prices.get`, {
  queue: "service",
  callback: (_, message) => {
    const { message_id, params } = fromBytes(message.data);
    const error = { code: "not_found", message: "symbol: 'none' is not listed", reason: "unlisted" };
    const found = params.symbol === "none"
      ? { correlation_id: message_id, success: false, error }
      : { correlation_id: message_id, success: true, result: { symbol: params.symbol, price: 12.5, served_by: "node" } };
    message.respond(message.data[0] < 0x80 ? asJSON(found) : encode(found));
  },
});
await connection.flush();
tell("serving", true);
process.stdin.resume().on("end", () => connection.close());
