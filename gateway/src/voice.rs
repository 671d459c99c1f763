//! Log lines that clients cause: so many a second, then only their number. What they are about is counted in metrics anyway.

use penstock_mqtt::session::Millis;

/// Lines of one shard in a second.
const LINES: u32 = 20;
const SECOND: Millis = 1_000;

/// Who may speak now.
#[derive(Default)]
pub(crate) struct Voice {
    until: Millis,
    said: u32,
    unsaid: u64,
}

impl Voice {
    /// Whether one more line may be written.
    pub(crate) fn speaks(&mut self, now: Millis) -> bool {
        if now >= self.until {
            if self.unsaid > 0 {
                tracing::info!(lines = self.unsaid, "clients caused more lines than are written");
            }
            *self = Self { until: now + SECOND, ..Self::default() };
        }
        let speaks = self.said < LINES;
        self.said += u32::from(speaks);
        self.unsaid += u64::from(!speaks);
        speaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_each_second() {
        let mut voice = Voice::default();
        let said = (0..1_000).filter(|_| voice.speaks(5)).count();
        assert_eq!((said, voice.unsaid), (20, 980));
        assert!(voice.speaks(5 + SECOND) && voice.unsaid == 0);
    }
}
