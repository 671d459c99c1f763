//! The mapper's settings: the table that flags, variables and keys come from, and what is made of it.

use std::{path::PathBuf, time::Duration};

use penstock_client::{Client, Start};
use penstock_common::{
    config::{Program, Reader, Setting, Size},
    process,
    secret::Secret,
    telemetry,
};

use crate::{
    api::ApiConfig, config, engine::EngineConfig, identity::IdentityConfig, input::parse_time, retry::Retry,
    routes::Route,
};

const ROUTE: Setting = Setting::part("route", "filter → jq program → request; see the mapper's README.md");

const DOOR: &[Setting] = &[
    Setting::new("server", "door.server", "URL[,URL…]", "gRPC doors of routers, asked in turn")
        .or("http://127.0.0.1:7070"),
    Setting::new("user", "door.user", "TENANT/USER", "Who consumes; role service or above"),
    Setting::secret_file("password-file", "door.password_file", "Its password"),
    Setting::secret_variable("password", "The same, without a file"),
    Setting::new("group", "group.name", "NAME", "Group to consume; made when it is not there").or("mapper"),
    Setting::new("start", "group.start", "latest|earliest|TIME", "Where a group that is made begins")
        .or("latest"),
    Setting::new("credit", "group.credit", "N", "Messages in this process's hands, at most").or("500"),
    Setting::new(
        "ack-timeout",
        "group.ack_timeout",
        "DURATION",
        "A message held for longer is given to another",
    )
    .or("5m"),
];

const API: &[Setting] = &[
    Setting::new("api-url", "api.url", "URL", "The REST API, like https://platform.example.com"),
    Setting::new("api-user", "api.user", "TENANT/USER", "Who calls it"),
    Setting::secret_file("api-password-file", "api.password_file", "Its password"),
    Setting::secret_variable("api-password", "The same, without a file"),
    Setting::new(
        "api-ca-file",
        "api.ca_file",
        "FILE",
        "Certificates in PEM to trust instead of the system's",
    ),
    Setting::new("api-timeout", "api.timeout", "DURATION", "For one request with its answer").or("10s"),
    Setting::new("concurrency", "api.concurrency", "N", "Requests at a time").or("8"),
    Setting::new("batch", "api.batch", "N", "Measurements in one request, at most").or("100"),
    Setting::new("identity-type", "identity.type", "NAME", "Type of the devices' external identifiers")
        .or("c8y_Serial"),
    Setting::new("device-type", "identity.device_type", "NAME", "Type of devices that are made")
        .or("penstock_Device"),
    Setting::new("identity-cache", "identity.cache", "N", "Devices whose identifier is remembered")
        .or("10000"),
];

const OWN: &[Setting] = &[
    ROUTE,
    Setting::switch("dry-run", "mapper.dry_run", "Print what would be sent, send and acknowledge nothing"),
    Setting::new(
        "retry-first",
        "retry.first",
        "DURATION",
        "After a failure, a message comes again so much later",
    )
    .or("1s"),
    Setting::new("retry-longest", "retry.longest", "DURATION", "… doubled with each, up to this").or("1m"),
    Setting::new(
        "dead-letter-dir",
        "dead_letters.dir",
        "DIR",
        "Where what can't be mapped or is refused is kept",
    ),
    Setting::new(
        "dead-letter-max",
        "dead_letters.max",
        "SIZE",
        "Its bound; beyond it such messages come again",
    )
    .or("256MiB"),
    process::NODE_ID,
    process::DRAIN_TIMEOUT,
    process::DRAIN_DELAY,
    Setting::new("admin-listen", "admin.listen", "ADDRESS:PORT", "Where /livez /readyz /metrics /config are")
        .or("127.0.0.1:9092"),
];

/// The command line.
pub const PROGRAM: Program = Program {
    name: "penstock-mapper",
    about: "Maps a group's messages with jq programs to requests of a REST API",
    examples: "
penstock-mapper test --config mapper.toml             run the sample messages of the routes, connect to nothing
penstock-mapper --config mapper.toml --dry-run        show what the group's messages would become
penstock-mapper --config mapper.toml --user demo/app --password-file app.password \\
    --api-url https://platform.example.com --api-user t0123/mapper --api-password-file api.password \\
    --dead-letter-dir /var/lib/penstock/dead-letters
penstock-mapper --config mapper.toml --print-config",
    settings: &[OWN, DOOR, API, telemetry::SETTINGS],
};

/// `penstock-mapper test`.
pub const TEST: Program = Program {
    name: "penstock-mapper test",
    about: "Runs the sample messages of the routes and compares what becomes of them; connects to nothing",
    examples: "penstock-mapper test --config mapper.toml",
    settings: &[OWN, DOOR, API, telemetry::SETTINGS],
};

/// What needs the API.
#[derive(Debug)]
pub struct Sending {
    /// Where to.
    pub api: ApiConfig,
    /// As whom.
    pub identity: IdentityConfig,
    /// Directory and bytes.
    pub dead_letters: (PathBuf, u64),
}

