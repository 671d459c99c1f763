//! What is asked for, what is said, and what is not believed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use penstock_common::{
    clock::Seams,
    registry::{Limits, Tenant, embedded::EmbeddedRegistry},
};
use serde_json::json;

use super::*;

const NOW: u64 = 1_764_332_263_999;

fn tenant() -> TenantName {
    TenantName::new("demo").unwrap()
}

fn claims(request: serde_json::Value) -> Result<Claims, String> {
    serde_json::from_value::<TokenRequest>(request).unwrap().claims(&tenant(), NOW, [7; 16])
}

fn grant(subscriber: &str, topic: &str, volatile: bool) -> Grant {
    let request = json!({"subscriber": subscriber, "subscription": topic, "nonPersistent": volatile});
    Grant { tenant: tenant(), topic: decoded(topic).unwrap(), claims: claims(request).unwrap() }
}

#[test]
fn claims_are_as_promised_and_defaults_are_sane() {
    let full = json!({"subscriber": "s", "subscription": "a%2Fb", "type": "mqtt", "signed": true,
        "expiresInMinutes": 5, "shared": true, "nonPersistent": true, "self": null});
    let shown = serde_json::to_value(claims(full).unwrap()).unwrap();
    let expected = json!({"sub": "s", "topic": "demo/mqtt/a%2Fb", "jti": "BwcHBwcHBwcHBwcHBwcHBw", "iat": 1_764_332_263,
        "exp": 1_764_332_563, "shared": true, "volatile": true});
    assert_eq!(shown, expected);
    for least in [json!({}), json!({"expiresInMinutes": 0, "type": null, "shared": null})] {
        let mut request = json!({"subscriber": "s", "subscription": "a/b"});
        request.as_object_mut().unwrap().extend(least.as_object().unwrap().clone());
        let shown = serde_json::to_value(claims(request).unwrap()).unwrap();
        assert_eq!(shown["exp"].as_u64().unwrap() - shown["iat"].as_u64().unwrap(), 24 * 3_600);
        assert_eq!((shown["shared"].as_bool(), shown.get("volatile")), (Some(false), None));
    }
}

#[test]
fn a_wrong_field_is_named() {
    for (wrong, field) in [
        (json!({"subscriber": ""}), "subscriber"),
        (json!({"subscriber": null}), "subscriber"),
        (json!({"subscriber": "a\n"}), "subscriber"),
        (json!({"subscription": "a/#/b"}), "subscription"),
        (json!({"subscription": "%FF"}), "subscription"),
        (json!({"type": "relnotif"}), "type"),
        (json!({"signed": false}), "signed"),
        (json!({"expiresInMinutes": -1}), "expiresInMinutes"),
        (json!({"expiresInMinutes": 527_041}), "expiresInMinutes"),
    ] {
        let mut request = json!({"subscriber": "s", "subscription": "a"});
        request.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let error = claims(request).err().unwrap();
        assert!(error.starts_with(&format!("{field}: ")), "{error}");
    }
}

#[test]
fn a_group_is_one_subscriber_and_one_topic() {
    assert_eq!(grant("app", "a/#", false).group(), "notification2/app/a/#");
    assert_eq!(grant("app", "a%2F%23", false).group(), "notification2/app/a/#", "encoded or not");
    assert_eq!(grant("app", "a/#", true).group(), "notification2-volatile/app/a/#");
    assert_ne!(grant("a/b", "c", false).group(), grant("a", "b/c", false).group());
    assert_ne!(grant("a%2Fb", "c", false).group(), grant("a/b", "c", false).group());
    let long = "\u{e9}".repeat(128);
    let names = [("a", "1"), ("a", "2"), ("b", "1")].map(|(s, t)| {
        grant(&format!("{long}{s}").replacen('\u{e9}', "", 1), &long.repeat(3), false).group() + t
    });
    assert!(names.iter().all(|name| (100..=NAME_MAX + 1).contains(&name.len())), "{names:?}");
    let topic = |end: &str| grant("app", &format!("{}{end}", "t".repeat(200)), false).group();
    assert_ne!(topic("1"), topic("2"));
    assert!(topic("1").starts_with("notification2/app/#"), "{}", topic("1"));
    assert!(is_volatile(&grant("app", &"t".repeat(200), true).group()) && !is_volatile(&topic("1")));
}

#[tokio::test]
async fn only_our_own_living_tokens_open_anything() {
    let seams = Seams::seeded(|| NOW, 1);
    let registry: Arc<dyn Registry> = EmbeddedRegistry::open(None, seams.clone()).unwrap();
    let keys = KeyRing::new(Arc::clone(&registry), seams.clone());
    let settings = |created_at| Tenant {
        partitions: 1,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 0,
        created_at,
    };
    registry.create_tenant(&tenant(), &settings(NOW)).await.unwrap();
    let claims = claims(json!({"subscriber": "s", "subscription": "a%2Fb"})).unwrap();
    let token = sign(&keys, &claims).await.unwrap();
    let verify = async |token: &str, now: u64| verify(&keys, &*registry, now, token).await;
    let grant = verify(&token, NOW).await.unwrap();
    assert_eq!((grant.tenant, grant.topic.as_str()), (tenant(), "a/b"));
    assert!(grant.claims == claims);
    assert!(verify(&token, claims.exp * 1_000 - 1).await.is_some());
    assert!(verify(&token, claims.exp * 1_000).await.is_none(), "expired");
    let (head, signature) = token.rsplit_once('.').unwrap();
    let (header, body) = head.split_once('.').unwrap();
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let kid = keys.signer().await.unwrap().id;
    let unsigned = encode(json!({"alg": "none", "kid": kid}));
    let other_tenant = encode(
        json!({"sub": "s", "topic": "other/mqtt/a", "jti": "", "iat": 0, "exp": u64::MAX, "shared": true}),
    );
    for forged in [
        String::new(),
        "a.b.c".to_owned(),
        head.to_owned(),
        format!("{head}."),
        format!("{unsigned}.{body}."),
        format!("{unsigned}.{body}.{signature}"),
        format!("{header}.{other_tenant}.{signature}"),
        format!("{}.{body}.{signature}", encode(json!({"alg": "HS256", "kid": "k"}))),
        format!("{}.{body}.{signature}", encode(json!({"alg": "HS256"}))),
        "x".repeat(TOKEN_MAX + 1),
    ] {
        assert!(verify(&forged, NOW).await.is_none(), "{forged}");
    }
    registry.delete_tenant(&tenant()).await.unwrap();
    assert!(verify(&token, NOW).await.is_none(), "of no tenant");
    registry.create_tenant(&tenant(), &settings(NOW + 1_000)).await.unwrap();
    assert!(verify(&token, NOW).await.is_none(), "of an earlier tenant of this name");
}
