//! Wrong usage: exit code 2, and every fault at once.

use crate::process::{run, run_with};

#[tokio::test]
async fn all_faults_are_told_at_once() {
    let ran = run_with(&[
        "ingest",
        "--target",
        "mqtts://host",
        "--rate",
        "fast",
        "--qos",
        "2",
        "--payload",
        "1 parsec",
        "--duration",
        "10",
        "--slo",
        "puback_p98<10ms,lost<many",
        "--verify",
        "me",
        "--tolerate",
        "everything",
        "--source-ips",
        "here",
    ])
    .await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    for fault in [
        "--target",
        "--rate",
        "--qos",
        "--payload",
        "--duration",
        "puback_p98",
        "lost<many",
        "--verify",
        "--tolerate",
        "--source-ips",
    ] {
        assert!(ran.err.contains(fault), "{fault} is not told: {}", ran.err);
    }
    assert!(ran.out.is_empty());
}

#[tokio::test]
async fn what_does_not_fit_together_is_told() {
    for (arguments, fault) in [
        ("push", "--messaging"),
        ("ingest --payload 10B", "--verify none"),
        ("ingest --topic a/#", "--topic"),
        ("ingest --client-id same", "--client-id"),
        ("ingest --messaging http://127.0.0.1:1", "--user-template"),
        ("ingest --verify group", "--messaging"),
        ("ingest --consumers 8", "--consumers"),
        ("ingest --backlog", "--backlog"),
        ("ingest --pushers 2", "--pushers"),
        ("push --consumers 2", "--consumers"),
        ("push --pushers 0", "1 to 1024"),
        ("push --pushers 1025", "1 to 1024"),
        ("push --clients 3 --pushers 4", "4 can't share 3 devices"),
        ("ingest --consumers 0", "1 to 256"),
        ("ingest --consumers 257", "1 to 256"),
        ("run no-such-file.toml", "no-such-file.toml"),
        ("connect --keep-alive 0s", "--keep-alive"),
        ("ingest --user-template Upper/device", "--user-template"),
        ("ingest --user-template acme/device --password-file no-such-file", "--password-file"),
    ] {
        let ran = run(arguments).await;
        assert_eq!(ran.code, Some(2), "{arguments}: {ran:?}");
        assert!(ran.err.contains(fault), "{arguments}: {}", ran.err);
    }
}

#[tokio::test]
async fn more_clients_than_descriptors_are_told() {
    let ran = run("connect --clients 9000000 --connect-timeout 1s").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("file descriptors"), "{ran:?}");
}

#[tokio::test]
async fn help_has_examples() {
    for arguments in ["--help", "ingest --help", "run --help", "takeover --help"] {
        let ran = run(arguments).await;
        assert_eq!(ran.code, Some(0));
        assert!(ran.out.contains("Example"), "{arguments}: {}", ran.out);
    }
}
