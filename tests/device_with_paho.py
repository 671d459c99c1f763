"""A device as many write it: paho-mqtt, MQTT 3.1.1. Publishes, subscribes, and leaves a last will.

Arguments: host, port, user, password, transport (tcp or websockets), and a file of authorities when TLS is to be spoken.
"""

import queue
import sys

import paho.mqtt.client as mqtt

host, port, user, password = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
transport = sys.argv[5]
authorities = sys.argv[6] if len(sys.argv) > 6 else None
WAIT = 30


def connect(identifier, will=None):
    version = mqtt.CallbackAPIVersion.VERSION2
    client = mqtt.Client(version, client_id=identifier, protocol=mqtt.MQTTv311, transport=transport)
    if authorities:
        client.tls_set(ca_certs=authorities)
    client.username_pw_set(user, password)
    if will:
        client.will_set(*will)
    client.connected, client.subscribed, client.messages = queue.Queue(), queue.Queue(), queue.Queue()
    client.on_connect = lambda c, u, flags, reason, properties: client.connected.put(reason)
    client.on_subscribe = lambda c, u, mid, reasons, properties: client.subscribed.put(reasons)
    client.on_message = lambda c, u, message: client.messages.put(message)
    client.connect(host, port, keepalive=10)
    client.loop_start()
    reason = client.connected.get(timeout=WAIT)
    assert not reason.is_failure, reason
    return client


def main():
    listener = connect("paho-listener")
    listener.subscribe([("paho/#", 1), ("paho/+", 0)])
    granted = [reason.value for reason in listener.subscribed.get(timeout=WAIT)]
    assert granted == [1, 0], granted
    speaker = connect("paho-speaker", will=("paho/will", "gone", 1, False))
    for number in range(200):
        speaker.publish("paho/data", str(number), qos=number % 2).wait_for_publish(WAIT)
    seen = [listener.messages.get(timeout=WAIT) for _ in range(200)]
    assert [int(message.payload) for message in seen] == list(range(200)), "order"
    assert [message.qos for message in seen] == [number % 2 for number in range(200)], "QoS"
    assert not any(message.retain for message in seen), "the retain flag is never set on delivery"
    speaker.loop_stop()
    speaker.socket().close()
    will = listener.messages.get(timeout=WAIT)
    assert (will.topic, will.payload) == ("paho/will", b"gone"), (will.topic, will.payload)
    speaker = connect("paho-speaker")
    big = bytes(range(256)) * 2_000
    speaker.publish("paho/big", big, qos=1).wait_for_publish(WAIT)
    assert listener.messages.get(timeout=WAIT).payload == big, "a big payload"
    speaker.disconnect()
    listener.disconnect()
    listener.loop_stop()
    print("fine")


main()
