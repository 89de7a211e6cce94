"""The RabbitMQ driver: durable queues on a broker, shared by any number of machines.

Address: `amqp://user:password@host1:5672,host2:5672/vhost` (`amqps://` with TLS), with the parameters of
`groundplane.backends.amqp` and `exchange=groundplane` (the durable direct exchange that everything is published to) and
`guard=1.0` (seconds that `declare` waits after it created queues: a broker that is killed sooner forgets them).
RabbitMQ 3.10 or newer; nothing that 4.x removed is used.

Delivery: at least once. `send` returns with the broker's confirmation (quorum queues: on disk, on a majority). `settle`
first sends, confirmed, then acknowledges: a crash between the two repeats the delivery, never loses it. An
acknowledgement itself is not confirmed by AMQP 0-9-1: where the broker dies in that moment the message comes again,
with `redelivered` set. The attempt is carried in the message, and the broker's delivery count tells of crashes; what is
handed back is recorded, so that it costs none.

Limits: messages up to 1 MiB, of which 100,000 bytes may be headers (the error of a retry or a death is shortened where
it does not fit beside them); the names of plane and queue have at most 244 characters together; delays are kept by the
clocks of the machines, which must agree; what is worked on for longer than the broker's `consumer_timeout` (30 minutes)
goes back to its queue.

Cannot: settle and send in one transaction, drop repeats (the consumers do), lease, carry changes of other stores.

Escape hatch: `driver.native` is the `Link`, which has both `groundplane.backends.amqp.Connection`s.
"""

from groundplane.queues.drivers.rabbitmq.driver import RabbitQueues

__all__ = ["RabbitQueues"]
