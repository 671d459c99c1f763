//! A certificate authority of the test's own, and the files that it writes for a gateway.

use std::{fs, path::Path};

use penstock_gateway::config::transports::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{RootCertStore, pki_types::CertificateDer};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// The name that every certificate is for.
pub const NAME: &str = "gateway.test";

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    /// What a client that trusts this authority trusts.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }

    /// Writes a new certificate and its key; what lay there is replaced as a whole, as good tools do.
    pub fn write(&self, directory: &Path, days: i64) -> TlsFiles {
        let files =
            TlsFiles { certificate: directory.join("certificate.pem"), key: directory.join("key.pem") };
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![NAME.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1)
            + std::time::Duration::from_secs(86_400) * u32::try_from(days).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        replace(&files.key, &key.serialize_pem());
        replace(&files.certificate, &certificate.pem());
        files
    }
}

/// Replaces a file as a whole.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}
