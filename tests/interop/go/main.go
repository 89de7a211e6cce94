// A plain client of NATS in Go: it calls, publishes, commands and serves by docs/reference/bus-wire.md, and nothing else.
//
//	client URL NAMESPACE    prints one line of JSON for each thing that it did, serves `prices.get` until its input ends
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/vmihailenco/msgpack/v5"
)

type message = map[string]any

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func tell(what string, value any) {
	fmt.Println(string(must(json.Marshal(message{"what": what, "value": value}))))
}

func asJSON(value any) []byte { return must(json.Marshal(value)) }

func fromJSON(data []byte) (found message) {
	if err := json.Unmarshal(data, &found); err != nil {
		log.Fatal(err)
	}
	return found
}

func main() {
	url, plane := os.Args[1], os.Args[2]
	connection := must(nats.Connect(url))
	defer connection.Close()
	stream := must(connection.JetStream())

	// a request in JSON, one in MessagePack, one that fails, one that nobody answers
	request := func(subject string, body []byte) []byte {
		return must(connection.Request(plane+"."+subject, body, 5*time.Second)).Data
	}
	asked := message{"message_id": "go-1", "params": message{"symbol": "ACME"}, "timeout": 5}
	tell("answer", fromJSON(request("rpc.quotes.get", asJSON(asked))))
	packed := request("rpc.quotes.get", must(msgpack.Marshal(asked)))
	var unpacked message
	if err := msgpack.Unmarshal(packed, &unpacked); err != nil {
		log.Fatal(err)
	}
	tell("packed", message{"first": packed[0], "answer": unpacked})
	tell("error", fromJSON(request("rpc.quotes.get", asJSON(message{"params": message{"symbol": "none"}}))))
	_, err := connection.Request(plane+".rpc.nobody.get", []byte("{}"), time.Second)
	tell("nobody", err == nats.ErrNoResponders)

	// three events, the second one twice: its id drops the repeat
	publish := func(subject, id string, body message) {
		must(stream.Publish(plane+"."+subject, asJSON(body), nats.MsgId(id)))
	}
	for _, n := range []int{1, 2, 2, 3} {
		id := fmt.Sprintf("go-event-%d", n)
		publish("events.orders.created", id, message{"message_id": id, "payload": message{"n": n, "city": "Zürich"}, "version": "2.0"})
	}
	tell("published", 3)

	// a command, followed to its end
	progress := must(connection.SubscribeSync(plane + ".commands.progress.go-command"))
	ended := must(connection.SubscribeSync(plane + ".commands.callback.go-command"))
	publish("commands.reports.render", "go-command", message{"message_id": "go-command", "payload": message{"pages": 5}, "timeout": 30})
	end := fromJSON(must(ended.NextMsg(30 * time.Second)).Data)
	percents := []any{}
	for left, _, _ := progress.Pending(); left > 0; left, _, _ = progress.Pending() {
		percents = append(percents, decoded(must(progress.NextMsg(time.Second)).Data)["percent"])
	}
	tell("command", message{"end": end, "percents": percents})

	// a service: one instance of `prices`, in the queue group of all its instances
	must(connection.QueueSubscribe(plane+".rpc.prices.get", "service", func(in *nats.Msg) {
		asked := decoded(in.Data)
		answer := message{"correlation_id": asked["message_id"], "success": true}
		params, _ := asked["params"].(message)
		if params["symbol"] == "none" {
			answer["success"] = false
			answer["error"] = message{"code": "not_found", "message": "symbol: 'none' is not listed", "reason": "unlisted"}
		} else {
			answer["result"] = message{"symbol": params["symbol"], "price": 12.5, "served_by": "go"}
		}
		if in.Data[0] >= 0x80 {
			in.Respond(must(msgpack.Marshal(answer)))
		} else {
			in.Respond(asJSON(answer))
		}
	}))
	connection.Flush()
	tell("serving", true)
	io.Copy(io.Discard, os.Stdin)
}

func decoded(data []byte) (found message) {
	if data[0] < 0x80 {
		return fromJSON(data)
	}
	if err := msgpack.Unmarshal(data, &found); err != nil {
		log.Fatal(err)
	}
	return found
}
