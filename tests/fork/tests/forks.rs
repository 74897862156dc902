//! The rights of a forked child over what it inherits: it starts anew, or gets an error.
//!
//! SQLite has locks for the whole process, and a child that was forked while another thread held
//! one waits for it for ever. So no test runs beside another: see [`alone`].
#![cfg(target_os = "linux")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use futures_executor::block_on;
use nevertwice::{Begin, Clock, Engine, MemoryStore, Owner, Request, SqliteStore, SystemClock};
use nevertwice_fork_tests::{child, copy};

const SHORT: Duration = Duration::from_millis(50);

/// Keeps the other tests of this process waiting until it is dropped.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn request(key: &str) -> Request {
    Request::new("forks", key).unwrap()
}

/// Returns the name of a begin's result.
fn begin(engine: &Engine, key: &str) -> String {
    match block_on(engine.begin(&request(key))) {
        Ok(Begin::Acquired(_)) => "acquired".to_owned(),
        Ok(Begin::InProgress(_)) => "in progress".to_owned(),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

/// Waits in vain for a key in progress, and times out.
fn wait(engine: &Engine, key: &str) -> String {
    let begin = block_on(engine.begin_or_wait(&request(key), SHORT)).unwrap();
    format!("{:?}", begin.verdict()).split('(').next().unwrap_or_default().to_owned()
}

#[test]
fn a_child_waits_after_its_parent_did_and_so_does_its_own_child() {
    let _alone = alone();
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    assert_eq!(begin(&engine, "k"), "acquired");
    let waited = wait(&engine, "k");
    let said = child(|| {
        let own = wait(&engine, "k");
        let fresh = Engine::builder(MemoryStore::new()).build().unwrap();
        let fresh = [begin(&fresh, "k"), wait(&fresh, "k")];
        let grandchild = child(|| wait(&engine, "k"));
        format!("{own}, {}, {grandchild}", fresh.join(" "))
    });
    assert_eq!(said, format!("{waited}, acquired {waited}, {waited}"));
    assert_eq!(wait(&engine, "k"), waited, "and the parent's timer goes on");
}

struct Never;

impl Wake for Never {
    fn wake(self: Arc<Self>) {
        panic!("a sleeper of the parent's was woken in the child");
    }
}

#[test]
fn only_a_sleep_that_the_child_polls_moves_to_the_child() {
    let _alone = alone();
    let never = Waker::from(Arc::new(Never));
    let (mut carried, mut left) = (SystemClock.sleep(SHORT), SystemClock.sleep(SHORT * 40));
    assert!(carried.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(left.as_mut().poll(&mut Context::from_waker(&never)).is_pending());
    let said = child(move || {
        block_on(carried);
        drop(left);
        block_on(SystemClock.sleep(SHORT));
        "slept".to_owned()
    });
    assert_eq!(said, "slept");
}

/// Threads keep the timer's lock busy: sooner or later a child is forked while one of them holds
/// it.
#[test]
fn children_of_a_busy_process_wait_too() {
    let _alone = alone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy = [(); 2].map(|()| {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut sleep = SystemClock.sleep(Duration::from_secs(1));
                assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        })
    });
    for _ in 0..50 {
        let said = child(|| {
            block_on(SystemClock.sleep(Duration::from_millis(1)));
            "slept".to_owned()
        });
        assert_eq!(said, "slept");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for thread in busy {
        thread.join().unwrap();
    }
}

#[test]
fn a_childs_sqlite_store_says_that_it_is_its_parents() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let [path, other] = ["keys.db", "other.db"].map(|name| dir.path().join(name));
    let store = SqliteStore::open(&path).unwrap();
    let engine = Engine::builder(store.clone()).build().unwrap();
    assert_eq!(begin(&engine, "k"), "acquired");
    wait(&engine, "k");
    let said = child(|| {
        let inherited = [begin(&engine, "k"), begin(&engine, "l")].map(|said| said.contains("forked"));
        let again = SqliteStore::open(&path).is_err_and(|error| error.to_string().contains("forked"));
        let fresh = Engine::builder(SqliteStore::open(&other).unwrap()).build().unwrap();
        let fresh = [begin(&fresh, "k"), wait(&fresh, "k")].join(" ");
        drop((engine.clone(), store.clone()));
        format!("{inherited:?} {again} {fresh}")
    });
    assert!(said.starts_with("[true, true] true acquired "), "{said}");
    // Neither the child nor its exit has closed anything of the parent's.
    assert_eq!(begin(&engine, "l"), "acquired");
    drop((engine, store));
    let said = child(|| begin(&Engine::builder(SqliteStore::open(&path).unwrap()).build().unwrap(), "l"));
    assert_eq!(said, "in progress", "what was closed before the fork can be opened in the child");
}

#[test]
fn a_child_that_drops_its_parents_store_neither_hangs_nor_harms_it() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("keys.db")).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    assert_eq!(begin(&engine, "k"), "acquired");
    wait(&engine, "k");
    let mut own = Some(engine.clone());
    drop(engine);
    // The last handles, in the child.
    let said = child(|| {
        drop(own.take());
        "dropped".to_owned()
    });
    assert_eq!(said, "dropped");
    assert_eq!(begin(own.as_ref().unwrap(), "l"), "acquired");
}

