"""The driver for NATS with JetStream: messages among all processes of a plane, on any machines.

Address: `nats://user:password@host1:4222,host2:4222`, `tls://…`; parameters: those of `backends.nats.Address`,
`connections` (1 to 16, default 1) and `replicas` of streams and their consumers (1, 3 or 5; by default as they are).

Subjects: those of the bus behind the plane's name (`acme.events.orders.created`). Commands that are not of normal
priority lie beside it (`acme.commands~high.…`); a foreign client's commands are normal. Streams: `bus+acme+events` (7
days), `bus+acme+results` (the last of each subject, a day), `bus+acme+dead`, and `bus+acme+commands+<service>`, which
is made when our side first sends a command to the service or handles its commands.

Delivery: transient messages at most once. What is appended is stored by JetStream (on a cluster by a quorum of
`replicas`) when `append` returns, once per id within two minutes, and handed out at least once. What a dead process
held is handed out again when its lease ends.

Limits: the server's `max_payload`, of which headers and up to 1 KiB of ours take a part; at most 1 MiB.

What is handed back costs no attempt: JetStream counts it, a record of ours takes that off again (`sparing`). Only what
was on its way to a consumer that closed in that moment, and reached nobody, is counted by the server all the same.

Cannot: consume commands of several services under one name (`unsupported`). Priorities are exact but for one message
per receiver under way.

Escape hatch: `driver.native` is the `groundplane.backends.nats.JetStream`.
"""

from groundplane.bus.drivers.nats.driver import NatsBus

__all__ = ["NatsBus"]
