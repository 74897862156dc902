//! `import`: records that `export` wrote.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Args;
use futures_util::future::join_all;
use nevertwice::store::{Record, Snapshot, Store, Swap, SwapRequest};
use nevertwice::{RecordId, Stamp};
use serde_json::json;

use super::bulk::SHOWN;
use super::change::Consent;
use super::export::{Line, VERSION};
use crate::args::{Global, duration};
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::{Output, progress, time};
use crate::session::{Access, Session};
use crate::walk::NAMED;

/// The number of records that are written in one call.
const BATCH: usize = 100;
/// The longest line that is read, in bytes: above that of the largest record.
const MAX_LINE: u64 = 128 << 20;
/// The number of times that a batch is tried.
const TRIES: usize = 5;
/// An id under which there is no record.
const ANY: RecordId = RecordId::from_bytes([0; 32]);

/// Writes the records of an export into a store. Their fences stay, and those that the store gives
/// are above them; leases and retentions begin anew. A record that is there already is left as it
/// is: repeating an import that ended early is safe.
#[derive(Debug, Args)]
pub struct Import {
    /// The file, or - for stdin
    file: PathBuf,
    /// Creates the SQLite file, or the tables of PostgreSQL, if there are none
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    consent: Consent,
    /// The time to wait at most for the store's clock to pass that of the export
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    wait: Duration,
}

/// The counts of an import.
#[derive(Debug, Default)]
struct Counts {
    imported: u64,
    already: u64,
    differing: Vec<RecordId>,
    /// The records of the export, by its last line.
    expected: Option<u64>,
    missing: u64,
}

impl Import {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut lines = open(&self.file)?;
        // The first line is read before a store is created.
        let start = match lines.next()? {
            Some(Line::Start { version: VERSION, now, .. }) => Stamp(now),
            Some(Line::Start { version, .. }) => {
                return Err(Failure::Usage(format!(
                    "the export is of version {version}, which is not known here"
                )));
            }
            _ => return Err(lines.wrong("it does not begin as an export does")),
        };
        let mode = self.consent.mode(global);
        let access = match (self.create, mode.dry_run) {
            (true, true) => {
                return Err(Failure::Usage("a dry run creates nothing: leave out --create".to_owned()));
            }
            (_, true) => Access::Read,
            (true, _) => Access::Create,
            (false, _) => Access::Write,
        };
        let confirm = || mode.confirm(&format!("Import {} into the store?", self.file.display()));
        // Before a store is created, too.
        if self.create {
            confirm()?;
        }
        let session = Session::open(global, access).await?;
        if !self.create && !mode.dry_run {
            confirm()?;
        }
        let mut counts = Counts::default();
        let ended = self.read(&session, start, &mut lines, &mut counts).await;
        if !mode.dry_run {
            let after = json!({
                "imported": counts.imported, "already": counts.already, "differing": counts.differing.len(),
            });
            let before = json!({ "store_time_at_least": start.0 });
            Journal::new("import").write(&self.file.display().to_string(), &before, &after);
        }
        ended?;
        counts.report(mode.output, mode.dry_run)
    }

    async fn read(
        &self,
        session: &Session,
        start: Stamp,
        lines: &mut Lines,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        let (store, timeout) = (session.store.as_ref(), session.timeout());
        let mut target =
            Target { store, timeout, dry_run: self.consent.dry_run, wait: self.wait, now: Stamp::ZERO };
        target.pass(start, &[ANY]).await?;
        let mut batch = Vec::with_capacity(BATCH);
        let bar = progress("importing");
        while let Some(line) = lines.next()? {
            match line {
                Line::Start { .. } => return Err(lines.wrong("it begins a second time")),
                Line::End { records, unreadable, now } => {
                    target.pass(Stamp(now), &[ANY]).await?;
                    (counts.expected, counts.missing) = (Some(records), unreadable);
                    break;
                }
                Line::Record { id, stamp, record, .. } => {
                    let (Ok(id), Ok(bytes)) = (id.parse::<RecordId>(), BASE64_STANDARD.decode(&record))
                    else {
                        return Err(lines.wrong("its id or record is damaged"));
                    };
                    if batch.iter().any(|(other, _)| *other == id) {
                        // An export of Redis may have a record twice.
                        target.write(&mut batch, counts).await?;
                    }
                    let record = Record::decode(&id, Stamp(stamp), Stamp::ZERO, &Bytes::from(bytes));
                    batch.push((id, record.map_err(|error| lines.wrong(&error.to_string()))?));
                }
            }
            if batch.len() == BATCH {
                bar.inc(BATCH as u64);
                target.write(&mut batch, counts).await?;
            }
        }
        target.write(&mut batch, counts).await?;
        if lines.next()?.is_some() {
            return Err(lines.wrong("lines follow its end"));
        }
        Ok(())
    }
}

