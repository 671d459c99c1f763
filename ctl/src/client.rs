//! `penstockctl client …`: who is connected, what a connection is like, how earlier ones ended.

use clap::Subcommand;
use penstock_client::{
    Admin, ClientConnection, ClientEnd, ClientFilter, ClientSession, ClientStatus, ClientSummary,
};
use serde_json::{Value, json};

use crate::{failure::Failure, output::Output, quantity::show_millis};

/// Clients asked for at a time.
const PAGE: u32 = 1_000;
/// Marks epochs that the registry gave.
const REAL: u64 = 1 << 62;

#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// List the clients of a tenant that are connected or have a session, by client identifier
    #[command(
        after_help = "Examples:\n  penstockctl --user system/admin client list acme\n  penstockctl --user acme/admin client list acme --prefix sensor- --limit 100 --json"
    )]
    List {
        /// The tenant
        tenant: String,
        /// Only client identifiers that begin with this
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
        /// Only client identifiers that come after this one, which need not exist
        #[arg(long, value_name = "CLIENT", default_value = "")]
        after: String,
        /// End after this many; without it, all
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
    /// Show one client: its connection, its session and mailbox, and how earlier connections ended
    #[command(after_help = "Example:\n  penstockctl --user system/admin client show acme sensor-1 --json")]
    Show {
        /// The tenant
        tenant: String,
        /// The client identifier
        client: String,
    },
    /// Close a client's connection, wherever it is. Its session stays, its will is published, and it may come again
    #[command(after_help = "Example:\n  penstockctl --user system/admin client disconnect acme sensor-1")]
    Disconnect {
        /// The tenant
        tenant: String,
        /// The client identifier
        client: String,
    },
}

/// Runs one of them.
pub async fn run(command: ClientCommand, admin: &Admin, output: Output) -> Result<(), Failure> {
    match command {
        ClientCommand::List { tenant, prefix, after, limit } => {
            list(admin, output, &tenant, &prefix, after, limit).await
        }
        ClientCommand::Show { tenant, client } => {
            let status = admin.client_status(&tenant, &client).await?;
            warn(&status.silent_routers);
            output.one(&status_json(&status), || lines(&status).join("\n"))
        }
        ClientCommand::Disconnect { tenant, client } => {
            let status = admin.disconnect(&tenant, &client).await?;
            let node = status.connection.map(|it| it.gateway_node).unwrap_or_default();
            output.done(&format!("closed the connection of {client} at {node}"))
        }
    }
}

async fn list(
    admin: &Admin,
    output: Output,
    tenant: &str,
    prefix: &str,
    mut after: String,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut header: &[&str] = &["CLIENT", "STATE", "SESSION", "GATEWAY", "SHARD", "EPOCH"];
    loop {
        let count = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
        let page = admin.clients(tenant, prefix, &after, count).await?;
        warn(&page.silent_routers);
        if output.json() {
            page.clients.iter().try_for_each(|client| output.one(&summary_json(client), String::new))?;
        } else {
            output.many(&rows(&page.clients), header, Clone::clone)?;
        }
        header = &[];
        left = left.saturating_sub(page.clients.len() as u64);
        match page.clients.into_iter().last().filter(|_| page.more && left > 0) {
            Some(last) => after = last.client,
            None => return Ok(()),
        }
    }
}

/// On standard error, so that what is read by a program stays what it is.
fn warn(silent_routers: &[String]) {
    if !silent_routers.is_empty() {
        let routers = silent_routers.join(", ");
        eprintln!("penstockctl: these routers did not answer, what only they know is missing: {routers}");
    }
}

fn rows(clients: &[ClientSummary]) -> Vec<Vec<String>> {
    let row = |client: &ClientSummary| {
        let session = if client.persistent { "persistent" } else { "clean" };
        let mut row = vec![client.client.clone(), state(client).into(), session.into()];
        if client.connected {
            row.extend([client.gateway_node.clone(), client.shard.to_string(), epoch(client.epoch)]);
        }
        row
    };
    clients.iter().map(row).collect()
}

fn state(client: &ClientSummary) -> &'static str {
    if client.connected { "connected" } else { "away" }
}

fn summary_json(client: &ClientSummary) -> Value {
    let mut object =
        json!({ "client": client.client, "state": state(client), "persistent": client.persistent });
    if client.connected {
        object["gateway"] = client.gateway_node.clone().into();
        object["gateway_incarnation"] = format!("{:x}", client.gateway).into();
        object["shard"] = client.shard.into();
        object["epoch"] = epoch(client.epoch).into();
    }
    object
}

/// As logs show it: the registry's revision, or `p…` when a home gave it while the registry did not answer.
fn epoch(epoch: u64) -> String {
    if epoch & REAL != 0 { (epoch & (REAL - 1)).to_string() } else { format!("p{epoch}") }
}

