//! Reads `table.txt`: packets and what a server has to do about them.

/// One row.
pub struct Row {
    /// Whether a client was admitted before.
    pub open: bool,
    /// The statement or section.
    pub statement: String,
    pub bytes: Vec<u8>,
    /// What is said: a CONNACK, or answers to what came before.
    pub reply: Vec<u8>,
    pub reaction: Reaction,
    /// The line, for messages.
    pub line: String,
}

#[derive(PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Taken.
    Fine,
    /// The rest of it has to come.
    Waits,
    /// Closed with this reason, as `Debug` writes it.
    Closes(String),
}

/// All rows.
pub fn rows() -> Vec<Row> {
    let mut open = false;
    let mut rows = Vec::new();
    for line in include_str!("table.txt").lines() {
        match line.trim() {
            "== before CONNECT" => open = false,
            "== after CONNECT" => open = true,
            line if line.is_empty() || line.starts_with('#') => {}
            line => rows.push(row(line, open)),
        }
    }
    rows
}

fn row(line: &str, open: bool) -> Row {
    let columns: Vec<_> = line.splitn(4, '|').map(str::trim).collect();
    let [statement, bytes, reaction, _] = columns[..] else { panic!("not four columns: {line}") };
    let mut words: Vec<_> = reaction.split_whitespace().collect();
    let mut reply = Vec::new();
    if words[0] == "connack" {
        reply = vec![0x20, 2, 0, words[1].parse().unwrap()];
        words.drain(..2);
    }
    if let Some(answers) = words.get(1) {
        reply = hexadecimal(answers);
    }
    let reaction = match words[0] {
        "fine" => Reaction::Fine,
        "waits" => Reaction::Waits,
        reason => Reaction::Closes(reason.to_owned()),
    };
    let mut rest = bytes;
    let read = sequence(&mut rest);
    assert!(rest.is_empty(), "{rest:?} is left of {line}");
    Row { open, statement: statement.to_owned(), bytes: read, reply, reaction, line: line.to_owned() }
}

fn hexadecimal(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte: {text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect(text)).collect()
}

/// Parts until the end of the text or of the bracket.
fn sequence(text: &mut &str) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        *text = text.trim_start();
        if text.is_empty() || text.starts_with([')', ']', '}']) {
            return out;
        }
        let part = part(text);
        let times = match text.strip_prefix('*') {
            Some(rest) => {
                let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                *text = &rest[digits..];
                rest[..digits].parse().expect(rest)
            }
            None => 1,
        };
        out.extend(part.repeat(times));
    }
}

fn part(text: &mut &str) -> Vec<u8> {
    if let Some(rest) = text.strip_prefix('"') {
        let (literal, rest) = rest.split_once('"').expect("a closing quote");
        *text = rest;
        return literal.into();
    }
    if let Some(bracket @ ('(' | '[' | '{')) = text.chars().next() {
        *text = &text[1..];
        let body = sequence(text);
        let (close, length) = match bracket {
            '(' => (')', u16::try_from(body.len()).unwrap().to_be_bytes().to_vec()),
            '[' => (']', remaining_length(body.len())),
            _ => ('}', Vec::new()),
        };
        *text = text.strip_prefix(close).expect("a closing bracket");
        return [length, body].concat();
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
    assert!(digits > 0, "what is {text}");
    let (literal, rest) = text.split_at(digits);
    *text = rest;
    hexadecimal(literal)
}

fn remaining_length(mut length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while length > 0x7f {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out
}
