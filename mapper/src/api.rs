//! The REST API as a client: one request, one answer, within a time. It tries nothing twice by itself; an error says what
//! may be done about it. The password is in no message and no log.

use std::{error::Error, fs, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use penstock_common::secret::Secret;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;
use tokio::time::timeout;

/// Longest answer that is read; a longer one counts as unreadable.
const ANSWER_BYTES: usize = 1 << 20;
/// Of a refusal, what is kept for people.
const REASON_CHARS: usize = 500;
const IDLE: Duration = Duration::from_secs(30);

/// How the API is reached.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// `http://…` or `https://…`, paths are added to it.
    pub url: String,
    /// `tenant/user`.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// For one request with its answer, connecting included.
    pub timeout: Duration,
    /// Certificates in PEM that are trusted instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
}

/// No client can be made of these settings.
#[derive(Debug, thiserror::Error)]
pub enum ApiConfigError {
    /// No URL, or one with more than scheme, host, port and path.
    #[error("{0:?} is not a URL such as https://platform.example.com")]
    Url(String),
    /// Can't be a header.
    #[error("the user or the password of the API can't be sent")]
    Credentials,
    /// No certificates to trust.
    #[error("{0}")]
    Trust(String),
}

/// A request without a good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No connection, or it broke: whether the request was done is unknown.
    #[error("the API can't be reached: {0}")]
    Unreachable(String),
    /// Not in time: whether the request was done is unknown.
    #[error("the API did not answer within {0:?}")]
    TimedOut(Duration),
    /// An answer that says no.
    #[error("the API answered {status}: {reason}")]
    Status {
        /// HTTP status.
        status: u16,
        /// The beginning of what it said.
        reason: String,
    },
    /// A good answer without what it should hold.
    #[error("the API's answer can't be read: {0}")]
    Unreadable(String),
}

/// What may be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing gets through now: all messages later.
    Away,
    /// This one failed over there: later, others may work.
    Failed,
    /// It will be refused again.
    Refused,
}

impl ApiError {
    /// Server errors and what has no answer come again; so does what says nothing about the message itself: wrong
    /// credentials of the mapper (401), a time that was over there (408), too many requests (429).
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) => Verdict::Away,
            Self::Status { status: 401 | 408 | 429 | 502 | 503 | 504, .. } => Verdict::Away,
            Self::Status { status, .. } if *status >= 500 => Verdict::Failed,
            Self::Unreadable(_) => Verdict::Failed,
            Self::Status { .. } => Verdict::Refused,
        }
    }

    /// In metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut(_) => "timeout",
            Self::Status { status, .. } if *status >= 500 => "server_error",
            Self::Status { status: 401 | 408 | 429, .. } => "later",
            Self::Status { .. } => "refused",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// The API. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Arc<str>,
    authorization: HeaderValue,
    timeout: Duration,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Api {
    /// Connects when first used. `connections` that are idle are kept.
    pub fn new(config: &ApiConfig, connections: usize) -> Result<Self, ApiConfigError> {
        let uri: Uri = config.url.parse().map_err(|_| ApiConfigError::Url(config.url.clone()))?;
        let plain = match uri.scheme_str() {
            Some("http") => true,
            Some("https") => false,
            _ => return Err(ApiConfigError::Url(config.url.clone())),
        };
        let fit = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if !fit || uri.query().is_some() {
            return Err(ApiConfigError::Url(config.url.clone()));
        }
        let basic = STANDARD.encode(format!("{}:{}", config.user, config.password.expose()));
        let mut authorization =
            HeaderValue::try_from(format!("Basic {basic}")).map_err(|_| ApiConfigError::Credentials)?;
        authorization.set_sensitive(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(connections)
            .build(connector(plain, config)?);
        let base = config.url.trim_end_matches('/').into();
        Ok(Self { client, base, authorization, timeout: config.timeout })
    }

    /// One request. The answer's body when the status is 2xx; null when it is none or no JSON.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, ApiError> {
        let exchange = timeout(self.timeout, self.exchange(method, path, body));
        let (status, answer) = exchange.await.map_err(|_| ApiError::TimedOut(self.timeout))??;
        if status.is_success() {
            return Ok(serde_json::from_slice(&answer).unwrap_or_default());
        }
        let reason = String::from_utf8_lossy(&answer).chars().take(REASON_CHARS).collect();
        Err(ApiError::Status { status: status.as_u16(), reason })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(USER_AGENT, concat!("penstock-mapper/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        let bytes = match body {
            Value::Null => Bytes::new(),
            body => {
                request = request.header(CONTENT_TYPE, "application/json");
                body.to_string().into()
            }
        };
        let request =
            request.body(Full::new(bytes)).map_err(|error| ApiError::Unreadable(error.to_string()))?;
        let response =
            self.client.request(request).await.map_err(|error| ApiError::Unreachable(deepest(&error)))?;
        let (head, body) = response.into_parts();
        let answer = Limited::new(body, ANSWER_BYTES).collect().await;
        let answer = answer.map_err(|error| ApiError::Unreachable(deepest(error.as_ref())))?;
        Ok((head.status, answer.to_bytes()))
    }
}

/// The most telling text.
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

fn connector(plain: bool, config: &ApiConfig) -> Result<HttpsConnector<HttpConnector>, ApiConfigError> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(config.timeout));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = HttpsConnectorBuilder::new();
    let untrusted = |error: &dyn std::fmt::Display| ApiConfigError::Trust(error.to_string());
    if !plain && config.ca_file.is_none() {
        let native = builder.with_provider_and_native_roots(provider).map_err(|error| {
            untrusted(&format!("no certificates of this system to trust: {error}; give --api-ca-file"))
        })?;
        return Ok(native.https_only().enable_http1().wrap_connector(http));
    }
    let roots = config.ca_file.as_deref().map(trusted).transpose()?.unwrap_or_else(RootCertStore::empty);
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| untrusted(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(builder.with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http))
}