fn status_json(status: &ClientStatus) -> Value {
    json!({
        "client": status.client,
        "connected": status.connection.is_some(),
        "connection": status.connection.as_ref().map(connection_json),
        "session": status.session.as_ref().map(session_json),
        "ends": status.ends.iter().map(end_json).collect::<Vec<_>>(),
        "silent_routers": status.silent_routers,
    })
}

fn filters_json(filters: &[ClientFilter]) -> Vec<Value> {
    filters.iter().map(|it| json!({ "filter": it.filter, "qos": it.qos })).collect()
}

fn connection_json(it: &ClientConnection) -> Value {
    let mut object = json!({
        "gateway": it.gateway_node, "gateway_incarnation": format!("{:x}", it.gateway), "shard": it.shard,
        "epoch": epoch(it.epoch), "answered": it.answered,
    });
    if it.answered {
        object["since"] = show_millis(it.connected_at_ms).into();
        object["address"] = it.address.clone().into();
        object["transport"] = it.transport.clone().into();
        object["user"] = it.user.clone().into();
        object["clean"] = it.clean.into();
        object["keep_alive_seconds"] = it.keep_alive.into();
        object["subscriptions"] = it.subscriptions.into();
        object["filters"] = filters_json(&it.filters).into();
        object["in_flight"] = it.in_flight.into();
        object["queued"] = it.queued.into();
        object["outbound_bytes"] = it.outbound_bytes.into();
        object["unsettled"] = it.unsettled.into();
    }
    object
}

fn session_json(it: &ClientSession) -> Value {
    json!({
        "incarnation": epoch(it.incarnation), "subscriptions": it.subscriptions, "filters": filters_json(&it.filters),
        "mailbox": it.mail, "mailbox_bytes": it.mail_bytes, "in_flight": it.in_flight,
        "oldest": (it.oldest_at_ms > 0).then(|| show_millis(it.oldest_at_ms)),
        "expires_in_seconds": it.expires_in_ms / 1_000,
    })
}

fn end_json(it: &ClientEnd) -> Value {
    json!({
        "at": show_millis(it.ended_at_ms), "since": show_millis(it.connected_at_ms), "reason": it.reason,
        "gateway": it.gateway_node, "shard": it.shard, "epoch": epoch(it.epoch), "address": it.address,
    })
}

fn lines(status: &ClientStatus) -> Vec<String> {
    let mut lines = vec![format!("client: {}", status.client)];
    match &status.connection {
        Some(connection) => connection_lines(connection, &mut lines),
        None => lines.push("connected: no".into()),
    }
    match &status.session {
        Some(session) => session_lines(session, &mut lines),
        None => lines.push("session: none that outlives the connection".into()),
    }
    if status.ends.is_empty() {
        lines.push("earlier connections: none known".into());
    } else {
        lines.push("earlier connections, the last one first:".into());
    }
    lines.extend(status.ends.iter().map(|end| {
        let (at, since) = (show_millis(end.ended_at_ms), show_millis(end.connected_at_ms));
        let (node, shard, address) = (&end.gateway_node, end.shard, &end.address);
        format!("  {at}  {}  at {node}/{shard} since {since} from {address}", end.reason)
    }));
    lines
}

fn filter_lines(subscriptions: u32, filters: &[ClientFilter], lines: &mut Vec<String>) {
    lines.push(format!("  subscriptions: {subscriptions}"));
    lines.extend(filters.iter().map(|it| format!("    {} (QoS {})", it.filter, it.qos)));
    if filters.len() < subscriptions as usize {
        lines.push("    …".into());
    }
}

fn connection_lines(it: &ClientConnection, lines: &mut Vec<String>) {
    lines.push(format!("connected: to {}/{}, epoch {}", it.gateway_node, it.shard, epoch(it.epoch)));
    if !it.answered {
        return lines.push("  the gateway does not answer".into());
    }
    lines.push(format!("  since: {}", show_millis(it.connected_at_ms)));
    lines.push(format!("  from: {} ({}), user {}", it.address, it.transport, it.user));
    let clean = if it.clean { "clean session" } else { "persistent session" };
    lines.push(format!("  {clean}, keep alive {} s", it.keep_alive));
    filter_lines(it.subscriptions, &it.filters, lines);
    lines.push(format!(
        "  to the client: {} in flight, {} queued, {} bytes waiting; from it: {} not yet stored",
        it.in_flight, it.queued, it.outbound_bytes, it.unsettled
    ));
}

fn session_lines(it: &ClientSession, lines: &mut Vec<String>) {
    lines.push(format!(
        "session: created at epoch {}, expires in {} s unless the client comes",
        epoch(it.incarnation),
        it.expires_in_ms / 1_000
    ));
    filter_lines(it.subscriptions, &it.filters, lines);
    let oldest = if it.oldest_at_ms > 0 { show_millis(it.oldest_at_ms) } else { "-".into() };
    lines.push(format!(
        "  mailbox: {} messages, {} bytes, {} in flight, oldest {oldest}",
        it.mail, it.mail_bytes, it.in_flight
    ));
}
