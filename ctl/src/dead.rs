//! `penstockctl group dead …`: messages that were handed out as often as their group allows.

use clap::Subcommand;
use penstock_client::{Client, DeadLetter};
use serde_json::{Value, json};

use crate::{
    consume::{line, object},
    failure::Failure,
    output::Output,
    quantity::show_time,
};

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// Print a group's dead letters, oldest first within each partition
    #[command(
        after_help = "Example:\n  penstockctl --user demo/app group dead list readings --max 10 --json"
    )]
    List {
        /// The group
        name: String,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        max: u32,
    },
    /// Have dead letters handed out again, to this group alone
    #[command(
        after_help = "Examples:\n  penstockctl --user demo/app group dead redrive readings 2/1824710400000000\n  penstockctl --user demo/app group dead redrive readings --all"
    )]
    Redrive {
        /// The group
        name: String,
        /// As `dead list` names them: partition/number
        #[arg(required_unless_present = "all", value_name = "LETTER")]
        letters: Vec<String>,
        /// All there are
        #[arg(long, conflicts_with = "letters")]
        all: bool,
    },
}

fn name_of(letter: &DeadLetter) -> String {
    format!("{}/{}", letter.message.position.partition, letter.number)
}

fn shown(tenant: &str, letter: &DeadLetter) -> Value {
    let mut object = object(tenant, &letter.message);
    if let Value::Object(fields) = &mut object {
        fields.insert("letter".into(), json!(name_of(letter)));
        fields.insert("dead_at".into(), json!(show_time(letter.dead_at)));
    }
    object
}

/// Runs one of them.
pub async fn run(command: DeadCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let (name, letters, all) = match command {
        DeadCommand::List { name, max } => {
            for letter in client.dead_letters(&name, max as usize).await? {
                let text = || format!("{} {}", name_of(&letter), line(&letter.message));
                output.one(&shown(client.tenant(), &letter), text)?;
            }
            return Ok(());
        }
        DeadCommand::Redrive { name, letters, all } => (name, letters, all),
    };
    let redriven = if all {
        client.redrive(&name, &[]).await?
    } else {
        let mut wanted = client.dead_letters(&name, usize::MAX).await?;
        wanted.retain(|letter| letters.contains(&name_of(letter)));
        if wanted.len() < letters.len() {
            return Err(Failure::Failed(format!(
                "{} of these are no dead letters of {name}: see penstockctl group dead list",
                letters.len() - wanted.len()
            )));
        }
        client.redrive(&name, &wanted).await?
    };
    output.one(&json!({ "redriven": redriven }), || format!("{redriven} handed out again"))
}
