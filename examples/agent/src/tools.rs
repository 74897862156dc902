//! The tools, each with what may happen after a crash.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nevertwice::{Failure, Fingerprint, Lease, Recovery, Retry};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::Call;
use crate::steps::Steps;

/// The most that the bank transfers in all, in cents.
const FUNDS: u64 = 1_000_000;

/// A call that is one.
#[derive(Debug, Deserialize)]
#[serde(tag = "tool", content = "arguments", rename_all = "snake_case")]
pub(crate) enum Tool {
    SendMail(Mail),
    Transfer(Transfer),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mail {
    to: String,
    subject: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Transfer {
    to: String,
    cents: u64,
}

/// The reason why a tool has no result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToolError {
    /// It never will: the model is told.
    Declined(String),
    /// There was no effect yet.
    Broken(String),
    /// There may have been an effect.
    Unclear(String),
}

impl Failure for ToolError {
    fn retry(&self) -> Retry {
        match self {
            ToolError::Declined(_) => Retry::Never,
            ToolError::Broken(_) => Retry::Now,
            ToolError::Unclear(_) => Retry::Unresolved,
        }
    }
}

impl Tool {
    /// The tool that the model means, or what it is told.
    pub(crate) fn parse(call: &Call) -> Result<Tool, String> {
        let tool = json!({ "tool": call.tool, "arguments": call.arguments });
        let tool = serde_json::from_value(tool).map_err(|error| error.to_string())?;
        let texts = match &tool {
            Tool::SendMail(mail) => vec![&mail.to, &mail.subject],
            Tool::Transfer(transfer) if transfer.cents == 0 => return Err("nothing to transfer".to_owned()),
            Tool::Transfer(transfer) => vec![&transfer.to],
        };
        // A line break in a recipient would become another header of the mail.
        if texts.iter().any(|text| text.is_empty() || text.chars().any(char::is_control)) {
            return Err("a text is empty or has control characters".to_owned());
        }
        Ok(tool)
    }

    /// The fingerprint of tool and arguments: the order in which the model wrote them and its
    /// spaces do not matter.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let fields = Fingerprint::builder();
        match self {
            Tool::SendMail(mail) => {
                fields.field("tool", "send_mail").field("to", &mail.to).field("subject", &mail.subject)
            }
            Tool::Transfer(transfer) => {
                fields.field("tool", "transfer").field("to", &transfer.to).field("cents", transfer.cents)
            }
        }
        .build()
    }

    /// A mail cannot be taken back, and its server does not recognise a second one: after a crash
    /// behind the mark an operator looks. The bank recognises a transfer by its key, so the call is
    /// simply made again.
    pub(crate) fn recovery(&self) -> Recovery {
        match self {
            Tool::SendMail(_) => Recovery::RerunUnlessEffect,
            Tool::Transfer(_) => Recovery::Rerun,
        }
    }

    pub(crate) async fn execute(
        &self,
        lease: &Lease,
        world: &World,
        steps: &Steps,
    ) -> Result<String, ToolError> {
        // If another agent took over in the meantime, this fails and nothing is done.
        lease.mark_effect().await.map_err(|error| ToolError::Broken(error.to_string()))?;
        steps.make("the effect is marked");
        let result = match self {
            Tool::SendMail(mail) => world.send(mail).map_err(|error| ToolError::Unclear(error.to_string())),
            Tool::Transfer(transfer) => match world.transfer(&lease.derive_key("bank"), transfer) {
                Ok(Some(receipt)) => Ok(receipt),
                Ok(None) => Err(ToolError::Declined("insufficient funds".to_owned())),
                // Made again under the same key, whether it was done or not.
                Err(error) => Err(ToolError::Broken(error.to_string())),
            },
        };
        steps.make("the effect has happened");
        result
    }
}

/// The mail server and the bank: two files.
pub(crate) struct World {
    mail: PathBuf,
    transfers: PathBuf,
}

impl World {
    pub(crate) fn here() -> World {
        World { mail: "mail.tsv".into(), transfers: "transfers.tsv".into() }
    }

    /// Sends a mail, as often as it is called.
    fn send(&self, mail: &Mail) -> io::Result<String> {
        append(&mut open(&self.mail)?, &format!("{}\t{}\n", mail.to, mail.subject))?;
        Ok("sent".to_owned())
    }

    /// Transfers once for each key. Returns the receipt, the same one each time, or `None` if there
    /// is too little money.
    fn transfer(&self, key: &str, transfer: &Transfer) -> io::Result<Option<String>> {
        let mut file = open(&self.transfers)?;
        // Until the file is closed, so that the bank does one thing at a time.
        file.lock()?;
        let mut lines = String::new();
        file.read_to_string(&mut lines)?;
        let mut spent = 0_u64;
        for (number, line) in lines.lines().enumerate() {
            let (used, rest) = line.split_once('\t').ok_or(io::ErrorKind::InvalidData)?;
            if used == key {
                return Ok(Some(receipt(number)));
            }
            let cents = rest.rsplit('\t').next().and_then(|cents| cents.parse::<u64>().ok());
            spent = spent.saturating_add(cents.ok_or(io::ErrorKind::InvalidData)?);
        }
        if spent.saturating_add(transfer.cents) > FUNDS {
            return Ok(None);
        }
        append(&mut file, &format!("{key}\t{}\t{}\n", transfer.to, transfer.cents))?;
        Ok(Some(receipt(lines.lines().count())))
    }
}

fn receipt(number: usize) -> String {
    format!("transfer {}", number + 1)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

/// Writes a line at once. It is on the disk when this returns.
fn append(file: &mut File, line: &str) -> io::Result<()> {
    file.write_all(line.as_bytes())?;
    file.sync_data()
}
