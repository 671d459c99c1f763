//! TLS, WebSocket and the PROXY protocol as devices of others speak them to a real `penstock`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use penstock_tests::{
    command::{mosquitto, run},
    paho,
    standalone::Penstock,
    wait::{alone, eventually},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Files of a certificate for 127.0.0.1, and of the authority that signed it.
struct Certificate {
    directory: tempfile::TempDir,
}

impl Certificate {
    fn new() -> Self {
        let it = Self { directory: tempfile::tempdir().unwrap() };
        it.renew("authority.pem");
        it
    }

    /// A new authority, and a certificate of it in place of the old one.
    fn renew(&self, authority: &str) {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, authority);
        let key = KeyPair::generate().unwrap();
        fs::write(self.path(authority), parameters.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(parameters, key);
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        fs::write(self.path("certificate.pem"), parameters.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn serve(&self) -> Penstock {
        let (certificate, key) = (self.path("certificate.pem"), self.path("key.pem"));
        let flags = [
            ("tls-cert-file", certificate.to_str().unwrap()),
            ("tls-key-file", key.to_str().unwrap()),
            ("proxy-protocol-from", "127.0.0.0/8"),
            ("proxy-protocol-on", "mqtt"),
        ];
        Penstock::start_with(&["mqtts", "ws", "wss"], &flags).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_speaks_tls_and_web_socket_and_both() {
    let _alone = alone().await;
    let certificate = Certificate::new();
    let penstock = certificate.serve().await;
    let directory = tempfile::tempdir().unwrap();
    let python = paho::python(directory.path()).await;
    let authority = certificate.path("authority.pem");
    for (listener, authority, web_socket) in
        [("mqtts", Some(&*authority), false), ("ws", None, true), ("wss", Some(&*authority), true)]
    {
        let target = penstock.program.address(listener).to_string();
        let paho = paho::device(&python, &target, &penstock.demo(), authority, web_socket);
        assert_eq!(run(listener, paho).await.fine(), ["fine"], "{listener}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_trusts_the_new_certificate_after_a_sighup() {
    let _alone = alone().await;
    let certificate = Certificate::new();
    let mut penstock = certificate.serve().await;
    let (target, demo) = (penstock.program.address("mqtts").to_string(), penstock.demo());
    let publish = |authority: &str| {
        let authority = certificate.path(authority);
        let mut command =
            mosquitto("mosquitto_pub", &target, &demo, "speaker", &["-q", "1", "-t", "a", "-m", "x"]);
        command.arg("--cafile").arg(authority);
        run("mosquitto_pub", command)
    };
    publish("authority.pem").await.fine();
    certificate.renew("other.pem");
    penstock.program.child().hang_up();
    let reloads = "penstock_tls_reloads_total";
    penstock.program.metric_until(reloads, LIMIT, |reloads| reloads >= 1.0).await;
    // Two files are not replaced at once: a look between them fails, the next one does not.
    eventually("the new certificate", LIMIT, || async {
        (publish("other.pem").await.code == Some(0)).then_some(())
    })
    .await;
    assert_ne!(publish("authority.pem").await.code, Some(0), "the old authority is not trusted any more");
    penstock.program.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_finds_both_versions_and_nothing_older() {
    let _alone = alone().await;
    let certificate = Certificate::new();
    let penstock = certificate.serve().await;
    let target = penstock.program.address("mqtts").to_string();
    for (version, served) in [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", "-alpn", "mqtt", version, "-connect", &target, "-CAfile"]);
        openssl.arg(certificate.path("authority.pem")).arg("-verify_return_error");
        openssl.stdin(std::process::Stdio::null());
        let ran = run("openssl", openssl).await;
        assert_eq!(ran.lines.iter().any(|line| line == "Verification: OK"), served, "{version}: {ran:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_for_its_header_and_the_refusal_names_the_client() {
    let _alone = alone().await;
    let certificate = Certificate::new();
    let mut penstock = certificate.serve().await;
    let address: SocketAddr = penstock.program.address("mqtt");
    let connect = |password: &str| {
        let mut connect = mqttbytes::v4::Connect::new("behind-a-proxy");
        connect.login = Some(mqttbytes::v4::Login::new("demo/device", password));
        let mut bytes = bytes::BytesMut::new();
        connect.write(&mut bytes).unwrap();
        bytes
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PROXY TCP6 2001:db8::7 ::1 4711 1883\r\n").await.unwrap();
    stream.write_all(&connect("wrong")).await.unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 5]);
    let named =
        |line: &str| (line.contains("a CONNECT is refused") && line.contains("2001:db8::7")).then_some(());
    penstock.program.child().line("the client's address", LIMIT, named).await;
    let mut direct = TcpStream::connect(address).await.unwrap();
    direct.write_all(&connect(&penstock.demo().password)).await.unwrap();
    assert!(
        matches!(direct.read(&mut connack).await, Ok(0) | Err(_)),
        "without a header nothing is answered"
    );
    let failures = "penstock_transport_failures_total";
    penstock.program.metric_until(failures, LIMIT, |failures| failures == 1.0).await;
}
