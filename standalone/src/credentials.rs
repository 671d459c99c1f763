//! The file `credentials` of the data directory: one `tenant/user password` a line, readable by its owner only. It is
//! written and synced before the users are created, so that no password is ever lost to a crash.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use penstock_common::{clock::Seams, secret::Secret};
use penstock_router::hashing;

const HEAD: &str = "# Made by penstock at its first start: tenant/user and password.\n\
                    # Passwords that are changed later are not changed here.\n";

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Reading or writing failed.
    #[error("cannot use {path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was edited, or is something else.
    #[error("{path}, line {line}: not `tenant/user password`; correct it or move the file away", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

/// Passwords by `tenant/user`.
#[derive(Default, Debug)]
pub struct Credentials(BTreeMap<String, Secret>);

impl Credentials {
    /// Reads the file of a data directory; None: there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let path = file(dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialsError::Io { path, source }),
        };
        let mut users = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let parts =
                line.split_once(' ').filter(|(user, password)| user.contains('/') && !password.is_empty());
            let Some((user, password)) = parts else {
                return Err(CredentialsError::Unreadable { path, line: number + 1 });
            };
            users.insert(user.to_owned(), Secret::new(password));
        }
        Ok(Some(Self(users)))
    }

    /// Replaces the file of a data directory: afterwards it is on disk, or the old one is.
    pub fn write(&self, dir: &Path) -> Result<(), CredentialsError> {
        let mut text = HEAD.to_owned();
        for (user, password) in &self.0 {
            text.push_str(&format!("{user} {}\n", password.expose()));
        }
        replace(dir, &file(dir), &text).map_err(|source| CredentialsError::Io { path: file(dir), source })
    }

    /// The password of a user.
    pub fn password(&self, user: &str) -> Option<&Secret> {
        self.0.get(user)
    }

    /// Gives a user this password, or, with None, a random one unless it has one.
    pub fn provide(&mut self, user: &str, password: Option<&Secret>, seams: &Seams) {
        match password {
            Some(password) => drop(self.0.insert(user.to_owned(), password.clone())),
            None => drop(
                self.0.entry(user.to_owned()).or_insert_with(|| Secret::new(hashing::generate_secret(seams))),
            ),
        }
    }

    /// Users with their passwords.
    pub fn users(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(user, password)| (user.as_str(), password))
    }
}

/// Where the credentials of a data directory are.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("credentials")
}

/// Writes a file anew under its owner's rights only, synced with its directory.
pub fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // Left over by a crash, perhaps with other rights.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_only_the_owner_may() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Credentials::read(dir.path()).unwrap().is_none());
        let mut credentials = Credentials::default();
        credentials.provide("demo/app", Some(&Secret::new("with blanks in it")), &Seams::real());
        credentials.provide("demo/device", None, &Seams::real());
        credentials.write(dir.path()).unwrap();
        let mode = fs::metadata(file(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Credentials::read(dir.path()).unwrap().unwrap();
        assert_eq!(again.password("demo/app").unwrap().expose(), "with blanks in it");
        let device = again.password("demo/device").unwrap().expose();
        assert_eq!(device, credentials.password("demo/device").unwrap().expose());
        assert!(device.len() >= 26, "128 bits and more");
        assert!(!format!("{again:?}").contains(device));
    }

    #[test]
    fn a_random_password_is_kept_and_no_two_are_the_same() {
        let mut credentials = Credentials::default();
        credentials.provide("a/b", None, &Seams::real());
        let first = credentials.password("a/b").unwrap().expose().to_owned();
        credentials.provide("a/b", None, &Seams::real());
        credentials.provide("a/c", None, &Seams::real());
        assert_eq!(credentials.password("a/b").unwrap().expose(), first);
        assert_ne!(credentials.password("a/c").unwrap().expose(), first);
    }

    #[test]
    fn a_damaged_file_is_told_with_its_line_and_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path()), "# head\ndemo/app hunter2\nhunter3\n").unwrap();
        let error = Credentials::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 3") && !error.contains("hunter"), "{error}");
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_file_and_does_not_block_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("credentials.new"), "half").unwrap();
        let mut credentials = Credentials::default();
        credentials.provide("a/b", None, &Seams::real());
        credentials.write(dir.path()).unwrap();
        assert!(Credentials::read(dir.path()).unwrap().is_some());
        assert!(!dir.path().join("credentials.new").exists());
    }
}
