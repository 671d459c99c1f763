//! The command line.

use std::{net::TcpListener, path::PathBuf};

use anyhow::Result;
use clap::Parser;

const EXAMPLES: &str = "Examples:
  penstock-cluster
  penstock-cluster --mqtt 1883,1884,1885 --grpc 7070,7071 --dir ./penstock-cluster
  penstock-cluster --mqtt 11883 --grpc 17070

Needs etcd and redis-server on the PATH. Ctrl-C stops everything.";

/// A whole Penstock on this machine: etcd, Redis, routers, gateways, tenant demo.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Arguments {
    /// A gateway for each port: where devices connect
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', default_value = "1883,1884")]
    pub mqtt: Vec<u16>,
    /// A router for each port: where microservices and operators call
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', default_value = "7070,7071")]
    pub grpc: Vec<u16>,
    /// Keep data, logs and passwords here and go on with them; without it they are temporary
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

impl Arguments {
    /// Doors of all routers.
    pub fn servers(&self) -> Vec<String> {
        self.grpc.iter().map(|port| format!("http://127.0.0.1:{port}")).collect()
    }

    /// Told before anything is started: the port is in use, or given twice.
    pub fn check_ports(&self) -> Result<()> {
        let mut held = Vec::new();
        for (flag, what, ports) in [("mqtt", "a gateway", &self.mqtt), ("grpc", "a router", &self.grpc)] {
            for port in ports {
                match TcpListener::bind(("127.0.0.1", *port)) {
                    Ok(listener) => held.push(listener),
                    Err(error) => return crate::taken(what, *port, flag, &error),
                }
            }
        }
        Ok(())
    }
}
