//! `resolve`.

use clap::Args;

use crate::args::Global;
use crate::failure::Failure;

/// Not there yet.
#[derive(Debug, Args)]
pub struct Resolve {}

impl Resolve {
    pub(crate) async fn run(self, _global: &Global) -> Result<(), Failure> {
        Err(Failure::Refused("not there yet".to_owned()))
    }
}
