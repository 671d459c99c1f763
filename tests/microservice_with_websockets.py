"""A microservice as many write it: websocket-client and fastavro, which know nothing of Penstock, and devices with paho-mqtt.

Arguments: WebSocket doors and MQTT listeners (host:port, several with commas), user of the microservice, user of the devices,
their password, the Avro schema that the doors write (newer or older), the directory of the schemas, and the file of signing
keys where there is one.
"""

import base64
import hashlib
import hmac
import io
import json
import queue
import sys
import time
import urllib.error
import urllib.request

import fastavro
import paho.mqtt.client as mqtt
import websocket

doors, targets = sys.argv[1].split(","), sys.argv[2].split(",")
app, device, password, generation, avro = sys.argv[3:8]
keys = sys.argv[8] if len(sys.argv) > 8 else None
tenant = app.split("/")[0]
WAIT = 30


def schema(name):
    with open(f"{avro}/message-{name}.avsc", encoding="utf-8") as file:
        return fastavro.parse_schema(json.load(file))


SCHEMAS = {name: schema(name) for name in ("newer", "older")}
EMPTY = dict.fromkeys(
    ["clientId", "userProperties", "payloadFormatIndicator", "contentType", "correlationData", "responseTopic", "topic"]
) | {"messageId": 0, "dupFlag": False}


def encode(name, payload, **metadata):
    out = io.BytesIO()
    known = EMPTY | metadata
    if name == "older":
        del known["topic"]
    fastavro.schemaless_writer(out, SCHEMAS[name], {"payload": payload, "metadata": known})
    return out.getvalue()


def decode(name, data):
    source = io.BytesIO(data)
    message = fastavro.schemaless_reader(source, SCHEMAS[name])
    assert not source.read(), "nothing follows the record"
    return message


def vectors_are_true():
    with open(f"{avro}/vectors.json", encoding="utf-8") as file:
        vectors = json.load(file)["vectors"]
    for vector in vectors:
        metadata = dict(vector["metadata"])
        correlation = metadata.pop("correlationData_base64")
        metadata["correlationData"] = correlation and base64.b64decode(correlation)
        for name in SCHEMAS:
            data = encode(name, base64.b64decode(vector["payload_base64"]), **metadata)
            assert data.hex() == vector[f"{name}_hex"], vector["name"]
            assert f"17\n{base64.b64encode(data).decode()}" == vector[f"{name}_frame"], vector["name"]


def http(door, method, path, user=None, body=None):
    request = urllib.request.Request(f"http://{door}{path}", method=method, data=body and json.dumps(body).encode())
    if user:
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def asked(subscriber, subscription, **more):
    return {
        "subscriber": subscriber, "subscription": subscription, "type": "mqtt", "signed": True,
        "expiresInMinutes": 1440, "shared": False, "nonPersistent": False,
    } | more


def token(*arguments, **more):
    status, answer = http(doors[0], "POST", "/notification2/token", app, asked(*arguments, **more))
    assert status == 200, answer
    return answer["token"]


def connect(door, what, held):
    return websocket.create_connection(f"ws://{door}/notification2/{what}/?token={held}", timeout=WAIT)


def refused(door, what, held):
    try:
        connect(door, what, held).close()
    except websocket.WebSocketBadStatusException as error:
        return error.status_code
    return None


