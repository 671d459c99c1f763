//! The Avro bytes against vectors that fastavro made, and against bytes that nobody made.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;

use super::*;

const VECTORS: &str = include_str!("../../../../../docs/avro/vectors.json");

fn text(value: &serde_json::Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn base64(value: &serde_json::Value) -> Option<Bytes> {
    value.as_str().map(|text| STANDARD.decode(text).unwrap().into())
}

fn message(vector: &serde_json::Value) -> Message {
    let metadata = &vector["metadata"];
    let format = |name: &str| match name {
        "UTF_8" => PayloadFormat::Utf8,
        _ => PayloadFormat::Unspecified,
    };
    let properties = |map: &serde_json::Map<String, serde_json::Value>| {
        map.iter().map(|(key, value)| (key.clone(), text(value).unwrap())).collect()
    };
    Message {
        payload: base64(&vector["payload_base64"]).unwrap(),
        metadata: Metadata {
            client_id: text(&metadata["clientId"]),
            message_id: metadata["messageId"].as_i64().unwrap().try_into().unwrap(),
            dup_flag: metadata["dupFlag"].as_bool().unwrap(),
            user_properties: metadata["userProperties"].as_object().map(properties),
            payload_format: metadata["payloadFormatIndicator"].as_str().map(format),
            content_type: text(&metadata["contentType"]),
            correlation_data: base64(&metadata["correlationData_base64"]),
            response_topic: text(&metadata["responseTopic"]),
            topic: text(&metadata["topic"]),
        },
    }
}

#[test]
fn bytes_are_those_of_another_library() {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert!(vectors.len() >= 4);
    for vector in vectors {
        let message = message(vector);
        for (generation, name) in [(Generation::Newer, "newer_hex"), (Generation::Older, "older_hex")] {
            let hex: String = message.encode(generation).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(Some(hex.as_str()), vector[name].as_str(), "{} {name}", vector["name"]);
        }
    }
}

fn some_text() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(".{0,8}")
}

prop_compose! {
    fn messages()(
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        (client_id, content_type, response_topic, topic) in (some_text(), some_text(), some_text(), some_text()),
        (message_id, dup_flag) in any::<(i32, bool)>(),
        user_properties in proptest::option::of(proptest::collection::hash_map(".{0,4}", ".{0,4}", 0..4)),
        format in proptest::option::of(any::<bool>()),
        correlation in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8)),
    ) -> Message {
        let format_of = |utf8| if utf8 { PayloadFormat::Utf8 } else { PayloadFormat::Unspecified };
        Message {
            payload: payload.into(),
            metadata: Metadata {
                client_id, message_id, dup_flag, content_type, response_topic, topic,
                user_properties: user_properties.map(|map| map.into_iter().collect()),
                payload_format: format.map(format_of),
                correlation_data: correlation.map(Bytes::from),
            },
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in messages(), older in any::<bool>()) {
        let generation = if older { Generation::Older } else { Generation::Newer };
        let mut expected = message.clone();
        if older {
            expected.metadata.topic = None;
        }
        let bytes = Bytes::from(message.encode(generation));
        prop_assert_eq!(Message::decode(&bytes, generation), Ok(expected));
        for end in 0..bytes.len() {
            prop_assert_ne!(Message::decode_as(&bytes.slice(..end), generation), Ok(message.clone()));
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Message::decode(&Bytes::from(bytes), Generation::Newer);
    }
}

#[test]
fn each_schema_is_recognised_whatever_is_tried_first() {
    let message = Message {
        payload: Bytes::from_static(b"21.5"),
        metadata: Metadata { client_id: Some("device-1".into()), ..Metadata::default() },
    };
    for written in [Generation::Newer, Generation::Older] {
        let bytes = Bytes::from(message.encode(written));
        for first in [Generation::Newer, Generation::Older] {
            assert_eq!(Message::decode(&bytes, first), Ok(message.clone()), "{written:?} {first:?}");
        }
    }
    // Nothing at all, as the older schema can say it.
    assert_eq!(Message::decode(&Bytes::from_static(&[0, 0]), Generation::Newer), Ok(Message::default()));
}

#[test]
fn a_map_comes_in_blocks_and_lengths_are_not_believed() {
    let head = b"\x00\x00\x00\x00\x02".to_vec();
    let tail = b"\x00\x00\x00\x00\x00".to_vec();
    // One block of a known size with a, one without with a again and b.
    let blocks = b"\x01\x08\x02a\x021\x04\x02a\x022\x02b\x023\x00".to_vec();
    let read = Message::decode(&[head.clone(), blocks, tail].concat().into(), Generation::Newer).unwrap();
    let properties = [("a", "2"), ("b", "3")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(read.metadata.user_properties, Some(properties.to_vec()));
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for lie in [most.to_vec(), [&head[..], &most[..]].concat(), vec![0xfe; 12], vec![0xfe, 0xff, 0xff, 0x7f]]
    {
        assert_eq!(Message::decode(&lie.into(), Generation::Newer), Err(Malformed));
    }
}
