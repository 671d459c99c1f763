//! Every way in which a program can't start is one clear line that says what to do, and an exit code: 1 failed, 2 wrong
//! usage or settings.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::TcpListener, time::Duration};

use penstock_tests::{
    cluster::Cluster,
    command::{ctl, run},
    etcd::Etcd,
    ports,
    program::Program,
    redis::Redis,
    standalone::Penstock,
    wait::alone,
};

/// For a program that can't reach what it needs: longer than its own patience.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program that must not start, and checks what it says.
async fn fails(mut program: Program, code: i32, says: &[&str]) {
    program.spawn();
    let child = program.child();
    let ended = child.exit(LIMIT).await;
    let lines = child.lines();
    assert_eq!(ended, Some(code), "{says:?}: {lines:#?}");
    // Logs are JSON; what is for people is not.
    let said: Vec<&String> = lines.iter().filter(|line| line.starts_with("penstock")).collect();
    assert!(code == 2 || said.len() == 1, "one line, not {lines:#?}");
    let text = lines.join("\n");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn gateway() -> Program {
    Program::new("gateway", "penstock-gateway", &["admin", "mqtt"])
}

fn router() -> Program {
    Program::new("router", "penstock-router", &["admin", "grpc", "link"])
}

fn nobody() -> String {
    format!("http://127.0.0.1:{}", ports::free())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_told_all_at_once() {
    fails(gateway().flag("no-such-flag", "1"), 2, &["no-such-flag"]).await;
    fails(gateway().flag("shards", "many"), 2, &["shards"]).await;
    fails(gateway(), 2, &["etcd"]).await;
    fails(router().flag("durability", "maybe"), 2, &["durability", "etcd", "redis"]).await;
    let alone = Program::new("penstock", "penstock", &["admin", "mqtt", "grpc"]);
    fails(alone.flag("durability", "replicated:1"), 2, &["replicated:1", "needs replicas"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, "no_such_key = 1\n").unwrap();
    fails(gateway().flag("config", file.to_str().unwrap()), 2, &["no_such_key"]).await;
    fails(gateway().flag("config", "/no/such/file.toml"), 2, &["/no/such/file.toml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_listener_for_all_the_world_needs_a_secret() {
    let open = Program::new("router", "penstock-router", &["admin", "grpc"])
        .flag("link-listen", "0.0.0.0:0")
        .flag("etcd", nobody())
        .flag("redis", "redis://127.0.0.1:1");
    fails(open, 2, &["cluster-secret-file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_named() {
    let _alone = alone().await;
    let missing = nobody();
    fails(gateway().flag("etcd", &missing), 1, &[missing.trim_start_matches("http://")]).await;
    let etcd = Etcd::start().await;
    let redis = format!("redis://127.0.0.1:{}", ports::free());
    let address = redis.trim_start_matches("redis://").to_owned();
    fails(router().flag("etcd", etcd.url()).flag("redis", redis), 1, &[&address]).await;
    let redis = Redis::start().await;
    fails(router().flag("etcd", nobody()).flag("redis", redis.url()), 1, &["etcd"]).await;
    let ran = run("penstockctl", ctl(&missing, "demo/app", "x", &["group", "list"])).await;
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.lines.len(), 1, "{ran:?}");
    assert!(ran.lines[0].contains(&missing) && ran.lines[0].contains("is a router running there"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_keep_the_promise_is_refused() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let router = |redis: &Redis| router().flag("etcd", etcd.url()).flag("redis", redis.url());
    let evicting = Redis::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    fails(router(&evicting), 1, &["noeviction"]).await;
    let unsynced = Redis::start().await;
    fails(router(&unsynced).flag("durability", "fsynced"), 1, &["appendfsync"]).await;
    fails(router(&unsynced), 1, &["PENSTOCK_ADMIN_PASSWORD"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let _alone = alone().await;
    let cluster = Cluster::start(0, 0).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let gateway = Program::new("gateway", "penstock-gateway", &["admin"]).flag("etcd", cluster.etcd.url());
    fails(gateway.flag("mqtt-listen", &address), 1, &[&address, "mqtt-listen"]).await;
    let router = Program::new("router", "penstock-router", &["admin", "link"])
        .flag("etcd", cluster.etcd.url())
        .flag("redis", cluster.redis.url())
        .variable("PENSTOCK_ADMIN_PASSWORD", "admin-password-0123456789");
    fails(router.flag("grpc-listen", &address), 1, &[&address, "grpc-listen"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_belongs_to_one_process() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let directory = penstock.directory.path().join("data");
    let second = Program::new("penstock", "penstock", &["admin", "grpc", "mqtt"]);
    fails(second.flag("data-dir", directory.to_str().unwrap()), 1, &[directory.to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn penstockctl_says_what_is_missing() {
    let server = nobody();
    let code = |arguments: &'static [&'static str]| {
        let command = ctl(&server, "demo/app", "x", arguments);
        async move { run("penstockctl", command).await }
    };
    for wrong in [
        &["no-such-command"] as &'static [&'static str],
        &["push", "--topic", "t"],
        &["push", "--topic", "t", "--payload", "x", "--wait"],
        &["consume"],
        &["consume", "--group", "g", "--start", "yesterday"],
        &["tenant", "set", "acme"],
        &["user", "add", "no-slash", "--role", "device", "--new-password-file", "/dev/null"],
    ] {
        let ran = code(wrong).await;
        assert_eq!(ran.code, Some(2), "{wrong:?}: {ran:?}");
    }
    let help = code(&["consume", "--help"]).await.fine().join("\n");
    assert!(help.contains("Examples:") && help.contains("--start"), "{help}");
}