def connected_in_the_end(door, held):
    """The door notices a moment later that the one before has gone."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return connect(door, "consumer", held)
        except websocket.WebSocketBadStatusException as error:
            assert error.status_code == 409 and time.monotonic() < end, error


def received(socket):
    ack, data = socket.recv().split("\n")
    message = decode(generation, base64.b64decode(data))
    return ack, message["payload"].decode(), message["metadata"]


def expect(socket, payload, known=()):
    """Acknowledges the record with this payload; those that are known may come once more before it."""
    while True:
        ack, seen, metadata = received(socket)
        socket.send(ack)
        if seen == payload:
            return metadata
        assert seen in known and metadata["dupFlag"], (seen, payload)


class Device:
    def __init__(self, identifier, target):
        host, port = target.split(":")
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=identifier, protocol=mqtt.MQTTv311)
        self.client.username_pw_set(device, password)
        self.granted, self.messages = queue.Queue(), queue.Queue()
        self.client.on_subscribe = lambda *arguments: self.granted.put(arguments)
        self.client.on_message = lambda client, user, message: self.messages.put(message)
        self.client.connect(host, int(port), keepalive=20)
        self.client.loop_start()

    def publish(self, topic, payload):
        self.client.publish(topic, payload, qos=1).wait_for_publish(WAIT)

    def subscribe(self, topic):
        self.client.subscribe(topic, 1)
        self.granted.get(timeout=WAIT)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def tokens():
    for door in doors:
        status, answer = http(door, "POST", "/notification2/token", device, asked("s", "t"))
        assert status == 403, (status, answer)
        assert http(door, "POST", "/notification2/token", None, asked("s", "t"))[0] == 401
    held = token("verified", "a%2Fb", expiresInMinutes=60)
    for door in doors:
        status, claims = http(door, "GET", f"/notification2/token?token={held}")
        assert status == 200 and claims["sub"] == "verified" and claims["topic"] == f"{tenant}/mqtt/a%2Fb", claims
        assert claims["exp"] - claims["iat"] == 3600 and claims["shared"] is False and "volatile" not in claims, claims
        header, body, signature = held.split(".")
        for bad in ["", "x", held + "x", f"{header}.{body}.", f"{body}.{header}.{signature}"]:
            assert http(door, "GET", f"/notification2/token?token={bad}")[0] == 401, bad
            assert http(door, "POST", f"/notification2/unsubscribe?token={bad}")[0] == 401, bad
            assert refused(door, "consumer", bad) == 401 and refused(door, "producer", bad) == 401, bad
    if keys:
        with open(keys, encoding="utf-8") as file:
            key = json.load(file)[-1]
        plain = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        secret = base64.urlsafe_b64decode(key["secret"] + "=" * (-len(key["secret"]) % 4))

        def signed(**changes):
            header = plain(json.dumps({"typ": "JWT", "alg": "HS256", "kid": key["id"]}).encode())
            head = f"{header}.{plain(json.dumps(claims | changes).encode())}"
            return f"{head}.{plain(hmac.new(secret, head.encode(), hashlib.sha256).digest())}"

        assert http(doors[0], "GET", f"/notification2/token?token={signed()}")[0] == 200, "another library's signature"
        expired = signed(iat=claims["iat"] - 60, exp=claims["iat"] - 1)
        for what in ["consumer", "producer"]:
            assert refused(doors[0], what, expired) == 401, "expired"
        assert http(doors[0], "GET", f"/notification2/token?token={expired}")[0] == 401, "expired"


def consume():
    speaker = Device("speaker-1", targets[0])
    speaker.publish("sensors/1", "before the subscription")
    held = token("reader", "sensors%2F%23")
    socket = connect(doors[0], "consumer", held)
    for door in doors:
        assert refused(door, "consumer", held) == 409, "one consumer at a time"
    for number in range(20):
        speaker.publish(f"sensors/{number % 2}", str(number))
        speaker.publish("elsewhere", "not for the subscription")
    records = [received(socket) for _ in range(20)]
    assert [payload for _, payload, _ in records] == [str(number) for number in range(20)], records
    for number, (_, _, metadata) in enumerate(records):
        assert metadata["clientId"] == "speaker-1" and metadata["dupFlag"] is False, metadata
        assert generation == "older" or metadata["topic"] == f"sensors/{number % 2}", metadata
        assert metadata["userProperties"] is None and metadata["responseTopic"] is None, metadata
    # In another order, and all but two.
    for ack, payload, _ in reversed(records):
        if payload not in ("7", "13"):
            socket.send(ack)
    socket.ping("there?")
    again = [received(socket) for _ in range(2)]
    assert sorted(payload for _, payload, _ in again) == ["13", "7"], again
    assert all(metadata["dupFlag"] for _, _, metadata in again), "sent before"
    socket.send(again[0][0])
    socket.close()
    socket = connected_in_the_end(doors[-1], held)
    known = [payload for _, payload, _ in again]
    assert expect(socket, known[1], known)["dupFlag"], "what was not acknowledged comes to the next one"
    speaker.publish("sensors/1", "last")
    expect(socket, "last", known)
    socket.send("unsubscribe_subscriber")
    opcode, data = socket.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(data[:2], "big") == 1000, (opcode, data)
    # The token is still good, the subscription is a new one.
    socket = connected_in_the_end(doors[0], held)
    speaker.publish("sensors/1", "anew")
    assert received(socket)[1] == "anew"
    assert http(doors[-1], "POST", f"/notification2/unsubscribe?token={held}")[0] == 200
    opcode, data = socket.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(data[:2], "big") == 1008, (opcode, data)
    speaker.close()


def produce():
    devices = [Device(f"listener-{number}", targets[number % len(targets)]) for number in range(3)]
    for listener in devices:
        listener.subscribe("commands/#")
    held = token("writer", "commands%2Fall")
    assert refused(doors[0], "producer", token("writer", "commands%2F%23")) == 400, "a filter is no topic"
    for name, door in zip(SCHEMAS, doors * 2):
        socket = connect(door, "producer", held)
        frame = lambda *arguments, **metadata: base64.b64encode(encode(name, *arguments, **metadata)).decode()
        socket.send("1\n" + frame(b"to all", topic="ignored"))
        assert socket.recv() == "1"
        for sequence in range(2, 12):
            socket.send(f"{sequence}\n" + frame(str(sequence).encode(), clientId="listener-1"))
        assert sorted(int(socket.recv()) for _ in range(10)) == list(range(2, 12))
        socket.send("12\n" + frame(b"nobody", clientId="nobody-1"))
        assert socket.recv() == "12", "nobody there is no error"
        socket.send("13\n" + base64.b64encode(b"no Avro").decode())
        answer = socket.recv()
        assert answer.startswith("13\n") and "Avro" in answer, answer
        socket.close()
        for number, listener in enumerate(devices):
            expected = [b"to all"] + ([str(sequence).encode() for sequence in range(2, 12)] if number == 1 else [])
            seen = [listener.messages.get(timeout=WAIT) for _ in expected]
            assert [message.payload for message in seen] == expected, (number, seen)
            assert {message.topic for message in seen} == {"commands/all"}
            assert listener.messages.empty()
    for listener in devices:
        listener.close()


vectors_are_true()
tokens()
consume()
produce()
print("fine")
