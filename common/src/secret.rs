//! Text that must not be seen: it has no `Display`, its `Debug` shows nothing, and it is compared in constant time.
//! Where it comes from is said by a path or by the environment, never by a flag.

use std::{fmt, fs, io, path::Path, sync::Arc};

use subtle::ConstantTimeEq;

/// Largest file that is taken for a secret, bytes: a wrong path must not load a log.
const FILE_MAX: u64 = 16 * 1_024;

/// A password, key or token. Cheap to clone.
#[derive(Clone)]
pub struct Secret(Arc<str>);

/// A file that holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It can't be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// As given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It holds nothing, or only blanks.
    #[error("{0} is empty")]
    Empty(String),
    /// It is larger than a secret can be, or no text.
    #[error("{0} holds no secret: text of at most {FILE_MAX} bytes was expected")]
    NoText(String),
}

impl Secret {
    /// Takes text as a secret.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Reads a file; line ends at its end don't belong to the secret.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let name = || path.display().to_string();
        let unreadable = |source| SecretError::Unreadable { path: name(), source };
        if fs::metadata(path).map_err(unreadable)?.len() > FILE_MAX {
            return Err(SecretError::NoText(name()));
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        let text = String::from_utf8(bytes).map_err(|_| SecretError::NoText(name()))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.trim().is_empty() { Err(SecretError::Empty(name())) } else { Ok(Self::new(text)) }
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The text, shared, for the one place that needs it.
    pub fn expose_shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Whether this is the secret; takes the same time wherever the first difference is (the length may show).
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_shows_nothing_and_loses_its_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hunter2\r\n").unwrap();
        let secret = Secret::from_file(file.path()).unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert!(!format!("{secret:?}").contains("hunter"));
        assert!(secret.matches(b"hunter2"));
        for other in [&b""[..], b"hunter", b"hunter22", b"Hunter2"] {
            assert!(!secret.matches(other));
        }
    }

    #[test]
    fn a_file_without_a_secret_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Secret::from_file(file.path()), Err(SecretError::Empty(_))));
        fs::write(file.path(), " \n\n").unwrap();
        assert!(matches!(Secret::from_file(file.path()), Err(SecretError::Empty(_))));
        fs::write(file.path(), vec![b'a'; 20_000]).unwrap();
        assert!(matches!(Secret::from_file(file.path()), Err(SecretError::NoText(_))));
        let missing = Path::new("not/there");
        assert!(matches!(Secret::from_file(missing), Err(SecretError::Unreadable { .. })));
    }
}
