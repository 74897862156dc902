//! A private PostgreSQL server, with the settings of its packages.

use std::fs::read_to_string;

#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code)] // tests use the rest
mod private;

pub(crate) struct Postgres(private::Server);

impl Postgres {
    pub(crate) fn start() -> Postgres {
        Postgres(private::Server::start(&[]))
    }

    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    pub(crate) fn version(&self) -> String {
        format!("PostgreSQL {}", self.0.sql("SHOW server_version"))
    }

    /// Returns the user and system time of the server and of its processes, those that ended
    /// included.
    pub(crate) fn cpu_micros(&self) -> f64 {
        let main = self.0.data().join("postmaster.pid");
        let pid = read_to_string(main).ok().and_then(|text| text.lines().next()?.parse::<u32>().ok());
        let pid = pid.expect("a running server names its process");
        let ticks: f64 = processes()
            .filter_map(|stat| {
                // Behind the name: state, parent, .. and from the twelfth on the four times.
                let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
                let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
                let own = stat.split(' ').next()?.parse::<u32>().ok()? == pid;
                let of = own || fields.get(1)?.parse::<u32>().ok()? == pid;
                let ended = if own { number(13)? + number(14)? } else { 0.0 };
                of.then_some(number(11)? + number(12)? + ended)
            })
            .sum();
        ticks * 1e6 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Removes every table.
    pub(crate) fn flush(&self) {
        self.0.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    }

    /// Makes all rows of the store older, as they would be without a change in that time.
    pub(crate) fn age(&self, by: std::time::Duration) {
        const DUE: u128 = 1 << 26; // microseconds
        let micros = by.as_micros();
        let (table, due) = ("nevertwice", micros / DUE + 1);
        self.0.sql(&format!("UPDATE {table} SET stamp = stamp - {micros}, due = due - {due}"));
        self.0.sql(&format!("VACUUM ANALYZE {table}"));
    }

    /// Returns the size of the database, in bytes.
    pub(crate) fn size(&self) -> f64 {
        self.0.sql("CHECKPOINT; SELECT pg_database_size('postgres')").parse().expect("a number")
    }
}

fn processes() -> impl Iterator<Item = String> {
    let all = std::fs::read_dir("/proc").expect("this is Linux");
    all.filter_map(|entry| read_to_string(entry.ok()?.path().join("stat")).ok())
}