/// What the program runs with.
#[derive(Debug)]
pub struct Mapper {
    /// The list.
    pub routes: Vec<Route>,
    /// At the door.
    pub client: ClientConfig,
    /// Group to consume.
    pub group: String,
    /// Where it begins if it is made.
    pub start: Start,
    /// Messages in hand.
    pub credit: u32,
    /// See the client.
    pub ack_timeout: Duration,
    /// Shown to operators.
    pub node_id: String,
    /// None: a dry run.
    pub sending: Option<Sending>,
    /// How much at a time; the drain's limit comes from the process.
    pub engine: EngineConfig,
    /// Measurements in one request.
    pub batch: usize,
}

/// Who consumes, where.
#[derive(Debug)]
pub struct ClientConfig {
    servers: Vec<String>,
    user: String,
    password: Option<Secret>,
}

impl ClientConfig {
    /// Connects when first used; needs a runtime.
    pub fn client(&self) -> Result<Client, penstock_client::BuildError> {
        let builder = self.servers.iter().fold(Client::builder(), |builder, server| builder.server(server));
        let password = self.password.as_ref().map_or("", Secret::expose);
        builder.credentials(&self.user, password).connect_lazy()
    }
}

/// Reads the routes; their faults are the reader's.
pub fn routes(reader: &mut Reader) -> Vec<Route> {
    config::read(reader.part(ROUTE.flag), reader.file()).unwrap_or_else(|faults| {
        faults.iter().for_each(|fault| reader.fault("", fault));
        Vec::new()
    })
}

/// Reads the settings.
pub fn read(reader: &mut Reader) -> Mapper {
    let routes = routes(reader);
    let dry = reader.switch("dry-run");
    let retry = Retry { first: reader.value("retry-first"), longest: reader.value("retry-longest") };
    if retry.first.is_zero() || retry.longest < retry.first {
        reader.fault("retry-longest", "is at least --retry-first, and that is not 0s");
    }
    let batch = positive(reader, "batch");
    let concurrency = positive(reader, "concurrency");
    let engine = EngineConfig { concurrency, messages: batch, retry, drain_timeout: Duration::ZERO };
    let mapper = Mapper {
        routes,
        client: client(reader),
        group: reader.value("group"),
        start: start(reader),
        credit: u32::try_from(positive(reader, "credit")).unwrap_or(u32::MAX).min(100_000),
        ack_timeout: reader.value("ack-timeout"),
        node_id: process::node_id(reader, "mapper"),
        sending: (!dry).then(|| sending(reader)),
        engine,
        batch,
    };
    if let Some(sending) = &mapper.sending
        && mapper.ack_timeout <= sending.api.timeout * 2
    {
        reader.fault(
            "ack-timeout",
            "is more than twice --api-timeout, or messages are given to another while they are sent",
        );
    }
    mapper
}

fn positive(reader: &mut Reader, flag: &str) -> usize {
    let number: u32 = reader.value(flag);
    if number == 0 {
        reader.fault(flag, "is at least 1");
    }
    number.max(1) as usize
}

fn client(reader: &mut Reader) -> ClientConfig {
    let user: String = reader.value("user");
    let password = password(reader, "password-file", "password");
    let config = ClientConfig { servers: reader.value("server"), user, password };
    // Making one needs a runtime; what is said about user and servers doesn't.
    if !config.user.is_empty()
        && config.user.split_once('/').is_none_or(|(tenant, user)| tenant.is_empty() || user.is_empty())
    {
        reader.fault("user", "is written TENANT/USER, like demo/app");
    }
    config
}

fn password(reader: &mut Reader, file: &str, variable: &str) -> Option<Secret> {
    let given = reader.optional::<String>(file).is_some();
    let secret = reader.secret_file(file).or_else(|| reader.secret_variable(variable));
    if secret.is_none() && !given {
        let name = variable.to_ascii_uppercase().replace('-', "_");
        reader.fault(file, &format!("the password is missing: name its file, or set PENSTOCK_{name}"));
    }
    secret
}

fn start(reader: &mut Reader) -> Start {
    let text: String = reader.value("start");
    match (text.as_str(), parse_time(&text)) {
        ("latest", _) => Start::Latest,
        ("earliest", _) => Start::Earliest,
        (_, Some(time)) => Start::Time(time),
        _ => {
            reader.fault("start", "is latest, earliest, or a time such as 2026-11-28T12:00:00Z");
            Start::Latest
        }
    }
}

fn sending(reader: &mut Reader) -> Sending {
    let password = password(reader, "api-password-file", "api-password");
    let api = ApiConfig {
        url: reader.value("api-url"),
        user: reader.value("api-user"),
        password: password.unwrap_or_else(|| Secret::new("")),
        timeout: reader.value("api-timeout"),
        ca_file: reader.optional("api-ca-file"),
    };
    if api.timeout.is_zero() {
        reader.fault("api-timeout", "is more than 0s");
    }
    if !api.url.is_empty()
        && let Err(error) = crate::api::Api::new(&api, 1)
    {
        reader.fault("api-url", &error.to_string());
    }
    let identity = IdentityConfig {
        id_type: reader.value("identity-type"),
        device_type: reader.value("device-type"),
        cache: positive(reader, "identity-cache"),
    };
    let bound: Size = reader.value("dead-letter-max");
    Sending { api, identity, dead_letters: (reader.value("dead-letter-dir"), bound.0) }
}
