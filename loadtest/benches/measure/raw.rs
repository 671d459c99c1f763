//! What Redis itself says and does: how often it was called, what a tenant's logs take of its memory, and how fast one
//! connection reads them entry by entry. Plain RESP over one socket, so that nothing but Redis is measured.

// How fast Redis is read is a matter of real time.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Longest silence.
const PATIENCE: Duration = Duration::from_secs(30);
/// Entries that are asked for at once; an entry holds many records under load.
pub const PAGE: &str = "100";

/// A connection.
pub struct Raw(BufReader<TcpStream>);

/// Calls since Redis started, inside scripts too.
#[derive(Clone, Copy)]
pub struct Calls {
    pub appends: f64,
    pub all: f64,
}

/// Where the logs of the tenant `bench` ended, by key, and what they took.
pub struct Logs {
    ends: BTreeMap<String, String>,
    bytes: f64,
}

/// What was read.
pub struct Reading {
    pub records: f64,
    pub seconds: f64,
    /// Of memory that the logs have grown by.
    pub bytes: f64,
}

enum Value {
    Nil,
    Text(Vec<u8>),
    Number(i64),
    List(Vec<Value>),
}

impl Value {
    fn text(&self) -> Option<&str> {
        if let Self::Text(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    fn list(&self) -> &[Self] {
        if let Self::List(values) = self { values } else { &[] }
    }

    fn number(&self) -> Option<f64> {
        if let Self::Number(number) = self { Some(*number as f64) } else { self.text()?.parse().ok() }
    }
}

impl Raw {
    /// Connects.
    pub fn to(redis: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(redis).context("Redis")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::with_capacity(1 << 18, stream)))
    }

    fn call(&mut self, words: &[&str]) -> anyhow::Result<Value> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer().with_context(|| format!("Redis on {}", words.join(" ")))
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).context("no answer")?;
        let length = || rest.parse::<i64>().context("not RESP");
        match kind {
            "+" => Ok(Value::Text(rest.as_bytes().to_vec())),
            ":" => Ok(Value::Number(length()?)),
            "$" => {
                let Ok(length) = usize::try_from(length()?) else { return Ok(Value::Nil) };
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(Value::Text(bytes))
            }
            "*" => {
                let Ok(length) = usize::try_from(length()?) else { return Ok(Value::Nil) };
                Ok(Value::List((0..length).map(|_| self.answer()).collect::<Result<_, _>>()?))
            }
            _ => bail!("{line}"),
        }
    }

    /// How often it was called.
    pub fn calls(&mut self) -> anyhow::Result<Calls> {
        let answer = self.call(&["INFO", "commandstats"])?;
        let mut calls = Calls { appends: 0.0, all: 0.0 };
        // Redis names no command that was never called.
        for line in answer.text().unwrap_or_default().lines() {
            let Some((name, rest)) = line.split_once(":calls=") else { continue };
            let count = rest.split(',').next().and_then(|count| count.parse::<f64>().ok()).unwrap_or(0.0);
            calls.all += count;
            if name == "cmdstat_xadd" {
                calls.appends = count;
            }
        }
        Ok(calls)
    }

    fn keys(&mut self) -> anyhow::Result<Vec<String>> {
        let (mut keys, mut cursor) = (Vec::new(), "0".to_owned());
        loop {
            let answer = self.call(&["SCAN", &cursor, "MATCH", "ps:{bench/*}:log", "COUNT", "1000"])?;
            let [next, found] = answer.list() else { bail!("SCAN answered something else") };
            keys.extend(found.list().iter().filter_map(|key| key.text().map(str::to_owned)));
            cursor = next.text().context("SCAN has no cursor")?.to_owned();
            if cursor == "0" {
                return Ok(keys);
            }
        }
    }

    /// Where the logs end now.
    pub fn logs(&mut self) -> anyhow::Result<Logs> {
        let (mut ends, mut bytes) = (BTreeMap::new(), 0.0);
        for key in self.keys()? {
            let last = self.call(&["XREVRANGE", &key, "+", "-", "COUNT", "1"])?;
            let id = last.list().first().and_then(|entry| entry.list().first()?.text());
            bytes += self.memory(&key)?;
            ends.insert(key, id.unwrap_or("0-0").to_owned());
        }
        Ok(Logs { ends, bytes })
    }

    fn memory(&mut self, key: &str) -> anyhow::Result<f64> {
        Ok(self.call(&["MEMORY", "USAGE", key, "SAMPLES", "0"])?.number().unwrap_or(0.0))
    }

    /// Reads everything that came after that, a log after the other.
    pub fn read_since(&mut self, logs: &Logs) -> anyhow::Result<Reading> {
        let keys = self.keys()?;
        let mut bytes = -logs.bytes;
        for key in &keys {
            bytes += self.memory(key)?;
        }
        let (begun, mut records) = (Instant::now(), 0.0);
        for key in keys {
            let mut after = logs.ends.get(&key).cloned().unwrap_or_else(|| "0-0".to_owned());
            loop {
                let page = self.call(&["XRANGE", &key, &format!("({after}"), "+", "COUNT", PAGE])?;
                let Some(id) = page.list().last().and_then(|entry| entry.list().first()?.text()) else {
                    break;
                };
                after = id.to_owned();
                records += page.list().iter().map(held).sum::<f64>();
            }
        }
        Ok(Reading { records, seconds: begun.elapsed().as_secs_f64(), bytes })
    }
}

/// Records in an entry: its field `n`.
fn held(entry: &Value) -> f64 {
    let fields = entry.list().get(1).map_or(&[][..], Value::list);
    let count = fields.chunks(2).find(|pair| pair.first().and_then(Value::text) == Some("n"));
    count.and_then(|pair| pair.get(1)?.number()).unwrap_or(0.0)
}