/// The store that is imported into.
struct Target<'a> {
    store: &'a dyn Store,
    /// The longest time that a call may take.
    timeout: Duration,
    dry_run: bool,
    wait: Duration,
    /// A time that the clock which was asked last has passed.
    now: Stamp,
}

impl Target<'_> {
    /// Waits until the store's clock has passed `stamp`, so that no fence is given twice. A cluster
    /// has a clock for each of its nodes: those of these ids are asked.
    async fn pass(&mut self, stamp: Stamp, ids: &[RecordId]) -> Result<(), Failure> {
        const PAUSE: Duration = Duration::from_millis(50);
        let mut waited = Duration::ZERO;
        while self.now <= stamp {
            self.now = self.slowest(ids).await?;
            if self.now > stamp || self.dry_run {
                break;
            }
            if waited >= self.wait {
                return Err(Failure::Refused(format!(
                    "the store's clock is {} behind the export's, and fences would repeat: set it right, or wait \
                     longer by --wait",
                    time(stamp.since(self.now))
                )));
            }
            tokio::time::sleep(PAUSE).await;
            waited += PAUSE;
        }
        Ok(())
    }

    /// Returns the time of the slowest of the clocks that these ids are stamped by.
    async fn slowest(&self, ids: &[RecordId]) -> Result<Stamp, Failure> {
        let mut failure = Failure::Unreachable("no answer in time: see --timeout".to_owned());
        for _ in 0..TRIES {
            let calls = join_all(ids.iter().map(|id| self.store.load(id)));
            let Ok(answers) = tokio::time::timeout(self.timeout, calls).await else { continue };
            let errors = || answers.iter().filter_map(|answer| answer.as_ref().err());
            let slowest = answers.iter().flatten().map(|answer| answer.now).min();
            match (errors().find(|error| error.is_transient()), slowest) {
                (Some(error), _) => failure = error.clone().into(),
                // One that cannot be read is left to the write, which is refused.
                (None, Some(now)) => return Ok(now),
                (None, None) => return Err(errors().next().cloned().map_or(failure, Failure::from)),
            }
        }
        Err(failure)
    }

    /// Writes the batch, and empties it.
    async fn write(
        &mut self,
        batch: &mut Vec<(RecordId, Record)>,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        let last = batch.iter().map(|(_, record)| record.stamp.max(record.fence)).max();
        if let Some(last) = last {
            if self.store.name() == "redis" {
                // It may be a cluster, whose nodes each have their own clock.
                self.now = Stamp::ZERO;
            }
            let ids: Vec<RecordId> = batch.iter().map(|(id, _)| *id).collect();
            self.pass(last, &ids).await?;
        }
        let mut left: Vec<(RecordId, Record)> = std::mem::take(batch);
        for tries in 1.. {
            let mut again = Vec::new();
            let (mut failure, mut below) = (None, Vec::new());
            for ((id, record), answer) in left.iter().zip(self.swap(&left).await?) {
                match answer {
                    Ok(Swap::Done(stamp)) => {
                        counts.imported += 1;
                        if stamp <= record.fence && !self.dry_run {
                            below.push(id.to_string());
                        }
                    }
                    Ok(Swap::Conflict(Snapshot { record: Some(present), .. })) => {
                        match is_same(record, &present) {
                            true => counts.already += 1,
                            false => counts.differing.push(*id),
                        }
                    }
                    // Repeated: whether it was written shows then.
                    Ok(Swap::Conflict(_)) => again.push((*id, record.clone())),
                    Err(error) if error.is_transient() => {
                        failure = Some(Failure::from(error));
                        again.push((*id, record.clone()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if !below.is_empty() {
                return Err(Failure::Refused(format!(
                    "a server's clock went back: fences that it gives to what was just written may repeat. \
                     Set the clock right, `forget` these, and repeat the import: {}",
                    below.join(" ")
                )));
            }
            if again.is_empty() {
                return Ok(());
            }
            if tries == TRIES {
                let failure =
                    failure.unwrap_or_else(|| Failure::Refused("records change meanwhile".to_owned()));
                return Err(failure);
            }
            left = again;
        }
        Ok(())
    }

    /// Writes the records that are not there, or only looks.
    async fn swap(
        &self,
        records: &[(RecordId, Record)],
    ) -> Result<Vec<Result<Swap, nevertwice::StoreError>>, Failure> {
        if self.dry_run {
            let mut answers = Vec::with_capacity(records.len());
            for (id, _) in records {
                let found = self.store.load(id).await;
                answers.push(found.map(|found| match found.record {
                    None => Swap::Done(found.now),
                    Some(_) => Swap::Conflict(found),
                }));
            }
            return Ok(answers);
        }
        let swaps: Vec<SwapRequest> =
            records.iter().map(|(id, record)| SwapRequest::new(id, None, Some(record))).collect();
        let call = self.store.swap_many(&swaps);
        match tokio::time::timeout(self.timeout.saturating_mul(2), call).await {
            Ok(answers) => Ok(answers),
            Err(_) => Err(Failure::Unreachable("no answer in time: repeat the import".to_owned())),
        }
    }
}

impl Counts {
    /// Writes the counts, and returns the verdict, which does not depend on their reader.
    fn report(&self, output: Output, dry_run: bool) -> Result<(), Failure> {
        let written = self.write(output, dry_run);
        self.verdict()?;
        or_no_reader(written)
    }

    fn write(&self, output: Output, dry_run: bool) -> Result<(), Failure> {
        let Counts { imported, already, differing, .. } = self;
        if output.json {
            let differing: Vec<String> = differing.iter().take(NAMED).map(ToString::to_string).collect();
            return output.json(&json!({
                "dry_run": dry_run, "imported": imported, "already": already, "differing": differing,
                "differing_count": self.differing.len(), "complete": self.expected.is_some(),
            }));
        }
        let note = if dry_run { " would be imported (dry run)" } else { " imported" };
        output.line(&format!("{imported}{note}, {already} were there, {} differ", differing.len()))?;
        for id in differing.iter().take(SHOWN) {
            output.line(&format!("differs, and is left as it is: {id}"))?;
        }
        Ok(())
    }

    fn verdict(&self) -> Result<(), Failure> {
        let Counts { imported, already, differing, missing, .. } = self;
        let found = imported + already + differing.len() as u64;
        match self.expected {
            None => Err(Failure::Refused(
                "the export was cut: its last line is missing. Export it again".to_owned(),
            )),
            Some(expected) if expected != found => {
                Err(Failure::Refused(format!("{found} records were read, and the export says {expected}")))
            }
            Some(_) if !differing.is_empty() => {
                Err(Failure::Refused("records differ from those there".to_owned()))
            }
            Some(_) if *missing > 0 => {
                Err(Failure::Refused(format!("{missing} records could not be exported: see `check` there")))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Returns true if both are the same but for the time at which they were written.
fn is_same(record: &Record, present: &Record) -> bool {
    record.clone().stamped(present.stamp) == *present
}

/// The lines of a file.
struct Lines {
    name: String,
    number: u64,
    reader: Box<dyn BufRead>,
}

fn open(path: &Path) -> Result<Lines, Failure> {
    let name = path.display().to_string();
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let file =
            File::open(path).map_err(|error| Failure::Usage(format!("{name} cannot be read: {error}")))?;
        Box::new(BufReader::new(file))
    };
    Ok(Lines { name, number: 0, reader })
}

impl Lines {
    fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            self.number += 1;
            let mut line = Vec::new();
            let read = self.reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
            let read =
                read.map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", self.name)))?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 > MAX_LINE {
                return Err(self.wrong("it is too long for a line of an export"));
            }
            if !line.trim_ascii().is_empty() {
                // The parser's error may quote what is in the line.
                let parsed = serde_json::from_slice(&line);
                return parsed.map(Some).map_err(|_| self.wrong("it is no line of an export"));
            }
        }
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::Refused(format!(
            "{}, line {}: {what}. Import a sound file: what is there by then is left as it is",
            self.name, self.number
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use nevertwice::store::async_trait;
    use nevertwice::{Begin, Engine, MemoryStore, Request, StoreError};

    use super::*;

    const ON_TIME: RecordId = RecordId::from_bytes([1; 32]);
    const BEHIND: RecordId = RecordId::from_bytes([2; 32]);

    /// A cluster of two nodes. The clock of the second goes on by `step` with each reading.
    #[derive(Debug)]
    struct Cluster {
        on_time: Stamp,
        behind: AtomicU64,
        step: u64,
        /// The time that the second loses between a reading and a write.
        lost: u64,
        written: AtomicU64,
    }

    impl Cluster {
        fn now(&self, id: &RecordId) -> Stamp {
            if *id == BEHIND {
                Stamp(self.behind.fetch_add(self.step, Ordering::SeqCst))
            } else {
                self.on_time
            }
        }
    }

    #[async_trait]
    impl Store for Cluster {
        async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
            Ok(Snapshot { record: None, now: self.now(id) })
        }

        async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
            self.written.fetch_add(1, Ordering::SeqCst);
            let lost = if swap.id == BEHIND { self.lost } else { 0 };
            Ok(Swap::Done(Stamp(self.now(&swap.id).0 - lost)))
        }

        fn name(&self) -> &'static str {
            "redis"
        }
    }

    /// Imports a record to each of the nodes, the second of which is 100 µs behind.
    async fn import(step: u64, lost: u64) -> (Result<(), Failure>, Cluster) {
        let memory = MemoryStore::new();
        let engine = Engine::builder(memory.clone()).build().unwrap();
        let begun = engine.begin(&Request::new("s", "k").unwrap()).await.unwrap();
        assert!(matches!(begun, Begin::Acquired(_)));
        let (_, record) = memory.scan(None, 1).await.unwrap().records.pop().unwrap();
        let last = record.stamp.max(record.fence).0;
        let (behind, written) = (AtomicU64::new(last - 100), AtomicU64::new(0));
        let cluster = Cluster { on_time: Stamp(last + 100), behind, step, lost, written };
        let now = cluster.on_time;
        let (timeout, wait) = (Duration::from_secs(10), Duration::from_millis(100));
        let mut target = Target { store: &cluster, timeout, dry_run: false, wait, now };
        let mut batch = vec![(ON_TIME, record.clone()), (BEHIND, record)];
        let ended = target.write(&mut batch, &mut Counts::default()).await;
        (ended, cluster)
    }

    #[tokio::test]
    async fn s5_no_record_is_written_where_the_clock_is_behind_its_fence() {
        // In time, after another reading.
        let (ended, cluster) = import(101, 0).await;
        assert!(ended.is_ok() && cluster.written.into_inner() == 2, "{ended:?}");
        // Not in time.
        let (ended, cluster) = import(0, 0).await;
        assert!(matches!(ended, Err(Failure::Refused(_))), "{ended:?}");
        assert_eq!(cluster.written.into_inner(), 0);
    }

    #[tokio::test]
    async fn s5_a_record_that_was_stamped_below_its_fence_is_an_error() {
        let (ended, _) = import(200, 1000).await;
        assert!(
            matches!(&ended, Err(Failure::Refused(text)) if text.contains(&BEHIND.to_string())),
            "{ended:?}"
        );
    }
}
