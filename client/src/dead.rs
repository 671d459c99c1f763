//! Dead letters: messages that were handed out as often as their group allows.

use std::time::SystemTime;

use penstock_proto::messaging as wire;

use crate::{
    client::Client,
    error::CallError,
    group::from_unix_millis,
    message::{Batch, Message},
};

/// A message that was handed out as often as its group allows.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Names it, together with its partition; grows within that.
    pub number: u64,
    /// When it became one.
    pub dead_at: SystemTime,
    /// The message, with the place in the log that it had, and how often it was handed out.
    pub message: Message,
}

impl Client {
    /// Dead letters of a group, of all partitions one after the other, oldest first within each; at most `max`.
    pub async fn dead_letters(&self, group: &str, max: usize) -> Result<Vec<DeadLetter>, CallError> {
        let (mut letters, mut partition, mut after) = (Vec::new(), 0, 0);
        while letters.len() < max {
            let answer = self.ask(|client, number| {
                let max = u32::try_from(max - letters.len()).unwrap_or(u32::MAX);
                let request = wire::ListDeadRequest { group: group.to_owned(), partition, after, max };
                async move { client.messaging(number)?.list_dead(request).await }
            });
            let page = answer.await?;
            match page.letters.last() {
                Some(last) => after = last.number,
                None if partition + 1 < page.partitions => (partition, after) = (partition + 1, 0),
                None => break,
            }
            for letter in page.letters {
                letters.push(read(letter)?);
            }
        }
        Ok(letters)
    }

    /// Has dead letters handed out again, to their group alone, each as a new message; without any, all there are. Returns
    /// how many. After an error some may be handed out twice.
    pub async fn redrive(&self, group: &str, letters: &[DeadLetter]) -> Result<u64, CallError> {
        let name = |letter: &DeadLetter| wire::DeadName {
            partition: letter.message.position.partition,
            number: letter.number,
        };
        let letters: Vec<_> = letters.iter().map(name).collect();
        let answer = self.ask(|client, number| {
            let request = wire::RedriveRequest { group: group.to_owned(), letters: letters.clone() };
            async move { client.messaging(number)?.redrive(request).await }
        });
        Ok(answer.await?.redriven)
    }
}

fn read(letter: wire::DeadLetter) -> Result<DeadLetter, CallError> {
    let batch = Batch::new(wire::Batch {
        partition: letter.partition,
        term: letter.term,
        sequence: letter.sequence,
        records: letter.record,
        indexes: vec![letter.index],
        delivery_counts: vec![letter.deliveries],
    });
    let unreadable = || CallError::Failed("a dead letter can't be read".into());
    let message = batch.messages().map_err(|_| unreadable())?.pop().ok_or_else(unreadable)?;
    Ok(DeadLetter { number: letter.number, dead_at: from_unix_millis(letter.dead_at_ms), message })
}