/// Returns the output of two copies of one process, where all three have the same process id, as
/// when a snapshot of a machine is started twice. `None` where this user lacks the right.
fn two_copies(prepare: impl Fn(), work: impl Fn() -> String) -> Option<[String; 2]> {
    let said = copy(|| {
        prepare();
        let said = [(); 2].map(|()| copy(|| format!("{} {}", std::process::id(), work())).unwrap());
        format!("{} {}", std::process::id(), said.join("\n"))
    });
    let Some(said) = said else {
        println!("LEFT OUT: copies of a process: no right to make PID namespaces");
        return None;
    };
    let (one, other) = said.split_once('\n').unwrap();
    let number_1 = |said: &str| said.strip_prefix("1 ").expect("all are process 1").to_owned();
    Some([number_1(&number_1(one)), number_1(other)])
}

/// Simulates a process that has worked for a while.
fn draw_many() {
    (0..1000).for_each(|_| drop(Owner::random()));
}

#[test]
fn copies_of_a_process_draw_other_owners() {
    let _alone = alone();
    // The form in a token, since `Debug` does not show it.
    let draw = || serde_json::to_string(&Owner::random().unwrap()).unwrap();
    if let Some([one, other]) = two_copies(draw_many, draw) {
        assert!(one.len() == 34 && other.len() == 34, "{one} {other}");
        assert_ne!(one, other);
    }
}

/// The same on a file: for each key, one copy is granted the lease, and the other finds it in
/// progress.
#[test]
fn copies_of_a_process_are_not_both_granted_a_key() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let work = || {
        let engine = Engine::builder(SqliteStore::open(&path).unwrap()).build().unwrap();
        ["a", "b", "c"].map(|key| begin(&engine, key)).join(", ")
    };
    if let Some([one, other]) = two_copies(draw_many, work) {
        assert_eq!(one, "acquired, acquired, acquired");
        assert_eq!(other, "in progress, in progress, in progress");
    }
}

/// A child must not use its parent's connection: the writes of both would be interleaved.
#[test]
fn a_childs_redis_store_says_that_it_is_its_parents() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let server = std::process::Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn();
    let server = Server(server.expect("these tests need redis-server"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("redis+unix://{}", socket.display());
    let connected = (0..12_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        runtime.block_on(nevertwice::RedisStore::connect(&url)).ok()
    });
    let store = connected.expect("redis-server starts");
    let engine = Engine::builder(store).build().unwrap();
    let said = child(|| {
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begin = own.block_on(engine.begin(&request("k")));
        let fresh = own.block_on(async {
            let store = nevertwice::RedisStore::connect(&url).await.unwrap();
            Engine::builder(store).build().unwrap().begin(&request("k")).await.is_ok()
        });
        format!("{fresh} {}", begin.unwrap_err())
    });
    assert!(said.starts_with("true ") && said.contains("forked"), "{said}");
    assert!(matches!(runtime.block_on(engine.begin(&request("k"))), Ok(Begin::InProgress(_))));
    drop(server);
}

/// A running server, killed when this value is dropped.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
