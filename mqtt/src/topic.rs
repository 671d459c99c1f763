//! Topic names and filters: what is valid, and which filter matches which name. `matches` is the oracle for the trie; the
//! data path uses the trie.

/// Longest topic name or filter that the endpoint takes, bytes.
pub const TOPIC_MAX: usize = 1_024;

/// Why a topic name or filter is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicError {
    /// At least one character long.
    #[error("empty [MQTT-4.7.3-1]")]
    Empty,
    /// Longer than the limit.
    #[error("longer than the limit")]
    TooLong,
    /// Not well-formed UTF-8.
    #[error("not UTF-8 [MQTT-1.5.3-1]")]
    NotUtf8,
    /// Contains U+0000.
    #[error("contains U+0000 [MQTT-4.7.3-2]")]
    Nul,
    /// Contains U+0001 to U+001F or U+007F to U+009F, for which the standard (1.5.3) lets a server close the connection:
    /// they have no place in names that people read in logs and on terminals.
    #[error("contains a control character")]
    Control,
    /// A wildcard in a name, or at a wrong place in a filter.
    #[error("misplaced wildcard [MQTT-3.3.2-2, MQTT-4.7.1-2, MQTT-4.7.1-3]")]
    Wildcard,
}

/// Checks a topic name (of a PUBLISH, will or push). `max` in bytes.
pub fn validate_name(name: &[u8], max: usize) -> Result<(), TopicError> {
    validate_text(name, max)?;
    if name.iter().any(|byte| matches!(byte, b'+' | b'#')) { Err(TopicError::Wildcard) } else { Ok(()) }
}

/// Checks a topic filter (of a subscription, group or right). `max` in bytes.
pub fn validate_filter(filter: &[u8], max: usize) -> Result<(), TopicError> {
    validate_text(filter, max)?;
    let mut levels = filter.split(|byte| *byte == b'/').peekable();
    while let Some(level) = levels.next() {
        let wild = level.iter().any(|byte| matches!(byte, b'+' | b'#'));
        let placed = level == b"+" || (level == b"#" && levels.peek().is_none());
        if wild && !placed {
            return Err(TopicError::Wildcard);
        }
    }
    Ok(())
}

fn validate_text(text: &[u8], max: usize) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > max {
        return Err(TopicError::TooLong);
    }
    check_text(text)
}

/// Checks a string of the standard, also an empty one [MQTT-1.5.3-1, MQTT-1.5.3-2].
pub(crate) fn check_text(text: &[u8]) -> Result<(), TopicError> {
    // Printable ASCII, nearly always: one pass without a branch a byte.
    let unusual = text.iter().fold(false, |unusual, byte| unusual | !matches!(byte, b' '..=b'~'));
    if unusual { check_unusual_text(text) } else { Ok(()) }
}

#[cold]
fn check_unusual_text(text: &[u8]) -> Result<(), TopicError> {
    if text.contains(&0) {
        return Err(TopicError::Nul);
    }
    let text = std::str::from_utf8(text).map_err(|_| TopicError::NotUtf8)?;
    if text.chars().any(char::is_control) { Err(TopicError::Control) } else { Ok(()) }
}

/// Whether a valid filter matches a valid name. A filter that begins with a wildcard matches no name that begins with `$`
/// [MQTT-4.7.2-1].
pub fn matches(filter: &[u8], topic: &[u8]) -> bool {
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    let mut names = topic.split(|byte| *byte == b'/');
    let mut levels = filter.split(|byte| *byte == b'/').peekable();
    while let Some(level) = levels.next() {
        // The multi-level wildcard also stands for the parent level.
        if level == b"#" && levels.peek().is_none() {
            return true;
        }
        match names.next() {
            Some(name) if level == b"+" || level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_examples_match() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "a"),
            ("#", "/"),
            ("+", "finance"),
            ("/+", "/finance"),
            ("+/+", "/finance"),
            ("sport/+", "sport/"),
            ("+/tennis/#", "sport/tennis"),
            ("$SYS/#", "$SYS/a"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("é/#", "é"),
        ] {
            assert!(matches(filter.as_bytes(), topic.as_bytes()), "{filter} {topic}");
        }
    }

    #[test]
    fn the_standards_counter_examples_do_not_match() {
        for (filter, topic) in [
            ("sport/+", "sport"),
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("+", "/finance"),
            ("#", "$SYS/a"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("ACCOUNTS", "Accounts"),
            ("/a", "a"),
            ("a", "a/"),
        ] {
            assert!(!matches(filter.as_bytes(), topic.as_bytes()), "{filter} {topic}");
        }
    }

    #[test]
    fn wildcards_stand_alone_in_their_level_and_hash_is_last() {
        for good in ["#", "+", "a/#", "+/a/+", "/", "//", "a//b", "/#"] {
            assert_eq!(validate_filter(good.as_bytes(), TOPIC_MAX), Ok(()), "{good}");
        }
        for bad in ["a#", "a/#/b", "+a", "a/b+", "##", "++", "#/", "é/#a"] {
            assert_eq!(validate_filter(bad.as_bytes(), TOPIC_MAX), Err(TopicError::Wildcard), "{bad}");
        }
        assert_eq!(validate_name(b"a/+", TOPIC_MAX), Err(TopicError::Wildcard));
        assert_eq!(validate_name(b"a/#", TOPIC_MAX), Err(TopicError::Wildcard));
    }

    #[test]
    fn text_is_utf8_without_nul_and_bounded() {
        assert_eq!(validate_name(b"", TOPIC_MAX), Err(TopicError::Empty));
        assert_eq!(validate_name(b"a\0", TOPIC_MAX), Err(TopicError::Nul));
        assert_eq!(validate_name(&[0xff], TOPIC_MAX), Err(TopicError::NotUtf8));
        assert_eq!(validate_name(&[0xed, 0xa0, 0x80], TOPIC_MAX), Err(TopicError::NotUtf8));
        for control in ["\u{1}", "a\u{1f}", "\t", "a\u{7f}b", "\u{80}", "é\u{9f}"] {
            assert_eq!(validate_name(control.as_bytes(), TOPIC_MAX), Err(TopicError::Control), "{control:?}");
        }
        for good in [" ~", "\u{a0}é", "\u{feff}", "A\u{2a6d4}", "\u{ffff}"] {
            assert_eq!(validate_name(good.as_bytes(), TOPIC_MAX), Ok(()), "{good:?}");
        }
        assert_eq!(validate_name(&[b'a'; 1_024], TOPIC_MAX), Ok(()));
        assert_eq!(validate_filter(&[b'a'; 1_025], TOPIC_MAX), Err(TopicError::TooLong));
    }
}
