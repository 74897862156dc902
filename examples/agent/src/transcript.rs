//! The log of the model's replies: a reply is on the disk before any of its calls is executed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::Failure;
use crate::model::Reply;

/// The replies so far, and the file of them, locked for as long as this process continues the
/// conversation.
pub(crate) struct Transcript {
    file: File,
    replies: Vec<Reply>,
}

impl Transcript {
    pub(crate) fn open(path: &Path) -> Result<Transcript, Failure> {
        let name = path.display();
        let file = OpenOptions::new().create(true).read(true).append(true).open(path);
        let mut file = file.map_err(|error| format!("cannot open {name}: {error}"))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => format!("another agent continues the conversation of {name}"),
            TryLockError::Error(error) => format!("cannot lock {name}: {error}"),
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| format!("cannot read {name}: {error}"))?;
        // The line that a killed agent was writing. None of its calls was executed, so the model is
        // asked again and may reply differently.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        let mut replies = Vec::new();
        for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let reply = serde_json::from_slice(line);
            replies.push(reply.map_err(|error| format!("{name}, line {}, is no reply: {error}", index + 1))?);
        }
        Ok(Transcript { file, replies })
    }

    /// The reply of this turn, counted from 1, if it is logged.
    pub(crate) fn reply(&self, turn: usize) -> Option<Reply> {
        self.replies.get(turn - 1).cloned()
    }

    /// Logs the next reply.
    pub(crate) fn append(&mut self, reply: &Reply) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.replies.push(reply.clone());
        Ok(())
    }
}
