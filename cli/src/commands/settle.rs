//! The outcome that an operator records: [`Outcome`].

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use nevertwice::{Body, Resolution};

use crate::failure::Failure;

/// The largest file that is read as a body, in bytes; the engine refuses what is over its limit.
const MAX_FILE: u64 = 64 << 20;

/// The outcome that an operator records.
#[derive(Debug, Clone, Args)]
pub(crate) struct Outcome {
    /// The outcome
    #[arg(value_enum)]
    pub(crate) outcome: OutcomeName,
    /// The response or error that duplicates get, as text: JSON for operations of `Engine::run`
    #[arg(long, conflicts_with = "body_file")]
    body: Option<String>,
    /// The same from a file, or from - for stdin
    #[arg(long, value_name = "PATH")]
    body_file: Option<PathBuf>,
    /// The head that is kept beside it, from a file, for applications that record one
    #[arg(long, value_name = "PATH")]
    head_file: Option<PathBuf>,
}

/// The outcome of an operation, as an operator found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutcomeName {
    /// It was done
    Completed,
    /// It failed for good
    Failed,
    /// It had no effect: the next begin executes
    Rerun,
}

impl Outcome {
    /// Reads the body, and returns the resolution. Called once: a pipe cannot be read again.
    pub(crate) fn resolution(&self) -> Result<Resolution, Failure> {
        if self.body_file.is_some() && self.body_file == self.head_file {
            return Err(Failure::Usage("the body and the head need a file each".to_owned()));
        }
        let body = match (&self.body, &self.body_file) {
            (Some(text), _) => Some(Bytes::from(text.clone())),
            (None, Some(path)) => Some(read(path)?),
            (None, None) => None,
        };
        let head = self.head_file.as_deref().map(read).transpose()?;
        if self.outcome == OutcomeName::Rerun {
            return match (body, head) {
                (None, None) => Ok(Resolution::Rerun),
                _ => Err(Failure::Usage("a rerun has no body".to_owned())),
            };
        }
        let Some(body) = body else {
            return Err(Failure::Usage(
                "say what duplicates get: --body TEXT or --body-file PATH (--body '' for nothing)".to_owned(),
            ));
        };
        let body = Body::kept(body).with_head(head.as_deref().unwrap_or_default());
        Ok(self.outcome.with(body))
    }

    /// Returns what the next begin does once this is recorded.
    pub(crate) fn consequence(&self) -> &'static str {
        match self.outcome {
            OutcomeName::Completed => "the next begin answers Completed with this body",
            OutcomeName::Failed => "the next begin answers Failed with this body",
            OutcomeName::Rerun => "the next begin executes",
        }
    }
}

impl OutcomeName {
    /// Returns the resolution with this body, which a rerun does not have.
    pub(crate) fn with(self, body: Body) -> Resolution {
        match self {
            OutcomeName::Completed => Resolution::Completed(body),
            OutcomeName::Failed => Resolution::Failed(body),
            OutcomeName::Rerun => Resolution::Rerun,
        }
    }
}

fn read(path: &Path) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    };
    match read {
        Err(error) => Err(Failure::Usage(format!("{} cannot be read: {error}", path.display()))),
        Ok(length) if length as u64 > MAX_FILE => {
            Err(Failure::Usage(format!("{} is longer than {MAX_FILE} bytes", path.display())))
        }
        Ok(_) => Ok(bytes.into()),
    }
}