fn trusted(path: &Path) -> Result<RootCertStore, ApiConfigError> {
    let wrong = |error: &dyn std::fmt::Display| ApiConfigError::Trust(format!("{}: {error}", path.display()));
    let pem = fs::read(path).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() { Err(wrong(&"holds no certificate in PEM")) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(url: &str) -> ApiConfig {
        ApiConfig {
            url: url.to_owned(),
            user: "t/u".to_owned(),
            password: Secret::new("hunter2"),
            timeout: Duration::from_secs(1),
            ca_file: None,
        }
    }

    #[test]
    fn errors_come_again_or_not_as_the_endpoint_says() {
        let verdict = |status| ApiError::Status { status, reason: String::new() }.verdict();
        for status in [400, 403, 404, 409, 413, 422, 301] {
            assert_eq!(verdict(status), Verdict::Refused, "{status}");
        }
        for status in [500, 501, 507] {
            assert_eq!(verdict(status), Verdict::Failed, "{status}");
        }
        for status in [401, 408, 429, 502, 503, 504] {
            assert_eq!(verdict(status), Verdict::Away, "{status}");
        }
        assert_eq!(ApiError::TimedOut(Duration::ZERO).verdict(), Verdict::Away);
    }

    #[test]
    fn wrong_settings_are_told_and_nothing_shows_the_password() {
        for url in ["platform", "ftp://h", "http://", "http://u:p@h", "http://h/x?y=1", ""] {
            assert!(matches!(Api::new(&config(url), 1), Err(ApiConfigError::Url(_))), "{url}");
        }
        let api = Api::new(&config("http://h/base/"), 1).unwrap();
        let shown = format!("{api:?} {:?}", api.authorization);
        assert!(
            shown.contains("http://h/base\"") && !shown.contains(&STANDARD.encode("t/u:hunter2")),
            "{shown}"
        );
        let missing = ApiConfig { ca_file: Some("not/there.pem".into()), ..config("https://h") };
        assert!(
            matches!(Api::new(&missing, 1), Err(ApiConfigError::Trust(text)) if text.contains("not/there.pem"))
        );
    }
}
