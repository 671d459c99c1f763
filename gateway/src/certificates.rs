//! The certificate of the listeners with TLS: read from files, checked, and read again when they change or someone asks.
//! Connections that exist keep theirs. A file that can't be used changes nothing but a counter and the log.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use penstock_common::clock::Seams;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::config::transports::{TlsFiles, TransportKind};

/// Largest file of certificates or keys that is read.
const FILE_BYTES: u64 = 1 << 20;

/// Certificate and key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM")]
    Pem {
        /// As configured.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate is not X.509.
    #[error("{path}: a certificate is malformed")]
    Malformed {
        /// As configured.
        path: PathBuf,
    },
    /// The key is of a kind that TLS does not know, or belongs to another certificate.
    #[error("{certificate} and {key} don't fit: {source}")]
    Unfit {
        /// As configured.
        certificate: PathBuf,
        /// As configured.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The new certificate is over.
    #[error("{path}: the certificate has expired")]
    Expired {
        /// As configured.
        path: PathBuf,
    },
}

/// What the files hold.
struct Loaded {
    mqtt: Arc<ServerConfig>,
    web: Arc<ServerConfig>,
    /// When the first certificate of the chain ends, Unix seconds.
    expires: i64,
}

/// What tells that a file is another one.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The certificate in use. One for all shards.
pub(crate) struct Certificates {
    files: TlsFiles,
    loaded: ArcSwap<Loaded>,
    /// Read the files now.
    pub(crate) wanted: Notify,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
    expires: Gauge,
}

/// Whether the files can be used, for a program that checks its settings.
pub fn check(files: &TlsFiles) -> Result<(), CertificateError> {
    load(files).map(drop)
}

impl Certificates {
    /// Reads the files and shows their metrics. One that has expired is used, with a warning: some devices look at no clock.
    pub(crate) fn open(
        files: TlsFiles,
        seams: &Seams,
        metrics: &mut Registry,
    ) -> Result<Self, CertificateError> {
        let loaded = load(&files)?;
        if loaded.has_expired(seams) {
            tracing::warn!(file = %files.certificate.display(), "the certificate has expired");
        }
        let reloads = Family::<[(&'static str, &'static str); 1], Counter>::default();
        // Both are shown from the start, so that a first failure is a rise.
        drop((
            reloads.get_or_create_owned(&[("result", "loaded")]),
            reloads.get_or_create_owned(&[("result", "failed")]),
        ));
        let expires = Gauge::default();
        expires.set(loaded.expires);
        metrics.register("penstock_tls_reloads", "Readings of changed certificates", reloads.clone());
        let help = "When the certificate in use ends, Unix time";
        metrics.register("penstock_tls_certificate_expires_seconds", help, expires.clone());
        Ok(Self { files, loaded: ArcSwap::from_pointee(loaded), wanted: Notify::new(), reloads, expires })
    }

    /// What a new connection on a listener of this kind begins with.
    pub(crate) fn config(&self, kind: TransportKind) -> Arc<ServerConfig> {
        let loaded = self.loaded.load();
        Arc::clone(if kind == TransportKind::Wss { &loaded.web } else { &loaded.mqtt })
    }

    /// Reads the files whenever they have changed, or are wanted. Runs until aborted.
    pub(crate) async fn follow(self: Arc<Self>, poll: Duration, seams: Seams) {
        let mut interval = tokio::time::interval(poll);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = self.stamps().await;
        loop {
            let asked = tokio::select! {
                _ = interval.tick() => false,
                () = self.wanted.notified() => true,
            };
            // Before reading: a change meanwhile is seen at the next look.
            let stamps = self.stamps().await;
            if asked || stamps != known {
                known = stamps;
                self.reload(&seams).await;
            }
        }
    }

    async fn reload(&self, seams: &Seams) {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || load(&files)).await;
        let Ok(read) = read else { return };
        let read = read.and_then(|loaded| {
            if loaded.has_expired(seams) {
                return Err(CertificateError::Expired { path: self.files.certificate.clone() });
            }
            Ok(loaded)
        });
        let result = match read {
            Ok(loaded) => {
                tracing::info!(expires = loaded.expires, "a new certificate is in use");
                self.expires.set(loaded.expires);
                self.loaded.store(Arc::new(loaded));
                "loaded"
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate can't be used; the old one stays");
                "failed"
            }
        };
        self.reloads.get_or_create(&[("result", result)]).inc();
    }

    async fn stamps(&self) -> [Stamp; 2] {
        let TlsFiles { certificate, key } = self.files.clone();
        let looked = tokio::task::spawn_blocking(move || [stamp(&certificate), stamp(&key)]);
        looked.await.unwrap_or_default()
    }
}

impl Loaded {
    fn has_expired(&self, seams: &Seams) -> bool {
        i64::try_from(seams.now_ms() / 1_000).is_ok_and(|now| now >= self.expires)
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let error = |source| CertificateError::File { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(error)?.len();
    if length > FILE_BYTES {
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    fs::read(path).map_err(error)
}

fn load(files: &TlsFiles) -> Result<Loaded, CertificateError> {
    let pem = |path: &Path, what| CertificateError::Pem { path: path.to_owned(), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|_| pem(&files.certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(pem(&files.certificate, "certificate"));
    }
    let expires = expiry(&chain, &files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|_| pem(&files.key, "private key"))?;
    let unfit = |source| CertificateError::Unfit {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(unfit)?;
    let certified = Arc::new(SingleCertAndKey::from(certified));
    // Offered protocols of others are refused: a client of another service does not talk to this one by mistake.
    let config = |protocol: &[u8]| {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certified.clone());
        // Resumption is by tickets, whose state is the client's.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    };
    Ok(Loaded { mqtt: config(b"mqtt").map_err(unfit)?, web: config(b"http/1.1").map_err(unfit)?, expires })
}

fn expiry(chain: &[CertificateDer<'_>], path: &Path) -> Result<i64, CertificateError> {
    let ends = chain.iter().map(|certificate| {
        let parsed = x509_parser::parse_x509_certificate(certificate);
        parsed.map(|(_, certificate)| certificate.validity().not_after.timestamp())
    });
    let ends: Result<Vec<_>, _> = ends.collect();
    let malformed = || CertificateError::Malformed { path: path.to_owned() };
    ends.ok().and_then(|ends| ends.into_iter().min()).ok_or_else(malformed)
}
