//! A relay between a bench and its server, which makes the bench's count repeatable: it holds the
//! server's answers until the bench has sent all that it can, and sleeps. The bench then finds all
//! of them at once, however the two processes were scheduled.
//!
//! Called by a bench as `relay PORT`, with the port of the server; prints its own port. It ends
//! with its standard input.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, process, thread};

/// The time between two looks at the bench.
const PAUSE: Duration = Duration::from_millis(1);
/// The number of looks that must find the bench asleep and nothing in flight.
const CALM: u32 = 5;

/// The answers that wait, by connection in the order of opening, and the count of all reads.
#[derive(Default)]
struct Held {
    answers: Vec<(TcpStream, Vec<u8>)>,
    reads: u64,
}

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| io::Error::other("usage: relay PORT"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(|| {
        _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    });
    let bench = std::os::unix::process::parent_id();
    relay(&listener, port, move || fs::read_to_string(format!("/proc/{bench}/stat")).unwrap_or_default())
}

/// Serves the connections of the bench. `stat` returns its state.
fn relay(listener: &TcpListener, port: u16, stat: impl Fn() -> String + Send + 'static) -> io::Result<()> {
    let held = Arc::new(Mutex::new(Held::default()));
    let waiting = held.clone();
    thread::spawn(move || {
        let mut gate = Gate::default();
        loop {
            thread::sleep(PAUSE);
            let mut held = waiting.lock().expect("no thread panics");
            if gate.opens(is_asleep(&stat()), held.reads) {
                for (bench, answer) in &mut held.answers {
                    // A bench that hung up takes no more.
                    _ = bench.write_all(answer);
                    answer.clear();
                }
            }
        }
    });
    loop {
        let (bench, _) = listener.accept()?;
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        bench.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_bench, from_server) = (bench.try_clone()?, server.try_clone()?);
        let place = {
            let mut held = held.lock().expect("no thread panics");
            held.answers.push((bench, Vec::new()));
            held.answers.len() - 1
        };
        let (questions, answers) = (held.clone(), held.clone());
        thread::spawn(move || {
            pass(from_bench, |bytes| {
                questions.lock().expect("no thread panics").reads += 1;
                _ = (&server).write_all(bytes);
            });
            _ = server.shutdown(Shutdown::Write);
        });
        thread::spawn(move || {
            pass(from_server, |bytes| {
                let mut held = answers.lock().expect("no thread panics");
                held.reads += 1;
                held.answers[place].1.extend_from_slice(bytes);
            });
            let mut held = answers.lock().expect("no thread panics");
            let (bench, answer) = &mut held.answers[place];
            _ = bench.write_all(answer);
            answer.clear();
            _ = bench.shutdown(Shutdown::Write);
        });
    }
}

/// Passes on what one side sends, until it hangs up.
fn pass(mut from: TcpStream, mut to: impl FnMut(&[u8])) {
    let mut buffer = [0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        to(&buffer[..read]);
    }
}

/// Returns true if a line of `/proc/PID/stat` is that of a sleeping process.
fn is_asleep(stat: &str) -> bool {
    // The name in front of the state may have parentheses of its own.
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}

/// Notices that all is calm.
#[derive(Default)]
struct Gate {
    reads: u64,
    calm: u32,
}

impl Gate {
    /// Takes a look: the state of the bench, and the number of reads until now. Returns true if the
    /// last ones were all calm.
    fn opens(&mut self, asleep: bool, reads: u64) -> bool {
        self.calm = if asleep && reads == self.reads { self.calm + 1 } else { 0 };
        self.reads = reads;
        self.calm >= CALM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_behind_the_name() {
        assert!(is_asleep("7 (a) R (b) S 1 7 7 0"));
        assert!(!is_asleep("7 (a) S (b) R 1 7 7 0"));
        assert!(!is_asleep(""));
    }

    #[test]
    fn the_gate_opens_after_enough_calm_looks() {
        let mut gate = Gate::default();
        let looks = |gate: &mut Gate, reads| (0..CALM).map(|_| gate.opens(true, reads)).last();
        assert_eq!(looks(&mut gate, 0), Some(true));
        assert!(!gate.opens(true, 1), "something was read");
        assert_eq!(looks(&mut gate, 1), Some(true));
        assert!(!gate.opens(false, 1), "the bench runs");
        assert_eq!((1..CALM).map(|_| gate.opens(true, 1)).last(), Some(false));
    }

    #[test]
    fn answers_wait_while_the_bench_runs() {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (server, listener) = (bind(), bind());
        let ports = [&server, &listener].map(|listener| listener.local_addr().unwrap().port());
        thread::spawn(move || {
            let (mut client, _) = server.accept().unwrap();
            let mut echo = client.try_clone().unwrap();
            io::copy(&mut client, &mut echo).unwrap();
        });
        let state = Arc::new(Mutex::new("1 (bench) R"));
        let stat = state.clone();
        thread::spawn(move || relay(&listener, ports[0], move || stat.lock().unwrap().to_string()));

        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, ports[1])).unwrap();
        client.write_all(b"one").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut answer = [0; 6];
        assert!(client.read(&mut answer).is_err(), "an answer came too early");
        client.write_all(b"two").unwrap();
        *state.lock().unwrap() = "1 (bench) S";
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"onetwo");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut answer).unwrap(), 0);
    }
}
