//! Who calls, and with which password. Passwords come from files or the environment, never from the command line, where
//! every user of the machine could read them.

use std::{fs, path::Path};

use penstock_client::Client;

use crate::{cli::Common, failure::Failure};

const PASSWORD: &str = "PENSTOCK_PASSWORD";

/// The client that all commands use.
pub fn client(common: &Common) -> Result<Client, Failure> {
    let user = common.user.as_deref().ok_or_else(|| {
        Failure::Usage("who calls? Give --user tenant/user (such as demo/app or system/admin)".into())
    })?;
    let password = match &common.password_file {
        Some(file) => read(file, "--password-file")?,
        None => from_environment()?,
    };
    let builder = common.server.iter().fold(Client::builder(), |builder, url| builder.server(url));
    Ok(builder.credentials(user, password).connect_lazy()?)
}

// A program's start is where the environment is read.
#[allow(clippy::disallowed_methods)]
fn from_environment() -> Result<String, Failure> {
    std::env::var(PASSWORD).map_err(|_| {
        Failure::Usage(format!("the password is missing: set {PASSWORD} or give --password-file FILE"))
    })
}

/// A password file, without the line end.
pub fn read(file: &Path, flag: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{flag} {}: {error}", file.display())))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::Usage(format!("{flag} {}: the file is empty", file.display())));
    }
    Ok(password.to_owned())
}
